"""Training one client: optimiser steps on a resident model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polyfed.engine.optimizers import Optimizer, clip, optimizer
from polyfed.engine.resident import Resident
from polyfed.method.protocol import Recipe


class Descent:
    """Optimiser steps of one fit.

    A parameter that the first loss does not reach has no gradient and must not move, whatever weight decay or momentum
    say; then every parameter is stepped by itself. Otherwise (the usual case) all are stepped as flat stretches, and
    where a later loss does not reach a parameter its gradient counts as zero.
    """

    def __init__(self, model: Resident, moving: list[str], recipe: Recipe) -> None:
        self._model = model
        self._recipe = recipe
        self._parameters = [model.parameters[name] for name in moving]
        self._names = moving
        self._slopes: list[Tensor] | None = None
        self._rule: Optimizer | None = None

    def step(self, loss: Tensor) -> None:
        """Move the parameters by the gradient of a loss."""
        gradients = self._gradients(loss)
        assert self._rule is not None
        if self._recipe.clip_norm is not None:
            clip(gradients, self._recipe.clip_norm)
        with torch.no_grad():
            self._rule.step(gradients)

    def _gradients(self, loss: Tensor) -> Sequence[Tensor | None]:
        if self._slopes is not None:
            for slope in self._slopes:
                slope.zero_()
            loss.backward()  # type: ignore[no-untyped-call]
            return self._slopes
        found = torch.autograd.grad(loss, self._parameters, allow_unused=True, materialize_grads=False)
        if self._rule is None:
            self._begin(found)
        if self._slopes is not None:
            return self._slopes
        # autograd may give two parameters one and the same tensor, and clipping scales in place
        return [None if slope is None else slope.clone() for slope in found]

    def _begin(self, found: Sequence[Tensor | None]) -> None:
        if any(slope is None for slope in found):
            self._rule = optimizer(self._recipe, [parameter.data for parameter in self._parameters])
            return
        self._slopes = self._model.segments(self._model.slopes, self._names)
        self._rule = optimizer(self._recipe, self._model.segments(self._model.values, self._names))
        for parameter, slope in zip(self._parameters, found, strict=True):
            assert parameter.grad is not None and slope is not None
            parameter.grad.copy_(slope)
