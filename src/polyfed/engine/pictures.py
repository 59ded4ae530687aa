"""Samples of what generation tasks made at the end of a run, beside what was to be made and from what.

They are kept as ``pictures.safetensors`` in the run folder: a few clients, four samples each, at most ``LARGEST_SIDE``
values wide and high, and together at most ``MOST_BYTES``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from polyfed.data.samples import Batch, Samples
from polyfed.data.schema import Form, Modality, Task
from polyfed.engine.evaluate import judged, outputs_of
from polyfed.engine.kept_samples import keep
from polyfed.engine.steps import Judge
from polyfed.engine.trainer import Trainer
from polyfed.scenario.federation import Card, Federation

CALLED = "pictures"
FILE = f"{CALLED}.safetensors"

MOST_CLIENTS = 6
"""Clients per task: the first of each kind, that is, with other modalities or tasks."""

MOST_SAMPLES = 4
MOST_INPUTS = 3
LARGEST_SIDE = 64
"""Larger pictures are shrunk: each value becomes the mean of its patch."""

MOST_BYTES = 600_000
"""Of all pictures together, each counted with ``OVERHEAD``: what it takes on a page besides its values."""

OVERHEAD = 1_000


@dataclass(frozen=True)
class Shown:
    """How a modality or task is to be drawn.

    0..255 of its pictures stand for ``low``..``high``; ``present`` tells which of the samples have it at all.
    """

    form: Form
    low: float
    high: float
    present: tuple[bool, ...]


@dataclass(frozen=True)
class Sampled:
    """Some test samples of one client and task: ``values`` are uint8 (samples, 1 or 3 channels, height, width).

    Their keys are ``target``, ``prediction``, and ``input.<modality>`` of the pictures they were made from.
    """

    task: str
    client: int
    shown: Mapping[str, Shown]
    values: Mapping[str, Tensor]

    @property
    def size(self) -> int:
        """Bytes as they count towards ``MOST_BYTES``."""
        return sum(value.nbytes + OVERHEAD * len(value) for value in self.values.values())

    @property
    def entry(self) -> Mapping[str, Any]:
        """All but the values."""
        return {
            "task": self.task,
            "client": self.client,
            "shown": {name: asdict(how) for name, how in self.shown.items()},
        }

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The values."""
        return self.values


def keep_pictures(
    folder: Path, federation: Federation, trainer: Trainer, parameters_of: Judge, round_number: int
) -> None:
    """Write samples of all generation tasks into a run folder; nothing where there is none.

    This process computes them, whoever trains, so they are the same for any number of workers.
    """
    keep(folder / FILE, CALLED, _sampled(federation, trainer, parameters_of), MOST_BYTES, round_number)


def chosen_cards(federation: Federation) -> Iterator[tuple[Task, Card]]:
    """Yield who is to be shown: for every generation task the first client of each kind, one of each task by turns."""
    tasks = [task for task in federation.tasks.values() if task.kind == "generation" and len(task.shape) == 3]
    found: dict[str, dict[object, Card]] = {task.name: {} for task in tasks}
    for card in federation.cards.values() if tasks else ():
        for name in card.tasks:
            kinds, kind = found.get(name), (card.modalities, card.tasks)
            if kinds is None or len(kinds) >= MOST_CLIENTS or kind in kinds:
                continue
            if bool(federation.client(card.id).test.labelled[name].any()):
                kinds[kind] = card
    for cards in zip_longest(*(kinds.values() for kinds in found.values())):
        yield from ((task, card) for task, card in zip(tasks, cards, strict=True) if card is not None)


def _sampled(federation: Federation, trainer: Trainer, parameters_of: Judge) -> Iterator[Sampled]:
    for task, card in chosen_cards(federation):
        samples = federation.client(card.id).test
        positions = torch.nonzero(samples.labelled[task.name]).flatten()[:MOST_SAMPLES]
        deployed, personal = parameters_of(card.id)
        batch, made = _made(task, card, samples.take(positions), trainer, {**deployed, **personal})
        yield sampled_of(task, card, federation.modalities, batch, made)


@torch.no_grad()
def _made(
    task: Task, card: Card, samples: Samples, trainer: Trainer, parameters: Mapping[str, Tensor]
) -> tuple[Batch, Tensor]:
    """Return the samples as a batch, and what the client's model makes of them."""
    model = judged(trainer, card, parameters)
    ((batch, outputs),) = outputs_of(model, trainer, samples, frozenset(card.modalities))
    return batch.each(torch.Tensor.cpu), outputs.predictions[task.name].float().cpu()


def sampled_of(task: Task, card: Card, modalities: Mapping[str, Modality], batch: Batch, made: Tensor) -> Sampled:
    """Turn targets, what was made, and the inputs that are pictures into pictures of bytes.

    A modality or target stays on its scale if that is [0, 1], and is stretched to its extremes among these samples
    otherwise; what was made is on the scale of the target, cut off at its ends.
    """
    everything = (True,) * len(made)
    target = batch.targets[task.name]
    low, high = scale_of(target)
    shown = {name: Shown(task.form, low, high, everything) for name in ("target", "prediction")}
    values = {"target": as_bytes(target, low, high), "prediction": as_bytes(made, low, high)}
    for name in [name for name in card.modalities if modalities[name].kind in ("image", "audio")][:MOST_INPUTS]:
        form: Form = "audio" if modalities[name].kind == "audio" else "image"
        low, high = scale_of(batch.inputs[name])
        shown[f"input.{name}"] = Shown(form, low, high, tuple(batch.present[name].tolist()))
        values[f"input.{name}"] = as_bytes(batch.inputs[name], low, high)
    return Sampled(task.name, card.id, shown, values)


def scale_of(values: Tensor) -> tuple[float, float]:
    """Return the ends of the scale that values are drawn on."""
    low, high = float(values.min()), float(values.max())
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def as_bytes(values: Tensor, low: float, high: float) -> Tensor:
    """Turn pictures (samples, channels, height, width) into uint8; channels are averaged unless they are three."""
    drawn = values.float() if values.shape[1] == 3 else values.float().mean(1, keepdim=True)
    height, width = (min(side, LARGEST_SIDE) for side in drawn.shape[2:])
    if (height, width) != tuple(drawn.shape[2:]):
        drawn = functional.adaptive_avg_pool2d(drawn, (height, width))
    unit = (drawn - low) / (high - low if high > low else 1.0)
    return unit.clamp(0, 1).mul(255).round().to(torch.uint8).contiguous()
