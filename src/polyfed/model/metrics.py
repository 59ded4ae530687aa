"""Metrics that add up over batches.

``total = add_sums(total, metric_sums(...))`` for every batch, then ``finish(total)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from polyfed.data.schema import Task
from polyfed.model.image_quality import fits_window, in_range, peak_signal_to_noise, structural_similarity
from polyfed.model.losses import per_sample, sample_losses
from polyfed.model.tallies import Correlation, Mean, Tally

LARGEST = {"cider": 1000.0}
"""The best value of metrics that tasks are judged by, where it is not 1 (accuracy) or 0 (errors)."""

Sums = dict[str, Tally]
"""Metric -> what is known of it so far."""


def primary(task: Task) -> tuple[str, bool]:
    """Return the metric a task is judged by, and whether higher is better."""
    if task.kind == "language":
        return ("cider", True) if task.metric == "caption" else ("accuracy", True)
    return ("accuracy", True) if task.kind == "classification" else ("mse", False)


@torch.no_grad()
def metric_sums(task: Task, prediction: Tensor, target: Tensor, labelled: Tensor) -> Sums:
    """Take the metrics of the labelled samples of a batch; shapes as in ``losses.sample_losses``.

    classification: ``accuracy`` and ``loss`` (cross-entropy in nats). Language: ``loss``, of the answer's tokens; what
    the texts themselves are judged by is in ``text_metrics``. Regression and generation: ``mae`` and ``mse``,
    each the mean over a target's entries. Regression also: ``pearson``, the mean over the entries of their correlation.
    Generation also: ``psnr`` (dB) and, for pictures and spectrograms of at least 11 x 11 pixels, ``ssim``, both of the
    prediction clipped to [0, 1]; without a result if a target leaves that range.
    """
    # Taken out first: what the others hold, be it NaN, then cannot matter.
    prediction, target, labelled = prediction[labelled], target[labelled], labelled[labelled]
    losses = sample_losses(task, prediction, target, labelled)
    if task.kind == "language":
        return {"loss": Mean.of(losses)}
    if task.kind == "classification":
        return {"accuracy": Mean.of(prediction.argmax(-1) == target), "loss": Mean.of(losses)}
    sums: Sums = {"mae": Mean.of(per_sample((prediction - target).abs())), "mse": Mean.of(losses)}
    if task.kind == "regression":
        return {**sums, "pearson": Correlation.of(prediction, target)}
    return {**sums, **_quality(task, prediction, target)}


def _quality(task: Task, prediction: Tensor, target: Tensor) -> dict[str, Mean]:
    if not len(target):
        return {}
    values = {"psnr": peak_signal_to_noise(prediction, target)}
    if fits_window(task.shape):
        values["ssim"] = structural_similarity(prediction, target)
    outside = float((~in_range(target)).sum())
    return {name: replace(Mean.of(value), undefined=outside) for name, value in values.items()}


def add_sums(total: Mapping[str, Tally], more: Mapping[str, Tally]) -> Sums:
    """Add two results of ``metric_sums``; a metric in only one of them is taken as it is."""
    both = {name: total[name] + more[name] for name in total.keys() & more.keys()}
    return {**total, **more, **both}


def finish(total: Mapping[str, Tally]) -> dict[str, float]:
    """Return the metrics; one that is not defined, such as that of no sample, is left out."""
    return {name: value for name, tally in total.items() if (value := tally.result()) is not None}
