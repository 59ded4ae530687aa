"""Scenes of a tiny world: a few coloured shapes on an even background, drawn at random.

A scene is known completely, so that pictures, captions, questions and boxes can be made from it without labelling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from polyfed.data.boxes import Box

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("circle", "square", "triangle", "cross", "ring")
BACKGROUNDS = ("black", "gray", "white", "brown")
ACROSS: Mapping[str, tuple[int, ...]] = {"small": (6, 7, 8), "large": (11, 12, 13)}
"""How many pixels an object of a size may measure across."""
SIZES = tuple(ACROSS)
SIDE = 32
"""Width and height of a picture in pixels."""
GAP = 1
"""At least so many pixels of background are between two objects' boxes."""
COUNTS = (3.0, 2.0, 1.0)
"""How often there are 1, 2 and 3 objects; single ones are what a model learns colours and shapes from."""
PLACEMENTS_AT_ONCE = 64

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Object:
    """A coloured shape whose upper left corner is the pixel (``x``, ``y``) and which measures ``across`` each way."""

    shape: str
    colour: str
    size: str
    x: int
    y: int
    across: int

    @property
    def box(self) -> Box:
        """The smallest box around it, in shares of the picture's side."""
        return self.x / SIDE, self.y / SIDE, (self.x + self.across) / SIDE, (self.y + self.across) / SIDE

    @property
    def centre(self) -> tuple[float, float]:
        """Its middle (x, y) in pixels."""
        return self.x + self.across / 2, self.y + self.across / 2


@dataclass(frozen=True, slots=True)
class Scene:
    """Objects on a background, ordered by their centres from left to right."""

    background: str
    objects: tuple[Object, ...]


@dataclass(frozen=True)
class Kind:
    """What an object is like, apart from its size and place."""

    colour: str
    shape: str


def even(names: Sequence[str]) -> dict[str, float]:
    """Give every name the same weight."""
    return dict.fromkeys(names, 1.0)


@dataclass(frozen=True)
class Domain:
    """What scenes of one origin look like: the weights of backgrounds, colours, shapes, and of 1, 2 and 3 objects.

    Each is drawn by itself, except that kinds in ``absent`` never occur. Both sizes and all places are equally likely.
    Raises ValueError if no kind is left.
    """

    backgrounds: Mapping[str, float] = field(default_factory=lambda: even(BACKGROUNDS))
    colours: Mapping[str, float] = field(default_factory=lambda: even(COLOURS))
    shapes: Mapping[str, float] = field(default_factory=lambda: even(SHAPES))
    counts: tuple[float, ...] = COUNTS
    absent: frozenset[Kind] = frozenset()

    def __post_init__(self) -> None:
        if not self.kinds:
            raise ValueError("no colour and shape are left that may occur together")

    @cached_property
    def kinds(self) -> dict[Kind, float]:
        """The kinds that occur and their weights."""
        weights = {Kind(colour, shape): a * b for colour, a in self.colours.items() for shape, b in self.shapes.items()}
        return {kind: weight for kind, weight in weights.items() if weight > 0 and kind not in self.absent}

    def lacks(self, text: str) -> bool:
        """Whether a text names a colour or shape that does not occur."""
        known = {word for kind in self.kinds for word in (kind.colour, kind.shape)}
        return not known.issuperset(word for word in (*COLOURS, *SHAPES) if word in text)

    def shifted(self, alpha: float | None, draw: np.random.Generator) -> Domain:
        """Return a narrower domain: each weight times a share drawn from Dirichlet(alpha).

        Backgrounds, colours, shapes and numbers of objects are drawn one after the other. Small ``alpha``: few of each
        make up most; None: no shift.
        """
        if alpha is None:
            return self
        backgrounds, colours, shapes = (
            dict(zip(weights, _skewed(list(weights.values()), alpha, draw), strict=True))
            for weights in (self.backgrounds, self.colours, self.shapes)
        )
        counts = tuple(_skewed(self.counts, alpha, draw))
        return replace(self, backgrounds=backgrounds, colours=colours, shapes=shapes, counts=counts)

    def scene(self, draw: np.random.Generator) -> Scene:
        """Draw a scene."""
        background = pick(draw, list(self.backgrounds), list(self.backgrounds.values()))
        count = pick(draw, range(1, len(self.counts) + 1), self.counts)
        kinds = [pick(draw, list(self.kinds), list(self.kinds.values())) for _ in range(count)]
        sizes = [pick(draw, SIZES) for _ in kinds]
        across = [pick(draw, ACROSS[size]) for size in sizes]
        objects = [
            Object(kind.shape, kind.colour, size, x, y, pixels)
            for kind, size, pixels, (x, y) in zip(kinds, sizes, across, place(across, draw), strict=True)
        ]
        return Scene(background, tuple(sorted(objects, key=lambda one: one.centre)))


def pick(draw: np.random.Generator, values: Sequence[Value], weights: Sequence[float] | None = None) -> Value:
    """Draw one of the values, all equally likely or by weight."""
    if weights is None:
        return values[int(draw.random() * len(values))]
    heights = np.cumsum(weights)
    return values[int(np.searchsorted(heights, draw.random() * heights[-1], side="right"))]


def place(across: Sequence[int], draw: np.random.Generator) -> list[tuple[int, int]]:
    """Draw upper left corners of squares that keep apart, every arrangement of them being equally likely."""
    sides = np.array(across)
    while True:
        # whole arrangements are drawn anew, for else the first square would have more room than the last
        corners = (draw.random((PLACEMENTS_AT_ONCE, len(across), 2)) * (SIDE + 1 - sides)[:, None]).astype(np.int64)
        fitting = corners[_apart(corners, sides)]
        if len(fitting):
            return [(x, y) for x, y in fitting[0].tolist()]


def _apart(corners: Ints, sides: Ints) -> npt.NDArray[np.bool_]:
    """Say of arrangements (arrangements, squares, 2) in which all squares keep apart: (arrangements,)."""
    apart = np.ones(len(corners), dtype=np.bool_)
    for one, other in combinations(range(len(sides)), 2):
        step = corners[:, other] - corners[:, one]
        clear = (step >= sides[one] + GAP) | (-step >= sides[other] + GAP)
        apart &= clear.any(1)
    return apart


def _skewed(weights: Sequence[float], alpha: float, draw: np.random.Generator) -> list[float]:
    shares = draw.dirichlet([alpha] * len(weights))
    return [weight * float(share) for weight, share in zip(weights, shares, strict=True)]
