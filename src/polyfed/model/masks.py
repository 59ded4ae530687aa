"""Masked values: what to do where a modality is absent or a target is not there."""

from __future__ import annotations

import torch
from torch import Tensor


def keep(values: Tensor, mask: Tensor) -> Tensor:
    """Zero the entries whose mask is false, whatever they held, and cut their gradient.

    values (*mask shape, ...), mask bool -> the shape of values. Multiplying by the mask would not do: 0 · NaN is NaN.
    """
    for _ in range(values.dim() - mask.dim()):
        mask = mask.unsqueeze(-1)
    return torch.where(mask, values, 0)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the first axis of the entries whose mask is true; zero (with a graph) if there are none.

    values (n, ...), mask (n,) bool -> (...).
    """
    return keep(values, mask).sum(0) / mask.sum().clamp(min=1)
