"""Samples of what a language model writes at the end of a run, beside what was asked and what was right.

They are kept as ``answers.safetensors`` in the run folder: the first ``MOST_SAMPLES`` test samples of a client, right
or wrong, of at most ``MOST_CLIENTS`` clients; pictures with sides of at most ``LARGEST_SIDE``, all together at most
``MOST_BYTES``, and texts of at most ``LONGEST_TEXT`` characters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from polyfed.data.boxes import Box, parse_box
from polyfed.data.samples import Asked
from polyfed.data.schema import Task
from polyfed.engine.evaluate import judged
from polyfed.engine.kept_samples import keep
from polyfed.engine.steps import Judge
from polyfed.engine.texts import Writer
from polyfed.engine.trainer import Trainer
from polyfed.model.metrics import finish
from polyfed.model.text_metrics import text_sums
from polyfed.scenario.federation import Card, Federation

CALLED = "answers"
FILE = f"{CALLED}.safetensors"

MOST_CLIENTS = 12
MOST_SAMPLES = 4
MOST_ANSWERS = 5
LONGEST_TEXT = 400
LARGEST_SIDE = 128
MOST_BYTES = 2_000_000
BEYOND = 2.0
"""Edges of boxes are cut off so far from the picture, in its sides."""


@dataclass(frozen=True)
class Answered:
    """One sample: what was asked, the right answers, what the model wrote, and how that is judged by itself.

    ``scores`` are ``accuracy`` (0 to 1) and ``iou``; captions, which are judged all together, have none. ``boxes`` are
    the ``right`` and the ``written`` one where the task is to find something, as shares of the padded square.
    """

    question: str
    answers: tuple[str, ...]
    written: str
    scores: Mapping[str, float]
    boxes: Mapping[str, Box]
    picture: bool


@dataclass(frozen=True)
class Sheet:
    """Samples of one client and task; ``pictures`` are uint8 (3, height, width) by the place of the sample."""

    task: str
    client: int
    samples: tuple[Answered, ...]
    pictures: Mapping[int, Tensor]

    @property
    def size(self) -> int:
        """Bytes of the pictures."""
        return sum(value.nbytes for value in self.pictures.values())

    @property
    def entry(self) -> Mapping[str, Any]:
        """All but the pictures."""
        return {"task": self.task, "client": self.client, "samples": [asdict(one) for one in self.samples]}

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The pictures, by the place of the sample."""
        return {str(place): value for place, value in self.pictures.items()}


def keep_answers(
    folder: Path, federation: Federation, trainer: Trainer, parameters_of: Judge, round_number: int
) -> None:
    """Write samples of all language tasks into a run folder; nothing where there is none.

    This process computes them, whoever trains, so they are the same for any number of workers.
    """
    keep(folder / FILE, CALLED, _sheets(federation, trainer, parameters_of), MOST_BYTES, round_number)


def chosen_cards(federation: Federation) -> list[tuple[Task, Card]]:
    """Return who is to be shown: clients with test samples of a language task, one of each task by turns."""
    by_task = [
        [
            (task, card)
            for card in federation.cards.values()
            if task.name in card.tasks and bool(federation.client(card.id).test.labelled[task.name].any())
        ]
        for task in federation.tasks.values()
        if task.kind == "language"
    ]
    return [one for turn in zip_longest(*by_task) for one in turn if one is not None][:MOST_CLIENTS]


def _sheets(federation: Federation, trainer: Trainer, parameters_of: Judge) -> Iterator[Sheet]:
    for task, card in chosen_cards(federation):
        samples = federation.client(card.id).test
        positions = torch.nonzero(samples.labelled[task.name]).flatten()[:MOST_SAMPLES]
        deployed, personal = parameters_of(card.id)
        model = judged(trainer, card, {**deployed, **personal})
        writer = model.module
        if not isinstance(writer, Writer):  # evaluation has refused such a model already
            return
        batch = trainer.batch(samples, positions, frozenset(card.modalities))
        with torch.no_grad(), trainer.computing():
            written = writer.write(batch, task.name)
        yield sheet_of(task, card, samples.asked(positions), written)


def sheet_of(task: Task, card: Card, asked: Sequence[Asked], written: Sequence[str]) -> Sheet:
    """Put what was asked beside what was written."""
    pairs = list(zip(asked, written, strict=True))
    pictures = {place: shrunk(one) for place, (one, _) in enumerate(pairs) if one.picture is not None}
    return Sheet(task.name, card.id, tuple(_answered(task, one, text) for one, text in pairs), pictures)


def _answered(task: Task, asked: Asked, written: str) -> Answered:
    scores = {} if task.metric == "caption" else finish(text_sums(task.metric, [written], [asked.answers]))
    named = {"right": asked.answers[0], "written": written} if task.metric == "grounding" else {}
    boxes = {name: box for name, text in named.items() if (box := parse_box(text)) is not None}
    return Answered(
        clipped(asked.question),
        tuple(map(clipped, asked.answers[:MOST_ANSWERS])),
        clipped(written),
        scores,
        {name: cut(box) for name, box in boxes.items()},
        asked.picture is not None,
    )


def clipped(text: str) -> str:
    """Cut off a long text; what is not Unicode becomes a question mark."""
    sound = text.encode("utf-8", "replace").decode("utf-8")
    return sound if len(sound) <= LONGEST_TEXT else f"{sound[: LONGEST_TEXT - 1]}\N{HORIZONTAL ELLIPSIS}"


def cut(box: Box) -> Box:
    """Cut off what is far outside of the picture: a model may write any number."""
    left, top, right, bottom = (min(max(edge, -BEYOND), 1 + BEYOND) for edge in box)
    return left, top, right, bottom


def shrunk(asked: Asked) -> Tensor:
    """Open a picture and shrink it, if need be, by means of patches: uint8 (3, height, width)."""
    assert asked.picture is not None
    values = torch.from_numpy(np.array(asked.picture()))
    height, width = values.shape[1:]
    ratio = LARGEST_SIDE / max(height, width)
    if ratio >= 1:
        return values.contiguous()
    sides = max(1, round(height * ratio)), max(1, round(width * ratio))
    return functional.adaptive_avg_pool2d(values.float(), sides).round().to(torch.uint8).contiguous()
