"""The losses of Pilot's two stages (Xiong et al., AAAI 2025, equations 4 and 9)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from polyfed.data.samples import Batch
from polyfed.method.connector_losses import DifferenceNorm, difference, load_balance, small_logits
from polyfed.method.protocol import Groups, Model
from polyfed.model.losses import Logged, total_loss
from polyfed.registry import Options


class Difference(Options):
    """The difference loss of the first stage."""

    weight: Annotated[float, Field(ge=0, description="its weight")] = 0.1
    norm: Annotated[
        DifferenceNorm, Field(description="its scale: to [0, 1], none, or that of Domain Separation Networks")
    ] = "fro"


class RouterLosses(Options):
    """The losses on the router of the second stage."""

    balance: Annotated[float, Field(ge=0, description="weight of load balancing")] = 0.1
    logits: Annotated[float, Field(ge=0, description="weight of the loss on large logits")] = 0.01


@dataclass(frozen=True)
class Apart:
    """First stage: the supervised loss plus ``weight`` times how much the task's and the client's parts have in common.

    The difference loss is logged as ``difference``. Batches without pictures, and models without the client's part,
    have none.
    """

    weight: float
    norm: DifferenceNorm

    def __call__(self, model: Model, batch: Batch, extra: Groups) -> tuple[Tensor, Logged]:
        """Return the loss () and its parts."""
        outputs = model(batch)
        loss, logged = total_loss(model.tasks, outputs, batch)
        if not {"task", "client"} <= outputs.inner.keys():
            return loss, logged
        common = difference(outputs.inner["task"], outputs.inner["client"], self.norm)
        return loss + self.weight * common, {**logged, "difference": common.detach()}


@dataclass(frozen=True)
class Routed:
    """Second stage: the supervised loss plus the routers' two, weighted; logged as ``balance`` and ``logits``.

    Where the vision tower has routers, too, each loss is the mean over all of them (our choice).
    """

    balance: float
    logits: float

    def __call__(self, model: Model, batch: Batch, extra: Groups) -> tuple[Tensor, Logged]:
        """Return the loss () and its parts."""
        outputs = model(batch)
        loss, logged = total_loss(model.tasks, outputs, batch)
        found = [value for name, value in outputs.inner.items() if name.split(".")[0] == "logits"]
        if not found:
            return loss, logged
        even, small = (torch.stack([rule(one) for one in found]).mean() for rule in (load_balance, small_logits))
        more = {"balance": even.detach(), "logits": small.detach()}
        return loss + self.balance * even + self.logits * small, {**logged, **more}
