"""Gradient blending: heads (or clients) weighted by how well they generalise for how much they overfit.

With losses L^T on training data and L^* on held-out data at two checkpoints, G is the drop of L^* and O the growth of
the gap L^* − L^T. Weights proportional to G / O² minimise the overfitting-to-generalisation ratio |O / G| of the blend
(Wang, Tran, Feiszli, CVPR 2020, Proposition 1). The safeguards are ours.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import reduce
from statistics import median
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from polyfed.data.samples import Batch
from polyfed.method.protocol import Groups, Model
from polyfed.model.architecture import Outputs
from polyfed.model.losses import Logged, summed_loss, total_loss

K = TypeVar("K", bound=Hashable)

FUSED = "fused"
"""The head on the fused features; the other heads are named by their modality."""

BLEND = "blend"
"""The group of an objective's extra tensors that holds the weights of the heads, each ()."""

SMALLEST = 1e-6
Negative = Literal["clip", "abs", "allow"]


class Losses(NamedTuple):
    """Mean losses on training and on held-out samples."""

    training: float
    held_out: float

    @property
    def gap(self) -> float:
        """How much worse the held-out samples fare."""
        return self.held_out - self.training


class Change(NamedTuple):
    """G, the drop of the held-out loss, and O, the growth of the gap, between two checkpoints."""

    gain: float
    overfitting: float

    @staticmethod
    def between(before: Losses, after: Losses) -> Change:
        """Return G and O from the earlier checkpoint to the later one."""
        return Change(before.held_out - after.held_out, after.gap - before.gap)

    @property
    def ogr(self) -> float:
        """The overfitting-to-generalisation ratio |O / G|, infinite for G = 0 (CVPR 2020, equation 3)."""
        return abs(self.overfitting / self.gain) if self.gain else math.inf


@dataclass(frozen=True)
class Safeguards:
    """What keeps weights in bounds.

    ``negative``: what becomes of G below 0 (clip: 0; abs: |G|; allow: as it is). |O| counts as at least
    ``floor`` times the median of all |O|, and at least 1e-6. ``floor`` 0 and ``allow`` are the printed formula.
    """

    floor: float = 0.5
    negative: Negative = "clip"

    def counted(self, gain: float) -> float:
        """Return what a gain counts."""
        if self.negative == "clip":
            return max(gain, 0.0)
        return abs(gain) if self.negative == "abs" else gain


def raw_weights(changes: Mapping[K, Change], rules: Safeguards) -> dict[K, float]:
    """Return G / (2 max(|O|, floor)²) of each; nothing for nothing."""
    if not changes:
        return {}
    least = max(SMALLEST, rules.floor * median(abs(change.overfitting) for change in changes.values()))
    counted = {key: max(abs(change.overfitting), least) for key, change in changes.items()}
    # d * d, not d ** 2: a client may report whatever fits into a float, and a power that does not raises
    return {key: rules.counted(change.gain) / (2 * counted[key] * counted[key]) for key, change in changes.items()}


def shares(raw: Mapping[K, float], everybody: list[K]) -> dict[K, float] | None:
    """Return weights that add up to 1; who has no raw weight gets the mean of the others'.

    None if that says nothing: no raw weight at all, or a sum that is not positive and finite.
    """
    if not raw:
        return None
    mean = sum(raw.values()) / len(raw)
    filled = {key: raw.get(key, mean) for key in everybody}
    total = sum(filled.values())
    if not (math.isfinite(total) and total > 0):
        return None
    return {key: value / total for key, value in filled.items()}


def mixed(weights: Mapping[K, float], others: Mapping[K, float], share: float) -> dict[K, float]:
    """Return (1 − share) weights + share others."""
    return {key: (1 - share) * value + share * others[key] for key, value in weights.items()}


def head_weights(heads: list[str], changes: Mapping[str, Change], rules: Safeguards, mix: float) -> dict[str, float]:
    """Return the heads' weights, adding up to 1; heads without a change are given the mean of the others'."""
    equal = dict.fromkeys(heads, 1 / len(heads))
    found = shares(raw_weights({h: changes[h] for h in heads if h in changes}, rules), heads)
    return equal if found is None else mixed(found, equal, mix)


def seen_by(head: str, outputs: Outputs, batch: Batch) -> tuple[Outputs, Batch]:
    """Return what a head predicts, and the batch with those samples labelled that are so and have its modality."""
    if head == FUSED:
        return outputs, batch
    outputs = outputs._replace(predictions=dict(outputs.unimodal[head]))
    if head not in batch.everywhere:
        present = batch.present[head]
        labelled = {task: mask & present for task, mask in batch.labelled.items()}
        batch = batch._replace(labelled=labelled, whole=frozenset())
    return outputs, batch


@dataclass(frozen=True)
class Blended:
    """Σ_h z_h L_h over some heads, with the weights z_h () in ``extra["blend"]``.

    L_h is the sum over the tasks of the head's mean loss on the samples that are labelled and have its modality.
    """

    heads: tuple[str, ...]

    def __call__(self, model: Model, batch: Batch, extra: Groups) -> tuple[Tensor, Logged]:
        """Return the loss () and, to be logged, the losses of the fused head.

        Those of the others are left out: what they say of a client's modalities is not the server's business.
        """
        outputs = model(batch)
        logged: Logged = {}
        parts = []
        for head in self.heads:
            if head == FUSED:
                loss, logged = total_loss(model.tasks, outputs, batch)
            else:
                loss = summed_loss(model.tasks, *seen_by(head, outputs, batch))
            parts.append(extra[BLEND][head] * loss)
        return reduce(torch.add, parts), logged


@dataclass(frozen=True)
class HeadLosses:
    """The losses of some heads, to be measured: those of a modality as "loss.<modality>.<task>"."""

    heads: tuple[str, ...]

    def __call__(self, model: Model, batch: Batch, extra: Groups) -> tuple[Tensor, Logged]:
        """Return zero and the losses of the heads."""
        outputs = model(batch)
        found: Logged = {}
        for head in self.heads:
            _, logged = total_loss(model.tasks, *seen_by(head, outputs, batch))
            found |= {name.replace("loss.", prefix_of(head), 1): value for name, value in logged.items()}
        return torch.zeros((), device=outputs.fused.device), found


def prefix_of(head: str) -> str:
    """Return what the names of a head's losses begin with."""
    return "loss." if head == FUSED else f"loss.{head}."


def loss_of(numbers: Mapping[str, float], head: str, tasks: tuple[str, ...]) -> float | None:
    """Sum a head's measured losses over the tasks; None if no sample counted for any of them."""
    names = [prefix_of(head) + task for task in tasks]
    found = [numbers[name] for name in names if name in numbers]
    return sum(found) if found else None
