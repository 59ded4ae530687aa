"""Training one client: optimiser steps on a resident model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polyfed.engine.adaptive import Change
from polyfed.engine.optimizers import Optimizer, clip, optimizer
from polyfed.engine.resident import Resident
from polyfed.method.protocol import Recipe


class Descent:
    """Optimiser steps of one fit.

    A parameter that the first loss does not reach has no gradient and must not move, whatever weight decay or momentum
    say; then every parameter is stepped by itself. Otherwise (the usual case), where an optimiser does more than to
    subtract gradients, all are stepped as flat stretches: few passes over memory however many parameters there are.
    Where a later loss does not reach a parameter, its gradient then counts as zero.
    """

    def __init__(self, model: Resident, moving: list[str], recipe: Recipe, steps: int) -> None:
        self._model = model
        self._steps, self._taken = steps, 0
        self._recipe = recipe
        self._parameters = [model.parameters[name] for name in moving]
        self._names = moving
        self._plain = recipe.optimizer == "sgd" and not recipe.momentum and not recipe.weight_decay
        self._rule: Optimizer | None = None
        self._stretches: list[Tensor] = []
        self._slopes: list[Tensor] = []

    def step(self, loss: Tensor, change: Change | None = None) -> None:
        """Move the parameters by the gradient of a loss; ``change`` may alter the gradients first."""
        found: Sequence[Tensor | None] = torch.autograd.grad(
            loss, self._parameters, allow_unused=True, materialize_grads=False
        )
        if change is not None:
            found = self._changed(found, change)
        if self._rule is None:
            self._rule = self._begin(flat=not self._plain and all(slope is not None for slope in found))
        gradients: Sequence[Tensor | None] = self._flat(found) if self._stretches else found
        if self._recipe.clip_norm is not None:
            gradients = clip(gradients, self._recipe.clip_norm)
        with torch.no_grad():
            self._rule.step(gradients, self._recipe.share_of_lr(self._taken, self._steps))
        self._taken += 1

    def _changed(self, found: Sequence[Tensor | None], change: Change) -> Sequence[Tensor | None]:
        reached = {name: slope for name, slope in zip(self._names, found, strict=True) if slope is not None}
        changed = change(reached)
        return [changed[name] if name in reached else None for name in self._names]

    def _begin(self, *, flat: bool) -> Optimizer:
        if not flat:
            return optimizer(self._recipe, [parameter.data for parameter in self._parameters])
        self._stretches = self._model.segments(self._model.slopes, self._names)
        slopes = self._model.views(self._model.slopes)
        self._slopes = [slopes[name] for name in self._names]
        return optimizer(self._recipe, self._model.segments(self._model.values, self._names))

    def _flat(self, found: Sequence[Tensor | None]) -> list[Tensor]:
        """Gather gradients in the flat buffer."""
        torch._foreach_copy_(
            self._slopes,
            [torch.zeros_like(to) if slope is None else slope for to, slope in zip(self._slopes, found, strict=True)],
        )
        return self._stretches
