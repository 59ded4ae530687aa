"""Gates of the ``experts`` model: how much each path counts for a task. They are the client's own.

A gate holds the logits of one modality's four paths for one task; a softmax runs over those of all modalities that a
sample has. So the gates of a client are as many as its modalities call for, and each begins at 0: a plain mean.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from polyfed.model.masks import keep

Gate = Literal["uniform", "learned", "input"]

PATHS = 4


class LearnedGate(nn.Module):
    """One logit per path, the same for all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(PATHS))

    def forward(self, summary: Tensor) -> Tensor:
        """summary (batch, width) is not looked at -> (1, paths)."""
        return self.logits.unsqueeze(0)


class InputGate(nn.Linear):
    """Logits that depend on the sample, by a linear map of the mean of its stem tokens."""

    def __init__(self, width: int) -> None:
        super().__init__(width, PATHS)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def gate_of(kind: Gate, width: int) -> nn.Module:
    """Build a gate that has parameters."""
    return LearnedGate() if kind == "learned" else InputGate(width)


def weights(logits: Tensor, present: Tensor | None) -> Tensor:
    """Softmax over the last axis: logits (batch or 1, n) -> (batch or 1, n).

    Where ``present`` (batch, n) is false the weight is 0 and the others sum to 1; if all are false, all are 0.
    """
    if present is None:
        return logits.softmax(-1)
    lowest = logits.new_full((), torch.finfo(logits.dtype).min)
    return keep(torch.where(present, logits, lowest).softmax(-1), present)


def mean_of_present(values: Tensor, present: Tensor | None) -> Tensor:
    """Mean over the second axis of (batch, n, width) where ``present`` (batch, n) is true, 0 if nowhere."""
    if present is None:
        return values.mean(1)
    return keep(values, present).sum(1) / present.sum(1, keepdim=True).clamp(min=1)
