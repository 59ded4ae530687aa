"""One-pass reductions of replies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from polyfed.method.protocol import Reply
from polyfed.model.architecture import Tensors
from polyfed.scenario.federation import ClientId

Weigh = Callable[[ClientId, Reply], float]


@dataclass(frozen=True)
class Mean:
    """Weighted means by name, the weight of those who hold each name, and the weight of everybody counted."""

    values: Tensors
    weights: dict[str, float]
    total: float


class MeanOverHolders:
    """Weighted mean of each named tensor over the clients whose reply holds it.

    A running mean, ``mean += (w / W) (x − mean)``: one reply comes back unchanged bit for bit, and so do equal replies,
    which a sum divided at the end does not guarantee. Memory is one model however many clients there are.
    """

    def __init__(self, weigh: Weigh, group: str = "parameters") -> None:
        self._weigh = weigh
        self._group = group
        self._means: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}
        self._total = 0.0
        self._counted: list[ClientId] = []

    @property
    def counted(self) -> tuple[ClientId, ...]:
        """Clients whose replies were added."""
        return tuple(self._counted)

    def add(self, client: ClientId, reply: Reply) -> None:
        """Take one reply in. A reply of weight zero is counted but changes nothing."""
        self._counted.append(client)
        weight = self._weigh(client, reply)
        if weight <= 0:
            return
        self._total += weight
        steps: dict[float, tuple[list[Tensor], list[Tensor]]] = {}
        for name, value in reply.tensors.get(self._group, {}).items():
            if name in self._means:
                self._weights[name] += weight
                means, values = steps.setdefault(weight / self._weights[name], ([], []))
                means.append(self._means[name])
                values.append(value)
            else:
                self._weights[name] = weight
                self._means[name] = value.clone()
        for step, (means, values) in steps.items():
            torch._foreach_lerp_(means, values, step)

    def finish(self) -> Mean:
        """Return the means."""
        return Mean(self._means, self._weights, self._total)


def diluted(mean: Mean, current: Tensors) -> Mean:
    """Count everybody who did not hold a tensor as holding its current value.

    So a component few clients train moves little: the naive average of a union model.
    """
    values = {
        name: torch.lerp(current[name], value, mean.weights[name] / mean.total) for name, value in mean.values.items()
    }
    return Mean(values, dict.fromkeys(values, mean.total), mean.total)
