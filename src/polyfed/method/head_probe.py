"""What a client measures its heads on, and what it remembers of that."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from polyfed.data.samples import Samples
from polyfed.errors import UserError
from polyfed.method.blending import FUSED, Change, HeadLosses, Losses, loss_of
from polyfed.method.protocol import Measure, Request, measure
from polyfed.method.training import Training
from polyfed.model.architecture import Tensors
from polyfed.rng import torch_generator

Kept = TypeVar("Kept", Change, Losses)

MEMORY = "blending"
"""The personal group of what was measured at the last participation."""


@dataclass(frozen=True)
class Probe:
    """The samples on which a client measures its heads, the same every round.

    ``held_out`` are its validation samples; ``training`` is a fixed random part of its training samples, as many as
    are held out, at least ``training_probe`` if it has them: both checkpoints of a pair see the same samples.
    """

    heads: tuple[str, ...]
    tasks: tuple[str, ...]
    training: Samples
    held_out: Samples
    source: Training

    @staticmethod
    def of(training: Training, heads: tuple[str, ...], least: int) -> Probe:
        """Choose the samples of a client."""
        held_out = training.client.validation.holding(training.active)
        size = min(len(training.data), max(len(held_out), least))
        generator = torch_generator(training.clock.seed, training.client.card.id, "training probe")
        chosen = torch.randperm(len(training.data), generator=generator)[:size].sort().values
        data = training.data.take(chosen)
        return Probe(heads, training.client.card.tasks, data, held_out, training)

    def losses(self, parameters: Tensors) -> Generator[Request, Any, dict[str, Losses]]:
        """Measure the heads; one that has no sample to be measured on is left out."""
        if not (len(self.training) and len(self.held_out)):
            return {}
        objective, active = HeadLosses(self.heads), self.source.active
        seen = yield from measure(Measure(objective, parameters, self.training, active))
        unseen = yield from measure(Measure(objective, parameters, self.held_out, active))
        both = seen.keys() & unseen.keys()  # a task that either side lacks does not count on the other
        found = {}
        for head in self.heads:
            sides = [
                loss_of({name: side[name] for name in side if name in both}, head, self.tasks)
                for side in (seen, unseen)
            ]
            if sides[0] is not None and sides[1] is not None:
                found[head] = Losses(sides[0], sides[1])
        return found

    def remembered(self, kind: type[Kept]) -> dict[str, Kept]:
        """Return what of this kind was measured of the heads at the last participation."""
        held = self.source.personal.get(MEMORY, {})
        found: dict[str, Kept] = {}
        for head in self.heads:
            names = [f"{field_name}.{head}" for field_name in kind._fields]
            if all(name in held for name in names):
                found[head] = kind(*(held[name].item() for name in names))
        return found


def heads_of(training: Training) -> tuple[str, ...]:
    """Name the heads of a client: its modalities in use, and the fused one. Raises UserError if it has none."""
    card = training.client.card
    if FUSED in training.active:
        raise UserError(f"fedhgb: a modality is named {FUSED!r}, which here names the head on all; rename the modality")
    heads = sorted(m for m in training.active if any(name.startswith(f"unimodal.{m}.") for name in card.components))
    if training.active and not heads:
        raise UserError(
            f"fedhgb: the model of {card.name} has no heads on single modalities; set model.unimodal_heads: true"
        )
    return (*heads, FUSED)


def between(before: Mapping[str, Losses], after: Mapping[str, Losses]) -> dict[str, Change]:
    """Return G and O of the heads that were measured both times."""
    return {head: Change.between(losses, after[head]) for head, losses in before.items() if head in after}


def counted(samples: Samples, head: str) -> Samples:
    """Return the samples that count for a head: those that have its modality, for the fused one all."""
    return samples if head == FUSED else samples.holding([head])


def remember(head: str, held: Change | Losses) -> dict[str, Tensor]:
    """Return tensors () that hold a head's change or losses."""
    return {f"{name}.{head}": torch.tensor(value, dtype=torch.float64) for name, value in held._asdict().items()}
