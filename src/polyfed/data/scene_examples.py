"""Instruction tuning in the tiny world: a broad part to pre-train on, and nine clients with three tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from torch import Tensor

from polyfed import rng
from polyfed.data.boxes import Box
from polyfed.data.scene_pictures import picture
from polyfed.data.scene_texts import Said, caption, place, question
from polyfed.data.scenes import BACKGROUNDS, COLOURS, SHAPES, Domain, Kind, Scene, even

SceneTask = Literal["vqa", "caption", "grounding"]
Part = Literal["train", "val", "test"]

TASKS: dict[SceneTask, Callable[[Scene, np.random.Generator], Said | None]] = {
    "vqa": question,
    "caption": caption,
    "grounding": place,
}
CLIENTS_PER_TASK = 3
CLIENTS = len(TASKS) * CLIENTS_PER_TASK

NEW_COLOUR, NEW_SHAPE, NEW_BACKGROUND = COLOURS[-1], SHAPES[-1], BACKGROUNDS[-1]
"""What does not occur in pre-training at all."""
NEW_KINDS = frozenset(
    {Kind("red", "cross"), Kind("green", "circle"), Kind("blue", "triangle"), Kind("yellow", "square")}
)
"""What does not occur together in pre-training."""
BROAD = Domain(even(BACKGROUNDS[:-1]), even(COLOURS[:-1]), even(SHAPES[:-1]), absent=NEW_KINDS)
"""What pre-training sees."""
CROWDED = replace(BROAD, counts=(0.0, 0.0, 0.0, 1.0))
"""What a vision tower is pre-trained on: the same with four objects, which show it twice as much as one or two."""
ASKED: Mapping[SceneTask, int] = {"caption": 1, "vqa": 4, "grounding": 2}
"""How often each task is drawn for one scene of pre-training."""


@dataclass(frozen=True, slots=True)
class Example:
    """A scene, an instruction, the answers that are right, and the box of the object asked for.

    A model is trained to give the first answer. ``client`` is None in what belongs to no client.
    """

    scene: Scene
    task: SceneTask
    instruction: str
    answers: tuple[str, ...]
    box: Box | None = None
    client: int | None = None

    @property
    def image(self) -> Tensor:
        """The picture, drawn anew each time: (3, 32, 32) bytes."""
        return picture(self.scene)


def pretraining_examples(count: int, seed: int, part: Part = "train") -> list[Example]:
    """Draw examples of the broad part of the world, the three tasks in turn."""
    tasks = tuple(TASKS)
    return [_example(BROAD, tasks[i % len(tasks)], (seed, "pretraining", part, i)) for i in range(count)]


def pretraining_scenes(count: int, seed: int) -> list[tuple[Scene, list[Said]]]:
    """Draw scenes of the broad part of the world, each with several instructions of all tasks.

    They are other scenes than those of ``pretraining_examples``.
    """
    return [_much_asked(rng.numpy_generator("scenes", seed, "pretraining", "much asked", i)) for i in range(count)]


def crowded_scenes(count: int, seed: int) -> list[Scene]:
    """Draw scenes of the broad part of the world with four objects."""
    return [CROWDED.scene(rng.numpy_generator("scenes", seed, "pretraining", "crowded", i)) for i in range(count)]


def common_examples(task: SceneTask, count: int, seed: int, part: Part = "test") -> list[Example]:
    """Draw examples of the whole world, as a test that the clients of a task have in common."""
    return [_example(Domain(), task, (seed, "common", task, part, i)) for i in range(count)]


def client_examples(
    client: int, count: int, seed: int, *, alpha: float | None = 1.0, part: Part = "train"
) -> list[Example]:
    """Draw examples of one client (0 to 8): all of its one task and of its own domain."""
    domain, task = client_domain(client, seed, alpha), client_task(client)
    return [_example(domain, task, (seed, "client", client, part, i), client) for i in range(count)]


def client_task(client: int) -> SceneTask:
    """Return the task of a client: 0 to 2 answer questions, 3 to 5 write captions, 6 to 8 find objects."""
    return tuple(TASKS)[client // CLIENTS_PER_TASK]


def client_domain(client: int, seed: int, alpha: float | None) -> Domain:
    """Return what a client's scenes look like: the whole world, narrowed by Dirichlet(alpha); None: the whole world."""
    return Domain().shifted(alpha, rng.numpy_generator(seed, "scenes", "domain", client))


def _much_asked(draw: np.random.Generator) -> tuple[Scene, list[Said]]:
    """Draw a scene and what is asked about it, as often as the scene and the broad part of the world allow."""
    scene = BROAD.scene(draw)
    tried = [TASKS[task](scene, draw) for task, often in ASKED.items() for _ in range(often)]
    return scene, [said for said in tried if said is not None and not BROAD.lacks(said.instruction)]


def _example(domain: Domain, task: SceneTask, key: tuple[rng.Key, ...], client: int | None = None) -> Example:
    """Draw one example by its own key, so that it depends on no other.

    Drawn anew are scenes that allow no question, and questions about what the domain lacks: else pre-training would
    teach that the answer to them is no.
    """
    draw = rng.numpy_generator("scenes", *key)
    while True:
        scene = domain.scene(draw)
        said = TASKS[task](scene, draw)
        if said is not None and not domain.lacks(said.instruction):
            return Example(scene, task, said.instruction, said.answers, said.box, client)
