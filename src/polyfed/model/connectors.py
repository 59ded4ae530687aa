"""Connectors between a vision tower and a language model: one alone, a pair, and a mixture across tasks.

Source of pair and mixture: Xiong et al., "Pilot: Building the Federated Multimodal Instruction Tuning Framework",
AAAI 2025, sections on task-specific features and on the cross-task mixture of adapters (equations 5 and 6). A router
of single tokens, one cross-task adapter for each other task, and the client's adapter staying in the second stage are
our readings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

RouterLevel = Literal["token", "image"]


class Connected(NamedTuple):
    """What a connector makes of features (images, tokens, features).

    ``image`` (images, tokens, width) are the image tokens; ``task`` and ``client`` their two parts, if there are two;
    ``logits`` (images, tokens, tasks) those of the router, in the order of the client's tasks, its own first.
    """

    image: Tensor
    task: Tensor | None = None
    client: Tensor | None = None
    logits: Tensor | None = None


class Connector(nn.Module):
    """Two linear layers with GELU between: (..., features) -> (..., width)."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(features, width)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        """Return the image tokens."""
        hidden: Tensor = self.linear_2(self.act(self.linear_1(features)))
        return hidden


class Single(nn.Module):
    """One connector."""

    def __init__(self, connector: nn.Module) -> None:
        super().__init__()
        self.connector = connector

    def forward(self, features: Tensor) -> Connected:
        """Return the image tokens."""
        return Connected(self.connector(features))


class Pair(nn.Module):
    """The adapter of the task plus the client's own, times ``scale``; without the client's, the task's alone."""

    def __init__(self, task: nn.Module, client: nn.Module | None, scale: float = 1.0) -> None:
        super().__init__()
        self.task = task
        self.client = client
        self.scale = scale

    def forward(self, features: Tensor) -> Connected:
        """Return the image tokens and their parts."""
        return together(self.task(features), self.client, features, self.scale)


class Mixture(nn.Module):
    """The cross-task mixture of adapters: those of all tasks, weighted by a router, plus the client's own.

    x = P_1 ψ_1(H) + Σ_{i ≥ 2} P_i (ψ_i(H) + ψ_i^c(H)), P = softmax of the router's logits. ``tasks`` are ψ_1 (the
    client's own task) and ψ_2, …, by name, in this order; ``cross`` are the ψ_i^c, by the same names, one for each
    other task, one in common (under ``COMMON``), or none. With one task there is no router, and this is ``Pair``.
    """

    def __init__(
        self,
        tasks: Mapping[str, nn.Module],
        cross: Mapping[str, nn.Module],
        router: nn.Module | None,
        client: nn.Module | None,
        scale: float = 1.0,
        level: RouterLevel = "token",
    ) -> None:
        super().__init__()
        self.order: Sequence[str] = tuple(tasks)
        self.tasks = nn.ModuleDict(tasks)
        self.cross = nn.ModuleDict(cross)
        self.router = router
        self.client = client
        self.scale = scale
        self.level = level

    def forward(self, features: Tensor) -> Connected:
        """Return the image tokens, their parts and the router's logits."""
        own = self.tasks[self.order[0]](features)
        if self.router is None:
            return together(own, self.client, features, self.scale)
        logits = self.router(features)
        if self.level == "image":
            logits = logits.mean(1, keepdim=True)
        weights = torch.softmax(logits.float(), -1).to(own.dtype)
        total = weights[..., :1] * own
        for place, name in enumerate(self.order[1:], start=1):
            branch = self.tasks[name](features)
            other = self.crossing(name)
            if other is not None:
                branch = branch + other(features)
            total = total + weights[..., place : place + 1] * branch
        return together(total, self.client, features, self.scale)._replace(logits=logits)

    def crossing(self, task: str) -> nn.Module | None:
        """Return the cross-task adapter of another task."""
        for name in (task, COMMON):
            if name in self.cross:
                return self.cross[name]
        return None


COMMON = "common"
"""The name of a cross-task adapter that all other tasks have in common."""


def together(task: Tensor, client: nn.Module | None, features: Tensor, scale: float) -> Connected:
    """Add the client's own adapter to the part of the tasks."""
    if client is None:
        return Connected(scale * task, task)
    own = client(features)
    return Connected(scale * (task + own), task, own)
