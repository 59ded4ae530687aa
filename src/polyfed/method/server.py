"""Server optimisers: what the server does with the average of the clients' models.

The change ``D = average − current`` plays the part of a descent direction (Reddi et al., "Adaptive Federated
Optimization", ICLR 2021, Algorithm 2). Tensors that nobody trained in a round stay as they are, with their memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from polyfed.method.protocol import Groups
from polyfed.model.architecture import Tensors

Variant = Literal["paper", "openfedllm"]


class ServerOptimizer(Protocol):
    """A rule with memory: names in ``average`` move, all others stay."""

    def update(self, current: Tensors, average: Tensors, memory: Groups) -> tuple[Tensors, Groups]:
        """Return the new parameters and the new memory."""
        ...


@dataclass(frozen=True)
class Replace:
    """Take the average as it is (FedAvg)."""

    def update(self, current: Tensors, average: Tensors, memory: Groups) -> tuple[Tensors, Groups]:
        """Return the average where there is one."""
        return {**current, **average}, memory


@dataclass(frozen=True)
class ServerSGD:
    """SGD with momentum on the average change: u = b u + D; w += lr u (FedAvgM). b = 0 and lr = 1 is FedAvg."""

    lr: float = 1.0
    momentum: float = 0.9

    def update(self, current: Tensors, average: Tensors, memory: Groups) -> tuple[Tensors, Groups]:
        """Return the new parameters and the momentum buffers."""
        buffers = dict(memory.get("momentum", {}))
        moved = dict(current)
        for name, target in average.items():
            change = target - current[name]
            buffers[name] = change if name not in buffers else self.momentum * buffers[name] + change
            moved[name] = current[name] + self.lr * buffers[name]
        return moved, {"momentum": buffers}


@dataclass(frozen=True)
class Adaptive:
    """FedAdam, FedYogi and FedAdagrad, without bias correction.

    m = b1 m + (1 − b1) D;  v by the rule;  w += lr m / (sqrt(v) + tau).  m starts at 0 and v at tau².
    Adam: v = b2 v + (1 − b2) D².  Yogi: v −= (1 − b2) D² sign(v − D²).  Adagrad: v += D².
    ``variant`` openfedllm (Ye et al., KDD 2024, as its code has it): m = D at first, and v goes by m² instead of D².
    """

    rule: Literal["adam", "yogi", "adagrad"]
    lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    variant: Variant = "paper"

    def update(self, current: Tensors, average: Tensors, memory: Groups) -> tuple[Tensors, Groups]:
        """Return the new parameters and both moments."""
        first, second = dict(memory.get("first", {})), dict(memory.get("second", {}))
        moved = dict(current)
        for name, target in average.items():
            change = target - current[name]
            released = self.variant == "openfedllm"
            m = first.get(name, change if released else torch.zeros_like(change))
            v = second.get(name, torch.full_like(change, self.tau**2))
            first[name] = m = self.beta1 * m + (1 - self.beta1) * change
            second[name] = v = self._second(v, (m if released else change).square())
            moved[name] = current[name] + self.lr * m / (v.sqrt() + self.tau)
        return moved, {"first": first, "second": second}

    def _second(self, v: Tensor, squared: Tensor) -> Tensor:
        if self.rule == "adam":
            return self.beta2 * v + (1 - self.beta2) * squared
        if self.rule == "yogi":
            return v - (1 - self.beta2) * squared * torch.sign(v - squared)
        return v + squared
