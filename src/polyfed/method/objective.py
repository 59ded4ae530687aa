"""Training objectives shared by many methods."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from polyfed.data.samples import Batch
from polyfed.method.protocol import Groups, Model
from polyfed.model.losses import Logged, total_loss


def supervised(model: Model, batch: Batch, extra: Groups) -> tuple[Tensor, Logged]:
    """Sum over the tasks of their mean loss on the labelled samples of a batch."""
    return total_loss(model.tasks, model(batch), batch)


@dataclass(frozen=True)
class Proximal:
    """FedProx: the supervised loss plus (mu/2) ‖w − w_received‖² (Li et al., MLSys 2020, eq. 2).

    The norm is squared, so its gradient is mu (w − w_received). ``extra["anchor"]`` holds w_received; parameters that
    are not in it (personal ones) are left out.
    """

    mu: float

    def __call__(self, model: Model, batch: Batch, extra: Groups) -> tuple[Tensor, Logged]:
        """Return the loss () and its parts."""
        loss, logged = supervised(model, batch, extra)
        anchor = extra["anchor"]
        distance = sum(
            ((value - anchor[name]).square().sum() for name, value in model.parameters.items() if name in anchor),
            start=loss.new_zeros(()),
        )
        return loss + 0.5 * self.mu * distance, {**logged, "proximal": 0.5 * self.mu * distance}
