"""Training many clients in one pass: their parameters stacked, their model mapped over the stack.

Gradients of the sum of the clients' losses are each client's own, since no client's loss depends on another's
parameters. Results agree with training one by one up to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from polyfed.data.samples import Batch
from polyfed.data.schema import Task
from polyfed.engine.logged import StackedMeans
from polyfed.engine.minibatches import StackedBatches
from polyfed.engine.optimizers import clip_rows, optimizer
from polyfed.engine.resident import Resident
from polyfed.method.protocol import Fit, Fitted, Groups, Objective, Recipe
from polyfed.model.architecture import Outputs, Tensors
from polyfed.model.losses import Logged

SHARED, STACKED = None, 0  # where vmap finds the clients: nowhere (all have one tensor in common), or on axis 0
STACKED_BATCH = Batch._make((STACKED, STACKED, STACKED, STACKED, SHARED, SHARED))  # of a batch, in place of tensors


class Bound:
    """A model as an objective sees it, with given parameters in place of its own."""

    def __init__(self, model: Resident, parameters: Tensors) -> None:
        self._module = model.module
        self.parameters = parameters
        self.tasks: Mapping[str, Task] = model.tasks

    def __call__(self, batch: Batch) -> Outputs:
        """Compute features and predictions."""
        outputs: Outputs = functional_call(self._module, dict(self.parameters), (batch,))
        return outputs


class Mapped:
    """An objective mapped over a stack of clients."""

    def __init__(self, model: Resident, objective: Objective, fixed: Tensors, extra: Groups, axes: Any) -> None:
        self._model, self._objective = model, objective
        self._fixed, self._extra = fixed, extra
        self._axes = axes

    def __call__(self, moving: dict[str, Tensor], batch: Batch, count: int) -> tuple[Tensor, Logged]:
        """Return the losses (clients,) and what each client logs, of the first ``count`` clients."""
        fixed = first(self._fixed, self._axes["fixed"], count)
        extra = {group: first(held, self._axes["extra"][group], count) for group, held in self._extra.items()}
        axes = (STACKED, self._axes["fixed"], STACKED_BATCH, self._axes["extra"])
        found: tuple[Tensor, Logged] = vmap(self._one, axes)(moving, fixed, batch, extra)
        return found

    def _one(self, moving: Tensors, fixed: Tensors, batch: Batch, extra: Groups) -> tuple[Tensor, Logged]:
        return self._objective(Bound(self._model, {**fixed, **moving}), batch, extra)


def first(tensors: Tensors, axes: Mapping[str, int | None], count: int) -> dict[str, Tensor]:
    """Return the first clients' share of stacked tensors; what is shared stays as it is."""
    return {name: value if axes[name] is SHARED else value[:count] for name, value in tensors.items()}


def stacked(held: Sequence[Tensors], device: torch.device) -> tuple[dict[str, Tensor], dict[str, int | None]]:
    """Stack tensors by name, and tell on which axis the clients are; one tensor that all share is not repeated."""
    tensors: dict[str, Tensor] = {}
    axes: dict[str, int | None] = {}
    for name, value in held[0].items():
        shared = all(other[name] is value for other in held)
        tensors[name] = (value if shared else torch.stack([other[name] for other in held])).to(device)
        axes[name] = SHARED if shared else STACKED
    return tensors, axes


def repeated(held: Sequence[Tensors], names: Sequence[str], device: torch.device) -> dict[str, Tensor]:
    """Return copies of the named tensors of every client, (clients, *shape), to be trained."""
    values, axes = stacked([{name: tensors[name] for name in names} for tensors in held], device)
    # repeat copies even for one client, where expand and contiguous would give back the start itself
    return {
        name: value.repeat(len(held), *[1] * value.dim()) if axes[name] is SHARED else value
        for name, value in values.items()
    }


def fit_stacked(
    model: Resident, moving: Sequence[str], requests: Sequence[Fit], data: StackedBatches, device: torch.device
) -> list[Fitted]:
    """Train clients that share objective, recipe and parameter names; they come with the most steps first."""
    values = repeated([request.start for request in requests], moving, device)
    fixed, fixed_axes = stacked(
        [{name: request.start[name] for name in model.parameters if name not in values} for request in requests], device
    )
    extra, extra_axes = {}, {}
    for group in requests[0].extra:
        extra[group], extra_axes[group] = stacked([request.extra[group] for request in requests], device)
    axes = {"fixed": fixed_axes, "extra": extra_axes}
    mapped = Mapped(model, requests[0].objective, fixed, extra, axes)
    descent = StackedDescent(list(values.values()), requests[0].recipe, data.steps[0])
    logged = StackedMeans(len(requests))
    for step in data:
        losses, scalars = descent.step(mapped, list(values), step.batch.to(device))
        logged.add({"loss": losses, **scalars}, step.sizes.to(device))
    return unstacked(requests, values, data.steps, logged.means())


class StackedDescent:
    """Optimiser steps of a stack of fits, with the rules of ``Descent`` for parameters that a loss does not reach."""

    def __init__(self, values: list[Tensor], recipe: Recipe, steps: int) -> None:
        self._steps, self._taken = steps, 0
        self._values = values
        self._recipe = recipe
        self._rule = optimizer(recipe, values)
        self._count = len(values[0])
        self._all_reached: bool | None = None

    def step(self, mapped: Mapped, names: list[str], batch: Batch) -> tuple[Tensor, Logged]:
        """Move the parameters of the clients in the batch; return their losses (clients,) and what they log."""
        count = len(next(iter([*batch.labelled.values(), *batch.present.values()])))
        if count < self._count:
            self._count = count
            self._values = [value[:count] for value in self._values]
            self._rule.narrow(count)
        leaves = [value.detach().requires_grad_() for value in self._values]
        losses, logged = mapped(dict(zip(names, leaves, strict=True)), batch, count)
        gradients = self._complete(torch.autograd.grad(losses.sum(), leaves, allow_unused=True))
        if self._recipe.clip_norm is not None:
            gradients = clip_rows(gradients, self._recipe.clip_norm)
        with torch.no_grad():
            self._rule.step(gradients, self._recipe.share_of_lr(self._taken, self._steps))
        self._taken += 1
        return losses.detach(), logged

    def _complete(self, found: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        if self._all_reached is None:
            self._all_reached = all(slope is not None for slope in found)
        if not self._all_reached:
            return found
        return [
            torch.zeros_like(value) if slope is None else slope
            for value, slope in zip(self._values, found, strict=True)
        ]


def unstacked(
    requests: Sequence[Fit], values: Mapping[str, Tensor], steps: Sequence[int], numbers: Sequence[Mapping[str, float]]
) -> list[Fitted]:
    """Give each client its row; names that did not move keep the value they came with."""
    rows = zip(*(value.to("cpu").unbind() for value in values.values()), strict=True)
    return [
        Fitted({**request.start, **dict(zip(values, row, strict=True))}, taken, logged)
        for request, row, taken, logged in zip(requests, rows, steps, numbers, strict=True)
    ]
