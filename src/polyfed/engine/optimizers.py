"""Local optimisers on lists of tensors.

The update rules are those of torch.optim (SGD with heavy-ball momentum, Adam, AdamW). They are written out because
the first torch.optim object of a process costs more than a second and a fit needs a new optimiser each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from polyfed.errors import unknown
from polyfed.method.protocol import Recipe

OPTIMIZERS = ("sgd", "adam", "adamw")


class Optimizer(Protocol):
    """Moves parameters in place by their gradients. A parameter whose gradient is None does not move."""

    def step(self, gradients: Sequence[Tensor | None], share: float = 1.0) -> None:
        """Take one step with this share of the learning rate; gradients come in the order of the parameters."""
        ...

    def narrow(self, count: int) -> None:
        """Go on with the first ``count`` rows of every parameter: of stacked clients, those with steps left."""
        ...


def optimizer(recipe: Recipe, parameters: Sequence[Tensor]) -> Optimizer:
    """Return a fresh optimiser for these parameters."""
    if recipe.optimizer == "sgd":
        return SGD(recipe, parameters)
    if recipe.optimizer in OPTIMIZERS:
        return Adam(recipe, parameters)
    raise unknown("optimizer", recipe.optimizer, OPTIMIZERS)


class SGD:
    """g += weight_decay w;  u = momentum u + g;  w −= lr u."""

    def __init__(self, recipe: Recipe, parameters: Sequence[Tensor]) -> None:
        self._recipe = recipe
        self._parameters = parameters
        self._momentum: dict[int, Tensor] = {}

    def step(self, gradients: Sequence[Tensor | None], share: float = 1.0) -> None:
        """Take one step."""
        recipe = self._recipe
        places, moving, slopes = with_gradient(self._parameters, gradients)
        if not places:
            return
        if recipe.weight_decay:
            slopes = list(torch._foreach_add(slopes, moving, alpha=recipe.weight_decay))
        if recipe.momentum:
            slopes = [self._remember(place, slope) for place, slope in zip(places, slopes, strict=True)]
        torch._foreach_add_(moving, slopes, alpha=-recipe.lr * share)

    def narrow(self, count: int) -> None:
        """Go on with the first rows."""
        self._parameters = [parameter[:count] for parameter in self._parameters]
        self._momentum = {place: held[:count] for place, held in self._momentum.items()}

    def _remember(self, place: int, slope: Tensor) -> Tensor:
        held = self._momentum.get(place)
        if held is None:
            held = self._momentum[place] = slope.clone()
            return held
        return held.mul_(self._recipe.momentum).add_(slope)


class Adam:
    """Adam (Kingma and Ba, 2015) with bias correction; ``adamw`` decays weights apart from the gradient."""

    beta1, beta2, epsilon = 0.9, 0.999, 1e-8

    def __init__(self, recipe: Recipe, parameters: Sequence[Tensor]) -> None:
        self._recipe = recipe
        self._parameters = parameters
        self._moments: dict[int, tuple[Tensor, Tensor]] = {}
        self._steps: dict[int, int] = {}

    def step(self, gradients: Sequence[Tensor | None], share: float = 1.0) -> None:
        """Take one step."""
        for place, parameter, slope in zip(*with_gradient(self._parameters, gradients), strict=True):
            self._move(place, parameter, slope, self._recipe.lr * share)

    def narrow(self, count: int) -> None:
        """Go on with the first rows."""
        self._parameters = [parameter[:count] for parameter in self._parameters]
        self._moments = {place: (one[:count], other[:count]) for place, (one, other) in self._moments.items()}

    def _move(self, place: int, parameter: Tensor, slope: Tensor, lr: float) -> None:
        recipe = self._recipe
        if recipe.weight_decay and recipe.optimizer == "adamw":
            parameter.mul_(1 - lr * recipe.weight_decay)
        elif recipe.weight_decay:
            slope = slope.add(parameter, alpha=recipe.weight_decay)
        if place not in self._moments:
            self._moments[place] = (torch.zeros_like(parameter), torch.zeros_like(parameter))
        first, second = self._moments[place]
        count = self._steps[place] = self._steps.get(place, 0) + 1
        first.lerp_(slope, 1 - self.beta1)
        second.mul_(self.beta2).addcmul_(slope, slope, value=1 - self.beta2)
        scale = second.sqrt().div_((1 - self.beta2**count) ** 0.5).add_(self.epsilon)
        parameter.addcdiv_(first, scale, value=-lr / (1 - self.beta1**count))


def with_gradient(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]
) -> tuple[list[int], list[Tensor], list[Tensor]]:
    """Return places, parameters and gradients of those parameters that have a gradient."""
    places, moving, slopes = [], [], []
    for place, (parameter, slope) in enumerate(zip(parameters, gradients, strict=True)):
        if slope is not None:
            places.append(place)
            moving.append(parameter)
            slopes.append(slope)
    return places, moving, slopes


def clip(gradients: Sequence[Tensor | None], norm: float) -> list[Tensor | None]:
    """Return gradients scaled so that their joint Euclidean norm is at most ``norm``.

    They are not scaled in place: autograd may give two parameters one and the same tensor.
    """
    present = [slope for slope in gradients if slope is not None]
    if not present:
        return list(gradients)
    total = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(present)))
    scaled = iter(torch._foreach_mul(present, (norm / (total + 1e-6)).clamp(max=1.0)))
    return [None if slope is None else next(scaled) for slope in gradients]


def clip_rows(gradients: Sequence[Tensor | None], norm: float) -> list[Tensor | None]:
    """Return stacked gradients (clients, *shape), each client's scaled to a joint norm of at most ``norm``."""
    present = [slope for slope in gradients if slope is not None]
    if not present:
        return list(gradients)
    norms = torch.stack([torch.linalg.vector_norm(slope.reshape(len(slope), -1), dim=1) for slope in present])
    scale = (norm / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
    return [None if slope is None else slope * scale.view(-1, *[1] * (slope.dim() - 1)) for slope in gradients]
