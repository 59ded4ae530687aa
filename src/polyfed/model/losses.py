"""Losses of tasks: means over the labelled samples, fit for padding and for ``torch.func.vmap``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from polyfed.data.samples import Batch
from polyfed.data.schema import IGNORED, Task
from polyfed.model.architecture import Outputs
from polyfed.model.masks import keep, masked_mean


class Share(NamedTuple):
    """A sum () over samples and their number (): shares of several batches add up to an exact mean."""

    total: Tensor
    samples: Tensor


Logged = dict[str, Tensor | Share]


def per_sample(values: Tensor) -> Tensor:
    """Mean over all axes but the first: (batch, ...) -> (batch,)."""
    return values.flatten(1).mean(-1) if values.dim() > 1 else values


def sample_losses(task: Task, prediction: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
    """Loss of every sample, (batch,): cross-entropy in nats, or the mean squared error over the target's entries.

    prediction (batch, classes) or (batch, *shape), target (batch,) int64 or (batch, *shape), labelled (batch,) bool.
    Where ``labelled`` is false, prediction and target are taken as zero, whatever they are. Language: the mean
    cross-entropy of a sample's answer tokens.
    """
    if task.kind == "language":
        totals, counts = token_losses(prediction, target, labelled)
        return totals / counts.clamp(min=1)
    prediction, target = keep(prediction, labelled), keep(target, labelled)
    if task.kind == "classification":
        return functional.cross_entropy(prediction, target, reduction="none")
    return per_sample((prediction - target).square())


def token_losses(prediction: Tensor, target: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
    """Return summed cross-entropies in nats of each sample's answer tokens (batch,), and their numbers (batch,).

    prediction (batch, length, vocabulary) are logits of the next token, target (batch, length or more) the tokens,
    ``IGNORED`` where nothing is to be learned. Samples that are not labelled have no tokens.
    """
    wanted = target[:, 1 : prediction.shape[1]].masked_fill(~labelled.unsqueeze(1), IGNORED)
    logits = prediction[:, : wanted.shape[1]].float()
    losses = functional.cross_entropy(logits.transpose(1, 2), wanted, reduction="none", ignore_index=IGNORED)
    return losses.sum(1), (wanted != IGNORED).sum(1)


def token_loss(task: Task, prediction: Tensor, target: Tensor, labelled: Tensor) -> Share:
    """Return the summed cross-entropy of all answer tokens of a batch; shapes as in ``token_losses``.

    With it their number or, as the task's ``reduction`` says, that of the samples which have any.
    """
    totals, counts = token_losses(prediction, target, labelled)
    return Share(totals.sum(), counts.sum() if task.reduction == "token_mean" else (counts > 0).sum())


def task_loss(task: Task, prediction: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
    """Mean loss of the labelled samples (): Σ labelled · loss / max(1, Σ labelled).

    Shapes as in ``sample_losses``. Zero, with a graph, if nobody is labelled. Language: the mean over all tokens of the
    answers or, as the task says, over the samples.
    """
    if task.kind == "language":
        share = token_loss(task, prediction, target, labelled)
        return share.total / share.samples.clamp(min=1)
    return masked_mean(sample_losses(task, prediction, target, labelled), labelled)


def mean_loss(task: Task, prediction: Tensor, target: Tensor) -> Tensor:
    """Mean loss () of samples that are all labelled; what ``task_loss`` gives then, in fewer passes."""
    if task.kind == "language":
        return task_loss(task, prediction, target, torch.ones_like(target[:, 0], dtype=torch.bool))
    if task.kind == "classification":
        return functional.cross_entropy(prediction, target)
    return functional.mse_loss(prediction, target)


def total_loss(tasks: Mapping[str, Task], outputs: Outputs, batch: Batch) -> tuple[Tensor, Logged]:
    """Sum of the losses of the tasks that are both predicted and in the batch.

    Returns the sum () and, to be logged, "loss.<task>" as a share of the labelled samples (language: of the answer
    tokens), cut from the graph.
    """
    losses: list[Tensor] = []
    logged: Logged = {}
    for name in sorted(outputs.predictions.keys() & batch.labelled.keys()):
        labelled, prediction, target = batch.labelled[name], outputs.predictions[name], batch.targets[name]
        count = labelled.sum()
        if tasks[name].kind == "language":
            total, count = token_loss(tasks[name], prediction, target, labelled)
            loss = total / count.clamp(min=1)
        elif name in batch.whole:
            loss = mean_loss(tasks[name], prediction, target)
        else:
            values = sample_losses(tasks[name], prediction, target, labelled)
            loss = keep(values, labelled).sum() / count.clamp(min=1)
        losses.append(loss)
        logged[f"loss.{name}"] = Share(loss.detach() * count, count)
    return added(losses, outputs), logged


def summed_loss(tasks: Mapping[str, Task], outputs: Outputs, batch: Batch) -> Tensor:
    """Sum of the losses of the tasks (); what ``total_loss`` gives beside what is logged, in fewer passes."""
    losses = [
        mean_loss(tasks[name], outputs.predictions[name], batch.targets[name])
        if name in batch.whole
        else task_loss(tasks[name], outputs.predictions[name], batch.targets[name], batch.labelled[name])
        for name in sorted(outputs.predictions.keys() & batch.labelled.keys())
    ]
    return added(losses, outputs)


def added(losses: list[Tensor], outputs: Outputs) -> Tensor:
    """Add losses up; without any, the fused vector's empty sum keeps a graph."""
    return reduce(torch.add, losses) if losses else outputs.fused.flatten()[:0].sum()
