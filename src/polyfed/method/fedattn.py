"""FedAttn: layers are averaged with attention weights from their distance to the server's (Ji et al., IJCNN 2019)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from polyfed.method.averaging import Averaging, Context
from polyfed.method.classic import MissingRule, NonNegative
from polyfed.method.combine import Mean, Weigh
from polyfed.method.protocol import Clock, Note, Reducer, Reply
from polyfed.model.architecture import Tensors
from polyfed.scenario.federation import ClientId

Norm = Literal["frobenius", "spectral"]
Granularity = Literal["tensor", "module"]


@dataclass(frozen=True)
class Attentive:
    """How FedAttn moves: step size, norm of the distances, what counts as a layer, noise on the result."""

    epsilon: float = 1.2
    norm: Norm = "frobenius"
    granularity: Granularity = "tensor"
    noise: float = 0.0

    def __call__(self, weigh: Weigh, current: Tensors, clock: Clock) -> Reducer[Mean]:
        """Make the reducer of a round."""
        return AttentiveMean(self, weigh, current, clock)

    def layer(self, name: str) -> str:
        """Return the layer of a tensor: itself, or the module that its name begins with."""
        return name if self.granularity == "tensor" else name.rpartition(".")[0]

    def distance(self, change: Tensor) -> float:
        """Return the norm of a change; the spectral one of a matrix is its largest singular value."""
        if self.norm == "spectral" and change.dim() == 2:
            return float(torch.linalg.matrix_norm(change, 2))
        return float(torch.linalg.vector_norm(change))


def attention(distances: Sequence[float]) -> list[float]:
    """Return the softmax of distances: the farther a client went, the more it counts."""
    return torch.softmax(torch.tensor(distances, dtype=torch.float64), 0).tolist()


class AttentiveMean:
    """w − ε Σ_k α_k (w − x_k) for each layer, α the softmax over its holders of ‖w − x_k‖.

    Samples are not counted; a client without any is left out. It keeps all replies until the round is over, for the
    weights of the first depend on the last.
    """

    def __init__(self, rule: Attentive, weigh: Weigh, current: Tensors, clock: Clock) -> None:
        self._rule, self._weigh, self._current, self._clock = rule, weigh, current, clock
        self._counted: list[ClientId] = []
        self._held: dict[ClientId, Tensors] = {}

    @property
    def counted(self) -> tuple[ClientId, ...]:
        """Clients whose replies were added."""
        return tuple(self._counted)

    def add(self, client: ClientId, reply: Reply) -> None:
        """Keep one reply."""
        self._counted.append(client)
        if self._weigh(client, reply) > 0:
            self._held[client] = reply.tensors.get("parameters", {})

    def finish(self) -> Mean:
        """Return what each tensor moves to."""
        layers: dict[str, list[str]] = {}
        for name in sorted({name for tensors in self._held.values() for name in tensors}):
            layers.setdefault(self._rule.layer(name), []).append(name)
        values: dict[str, Tensor] = {}
        holders: dict[str, float] = {}
        largest = 0.0
        for names in layers.values():
            clients = [client for client, tensors in self._held.items() if names[0] in tensors]
            weights = attention([self._distance(client, names) for client in clients])
            largest = max(largest, *weights)
            for name in names:
                values[name] = self._moved(name, dict(zip(clients, weights, strict=True)))
                holders[name] = float(len(clients))
        if self._rule.noise:
            generator = self._clock.generator("attention noise")
            for name, value in values.items():
                values[name] = value + self._rule.noise * torch.randn(value.shape, generator=generator)
        return Mean(values, holders, float(len(self._held)), Note({"largest_attention": largest}))

    def _distance(self, client: ClientId, names: Sequence[str]) -> float:
        changes = [self._current[name] - self._held[client][name] for name in names]
        return math.hypot(*(self._rule.distance(change) for change in changes))

    def _moved(self, name: str, weights: Mapping[ClientId, float]) -> Tensor:
        current = self._current[name]
        change = torch.zeros_like(current)
        for client, weight in weights.items():
            change.add_(current - self._held[client][name], alpha=weight)
        return current - self._rule.epsilon * change


def fedattn(
    context: Context,
    *,
    epsilon: Annotated[float, Field(ge=0, description="step size of the server")] = 1.2,
    norm: Annotated[Norm, Field(description="of distances; spectral concerns matrices only")] = "frobenius",
    granularity: Annotated[Granularity, Field(description="tensor by tensor, or weight and bias together")] = "tensor",
    noise: Annotated[NonNegative, Field(description="standard deviation of noise added to the parameters")] = 0.0,
    missing: MissingRule = "renormalise",
) -> Averaging:
    """FedAttn (Ji et al., IJCNN 2019): per layer, clients that moved farther from the server's model count more."""
    return Averaging(context, combine=Attentive(epsilon, norm, granularity, noise), missing=missing)
