"""Objectives step by step: plain ones, and those that remember something or change gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from polyfed.data.samples import Batch
from polyfed.method.protocol import Adaptive, Fit, Groups, Model, Objective
from polyfed.model.architecture import Tensors
from polyfed.model.losses import Logged
from polyfed.rng import Key, torch_generator

Change = Callable[[Tensors], Tensors]
"""Changes gradients by parameter name; those that the loss does not reach are missing."""


@dataclass
class Plain:
    """An objective that holds no state."""

    objective: Objective
    memory: Tensors = field(default_factory=dict)

    def __call__(self, model: Model, batch: Batch, extra: Groups) -> tuple[Tensor, Logged, Change | None]:
        """Return the loss (), what is logged, and what changes the gradients: nothing."""
        return (*self.objective(model, batch, extra), None)


@dataclass
class Remembering:
    """An objective whose memory of one step goes into the next."""

    objective: Adaptive
    memory: Tensors
    generator: torch.Generator

    def __call__(self, model: Model, batch: Batch, extra: Groups) -> tuple[Tensor, Logged, Change | None]:
        """Return the loss (), what is logged, and what changes the gradients."""
        loss, logged, memory = self.objective.loss(model, batch, extra, self.memory)
        self.memory = {name: value.detach() for name, value in memory.items()}
        return loss, logged, partial(self.objective.gradients, memory=self.memory, generator=self.generator)


def stepwise(request: Fit, key: tuple[Key, ...], device: torch.device) -> Plain | Remembering:
    """Return what computes the losses of a fit, step by step."""
    if isinstance(request.objective, Adaptive):
        memory = {name: value.to(device) for name, value in request.memory.items()}
        return Remembering(request.objective, memory, torch_generator(*key, "gradients"))
    return Plain(request.objective)
