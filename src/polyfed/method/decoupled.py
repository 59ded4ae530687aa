"""Gradients of the supervised and of the enhancement loss, apart from each other, for BMSFed's selection.

The slides of Fan et al. (ECCV 2024) compare clients by these; their code compares updates, which costs nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from polyfed.data.samples import Batch
from polyfed.data.schema import Task
from polyfed.method.balance import portrait
from polyfed.method.enhancement import PROTOTYPES, modality_losses
from polyfed.method.objective import supervised
from polyfed.method.protocol import Expects, Gradient, Groups, Model, Objective, Request, expected, gradient
from polyfed.method.training import Local, Trained, Training
from polyfed.model.architecture import Tensors
from polyfed.model.losses import Logged, added

SUPERVISED_GRADIENT, ENHANCEMENT_GRADIENT = "supervised_gradient", "enhancement_gradient"
"""The groups of a reply that hold gradients of the encoders in use, by parameter name."""


def enhancement(model: Model, batch: Batch, extra: Groups) -> tuple[Tensor, Logged]:
    """Return the sum over modalities and classification tasks of the enhancement loss, (), and nothing to log."""
    outputs = model(batch)
    losses = [
        loss
        for task in sorted(outputs.predictions.keys() & batch.labelled.keys())
        if model.tasks[task].kind == "classification" and outputs.features
        for loss in modality_losses(outputs, batch, task, extra[PROTOTYPES])[0].values()
    ]
    return added(losses, outputs), {}


def of_encoders(parameters: Tensors, active: frozenset[str]) -> dict[str, Tensor]:
    """Return the parameters of the encoders of these modalities."""
    return {name: value for name, value in parameters.items() if name.startswith("encoder.") and owner(name) in active}


def owner(parameter: str) -> str:
    """Return the modality of an encoder's parameter."""
    return parameter.split(".")[1]


def expected_gradients(parameters: Tensors, active: frozenset[str]) -> Expects:
    """Return what a reply with gradients holds: two groups like the encoders in use."""
    encoders = of_encoders(parameters, active)
    return expected({SUPERVISED_GRADIENT: encoders, ENHANCEMENT_GRADIENT: encoders})


@dataclass(frozen=True)
class Decoupled:
    """Local training whose reply also holds two gradients at the received model: as much again as the encoders, twice.

    That of the supervised loss, and that of the enhancement loss of every modality in use, which reaches its own
    encoder alone. It is given with weight 1, whoever is behind: a factor that all clients share does not change which
    ones are chosen. Prototypes are the global ones if the client was sent any, else its own.
    """

    local: Local
    tasks: Mapping[str, Task]

    def __call__(self, training: Training) -> Generator[Request, Any, Trained]:
        """Compute the gradients, then train."""
        prototypes = training.groups.get(PROTOTYPES)
        if prototypes is None:
            own = yield from portrait(training, self.tasks, training.start, training.active)
            prototypes = own.means
        one = yield from self._gradient(training, supervised, {})
        other = yield from self._gradient(training, enhancement, {PROTOTYPES: prototypes})
        trained = yield from self.local(training)
        return replace(trained, groups={**trained.groups, SUPERVISED_GRADIENT: one, ENHANCEMENT_GRADIENT: other})

    def _gradient(
        self, training: Training, objective: Objective, extra: Groups
    ) -> Generator[Request, Any, dict[str, Tensor]]:
        """Return the gradient of the encoders; zero where the loss does not reach, or without samples."""
        found = yield from gradient(Gradient(objective, training.start, training.data, training.active, extra))
        encoders = of_encoders(training.received, training.active)
        return {name: found.get(name, torch.zeros_like(value)) for name, value in encoders.items()}
