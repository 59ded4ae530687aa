"""The losses of Pilot's two stages (Xiong et al., AAAI 2025, equations 4 and 9)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from polyfed.data.samples import Batch
from polyfed.method.connector_losses import DifferenceNorm, difference, load_balance, small_logits
from polyfed.method.protocol import Groups, Model
from polyfed.model.losses import Logged, total_loss


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
    """Second stage: the supervised loss plus the router's two, weighted; logged as ``balance`` and ``logits``."""

    balance: float
    logits: float

    def __call__(self, model: Model, batch: Batch, extra: Groups) -> tuple[Tensor, Logged]:
        """Return the loss () and its parts."""
        outputs = model(batch)
        loss, logged = total_loss(model.tasks, outputs, batch)
        if "logits" not in outputs.inner:
            return loss, logged
        found = outputs.inner["logits"]
        even, small = load_balance(found), small_logits(found)
        more = {"balance": even.detach(), "logits": small.detach()}
        return loss + self.balance * even + self.logits * small, {**logged, **more}
