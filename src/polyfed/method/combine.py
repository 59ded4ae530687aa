"""One-pass reductions of replies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from polyfed.method.protocol import Clock, Note, Reducer, Reply
from polyfed.model.architecture import Tensors
from polyfed.scenario.federation import ClientId

Weigh = Callable[[ClientId, Reply], float]
"""The weight of a client's reply: by examples, mostly."""


@dataclass(frozen=True)
class Mean:
    """Weighted means by name, the weight of those who hold each name, and the weight of everybody counted."""

    values: Tensors
    weights: dict[str, float]
    total: float
    note: Note | None = None


Combine = Callable[[Weigh, Tensors, Clock], Reducer[Mean]]
"""Makes the reducer of a round, given the clients' weights, the server's parameters and the clock."""


WAITING = 32
WAITING_BYTES = 2**20


class MeanOverHolders:
    """Weighted mean of each named tensor over the clients whose reply holds it.

    A running mean, ``mean += Σ w (x − mean) / W``: one reply comes back unchanged bit for bit, and so do equal replies,
    which a sum divided at the end does not guarantee. Small replies wait until there are some to be taken in at once;
    memory is one model, and at most a mebibyte of replies, however many clients there are.
    """

    def __init__(self, weigh: Weigh, group: str = "parameters") -> None:
        self._weigh = weigh
        self._group = group
        self._means: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}
        self._total = 0.0
        self._counted: list[ClientId] = []
        self._waiting: list[tuple[float, Tensors]] = []
        self._waiting_bytes = 0

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
        tensors = reply.tensors.get(self._group, {})
        self._waiting.append((weight, tensors))
        self._waiting_bytes += sum(value.nbytes for value in tensors.values())
        if len(self._waiting) >= WAITING or self._waiting_bytes > WAITING_BYTES:
            self._take_in()

    def finish(self) -> Mean:
        """Return the means."""
        self._take_in()
        return Mean(self._means, self._weights, self._total)

    def _take_in(self) -> None:
        """Take in the replies that wait."""
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        if len(waiting) == 1:
            self._take_one(*waiting[0])
            return
        held: dict[str, tuple[list[float], list[Tensor]]] = {}
        for weight, tensors in waiting:
            for name, value in tensors.items():
                weights, values = held.setdefault(name, ([], []))
                weights.append(weight)
                values.append(value)
        for name, (weights, values) in held.items():
            self._take_many(name, weights, values)

    def _take_one(self, weight: float, tensors: Tensors) -> None:
        """Take in one reply in a single pass over memory."""
        steps: dict[float, tuple[list[Tensor], list[Tensor]]] = {}
        for name, value in tensors.items():
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

    def _take_many(self, name: str, weights: list[float], values: list[Tensor]) -> None:
        """Take in one tensor of several replies."""
        if name not in self._means:
            self._means[name] = values[0].clone()
            self._weights[name] = 0.0
        mean = self._means[name]
        self._weights[name] += sum(weights)
        shares = torch.tensor([weight / self._weights[name] for weight in weights], dtype=mean.dtype)
        changes = torch.stack(values).sub_(mean).reshape(len(values), mean.numel())
        mean += torch.mv(changes.t(), shares).view(mean.shape)


def mean_over_holders(weigh: Weigh, current: Tensors, clock: Clock) -> Reducer[Mean]:
    """Average each tensor over the clients that hold it."""
    return MeanOverHolders(weigh)


def diluted(mean: Mean, current: Tensors) -> Mean:
    """Count everybody who did not hold a tensor as holding its current value.

    So a component few clients train moves little: the naive average of a union model.
    """
    values = {
        name: torch.lerp(current[name], value, mean.weights[name] / mean.total) for name, value in mean.values.items()
    }
    return Mean(values, dict.fromkeys(values, mean.total), mean.total, mean.note)
