"""Metrics that add up over batches: a sum and a count for each, divided at the end.

``total = add_sums(total, metric_sums(...))`` for every batch, then ``finish(total)``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from polyfed.data.schema import Task
from polyfed.model.losses import per_sample, sample_losses
from polyfed.model.masks import keep

Sums = dict[str, tuple[float, float]]
"""Metric -> sum over samples, number of samples."""


def primary(task: Task) -> tuple[str, bool]:
    """Return the metric a task is judged by, and whether higher is better."""
    return ("accuracy", True) if task.kind == "classification" else ("mse", False)


@torch.no_grad()
def metric_sums(task: Task, prediction: Tensor, target: Tensor, labelled: Tensor) -> Sums:
    """Sum and count over the labelled samples of a batch; shapes as in ``losses.sample_losses``.

    classification: ``accuracy`` and ``loss`` (cross-entropy in nats); regression and generation: ``mae`` and ``mse``,
    each the mean over a target's entries.
    """
    losses = sample_losses(task, prediction, target, labelled)
    if task.kind == "classification":
        values = {"accuracy": (prediction.argmax(-1) == target).double(), "loss": losses}
    else:
        values = {"mae": per_sample((prediction - target).abs()), "mse": losses}
    count = float(labelled.sum())
    # Summed in double precision: the result then hardly depends on how samples are cut into batches.
    return {name: (float(keep(value.double(), labelled).sum()), count) for name, value in values.items()}


def add_sums(total: Mapping[str, tuple[float, float]], more: Mapping[str, tuple[float, float]]) -> Sums:
    """Add two results of ``metric_sums``; a metric in only one of them is taken as it is."""
    nothing = (0.0, 0.0)
    pairs = {name: (total.get(name, nothing), more.get(name, nothing)) for name in [*total, *more]}
    return {name: (one[0] + other[0], one[1] + other[1]) for name, (one, other) in pairs.items()}


def finish(total: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Divide sums by counts; a metric without any labelled sample has no value and is left out."""
    return {name: amount / count for name, (amount, count) in total.items() if count > 0}
