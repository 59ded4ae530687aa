"""What is said about scenes: captions, questions with a one-word answer, and places, from a small fixed grammar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from polyfed.data.boxes import Box, box_text
from polyfed.data.scenes import BACKGROUNDS, COLOURS, SHAPES, Object, Scene, pick

NUMBERS = ("zero", "one", "two", "three")
DIRECTIONS = {"left of": (1, 0), "right of": (-1, 0), "above": (0, 1), "below": (0, -1)}
"""What to say of a thing from which another one lies in this direction (x, y); y points down."""
CLEARLY = 4
"""So many pixels between two centres are needed to say that one is left of the other, or above it."""
GRAMMAR = (
    "a above an and are background below caption colour describe does how is large left many no object objects of on "
    "or picture right shape show small the there what where with write yes"
)
VOCABULARY = (*GRAMMAR.split(), *COLOURS, *SHAPES, *BACKGROUNDS, *NUMBERS)
"""Every word of the grammar, without the numbers of boxes."""
DESCRIBE = ("describe the picture.", "what does the picture show?", "write a caption.")


@dataclass(frozen=True, slots=True)
class Said:
    """An instruction and the answers that are right. ``box`` is that of the object asked for."""

    instruction: str
    answers: tuple[str, ...]
    box: Box | None = None


Value = TypeVar("Value")
Question = Callable[[Scene, np.random.Generator], Said | None]
"""Makes a question about a scene; None where none of the kind has just one answer."""


def caption(scene: Scene, draw: np.random.Generator) -> Said:
    """Ask for a caption; there are three references, of which the first names the objects from left to right."""
    things = [full_name(thing) for thing in scene.objects]
    ground = f"a {scene.background} background"
    listed, backwards = listing(things), listing(things[::-1])
    verb = "is" if len(things) == 1 else "are"
    references = (
        f"{listed} on {ground}",
        f"there {verb} {backwards} on {ground}",
        f"{ground} with {listed}",
    )
    return Said(pick(draw, DESCRIBE), references)


def question(scene: Scene, draw: np.random.Generator) -> Said:
    """Ask something that has a one-word answer; every kind of question that the scene allows is equally likely."""
    possible = [said for ask in QUESTIONS if (said := ask(scene, draw)) is not None]
    return pick(draw, possible)


def place(scene: Scene, draw: np.random.Generator) -> Said | None:
    """Ask where an object is; None if each object has a twin of the same size, colour and shape."""
    thing = _some(draw, _unique(scene, full_name))
    if thing is None:
        return None
    names = [name(thing) for name in (name_by_shape, name_by_kind) if thing in _unique(scene, name)]
    return Said(f"where is the {pick(draw, names or [full_name(thing)[2:]])}?", (box_text(thing.box),), thing.box)


def full_name(thing: Object) -> str:
    """Return for instance "a small red circle"."""
    return f"a {thing.size} {name_by_kind(thing)}"


def name_by_kind(thing: Object) -> str:
    """Return for instance "red circle"."""
    return f"{thing.colour} {thing.shape}"


def name_by_shape(thing: Object) -> str:
    """Return for instance "circle"."""
    return thing.shape


def name_by_colour(thing: Object) -> str:
    """Return for instance "red object"."""
    return f"{thing.colour} object"


def article(name: str) -> str:
    """Return for instance "an orange ring"."""
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def listing(things: Sequence[str]) -> str:
    """Return for instance "a, b and c"."""
    return " and ".join(filter(None, (", ".join(things[:-1]), things[-1])))


def _background(scene: Scene, draw: np.random.Generator) -> Said | None:
    return Said("what colour is the background?", (scene.background,))


def _colour(scene: Scene, draw: np.random.Generator) -> Said | None:
    thing = _some(draw, _unique(scene, name_by_shape))
    return None if thing is None else Said(f"what colour is the {thing.shape}?", (thing.colour,))


def _shape(scene: Scene, draw: np.random.Generator) -> Said | None:
    thing = _some(draw, _unique(scene, name_by_colour))
    return None if thing is None else Said(f"what shape is the {name_by_colour(thing)}?", (thing.shape,))


def _size(scene: Scene, draw: np.random.Generator) -> Said | None:
    thing = _some(draw, _unique(scene, name_by_kind))
    return None if thing is None else Said(f"is the {name_by_kind(thing)} small or large?", (thing.size,))


def _count(scene: Scene, draw: np.random.Generator) -> Said | None:
    present = [thing.colour for thing in scene.objects]
    colour = pick(draw, present if draw.random() < 0.7 else COLOURS)
    return Said(f"how many {colour} objects are there?", (NUMBERS[present.count(colour)],))


def _presence(scene: Scene, draw: np.random.Generator) -> Said | None:
    """Ask for a kind; where it is not there, one like it in colour or shape is."""
    thing = pick(draw, scene.objects)
    if draw.random() < 0.5:
        return Said(f"is there {article(name_by_kind(thing))}?", ("yes",))
    near = [f"{colour} {thing.shape}" for colour in COLOURS] + [f"{thing.colour} {shape}" for shape in SHAPES]
    present = {name_by_kind(one) for one in scene.objects}
    missing = pick(draw, [name for name in near if name not in present])
    return Said(f"is there {article(missing)}?", ("no",))


def _neighbour(scene: Scene, draw: np.random.Generator) -> Said | None:
    """Ask what lies on one side of an object, if exactly one thing clearly does and for no other is it doubtful."""
    found = [
        Said(f"what shape is {words} the {name_by_kind(thing)}?", (beside[0].shape,))
        for thing in _unique(scene, name_by_kind)
        for words, direction in DIRECTIONS.items()
        if len(beside := _beside(scene, thing, direction)) == 1
    ]
    return _some(draw, found)


QUESTIONS: tuple[Question, ...] = (_background, _colour, _shape, _size, _count, _presence, _neighbour)


def _beside(scene: Scene, thing: Object, direction: tuple[int, int]) -> list[Object]:
    """Return the objects on one side of another; none if there is doubt."""
    x, y = direction
    steps = [(thing.centre[0] - one.centre[0]) * x + (thing.centre[1] - one.centre[1]) * y for one in scene.objects]
    if any(0 < step < CLEARLY for step in steps):
        return []
    return [one for one, step in zip(scene.objects, steps, strict=True) if step >= CLEARLY]


def _some(draw: np.random.Generator, values: Sequence[Value]) -> Value | None:
    return pick(draw, values) if values else None


def _unique(scene: Scene, name: Callable[[Object], str]) -> list[Object]:
    """Return the objects that are the only ones of their name."""
    names = [name(thing) for thing in scene.objects]
    return [thing for thing, own in zip(scene.objects, names, strict=True) if names.count(own) == 1]
