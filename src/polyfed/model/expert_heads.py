"""Heads of the ``experts`` model: a linear map of the mixed latents, or a decoder that reads all query tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from polyfed.data.schema import Task
from polyfed.model.attention import MultiHeadAttention, linear, positions
from polyfed.model.expert_layers import Sizes
from polyfed.model.heads import LinearHead, prediction_shape
from polyfed.model.patches import Patches


class Mixture(NamedTuple):
    """What a head sees of a batch.

    ``latent`` (batch, width): the weighted sum of the paths' latents. ``tokens`` (batch, n, width): the query tokens of
    all paths, each times its weight and the number of paths; where ``mask`` (batch, n) is false a path is absent.
    """

    latent: Tensor
    tokens: Tensor
    mask: Tensor | None = None


def mixed(latents: Tensor, queries: Tensor, weights: Tensor, present: Tensor | None) -> Mixture:
    """Mix latents (batch, paths, width) and query tokens (batch, paths, queries, width) by weights (batch or 1, paths).

    Where ``present`` (batch, paths) is false both are zero and so is the weight.
    """
    count = weights.shape[1] if present is None else present.sum(1, keepdim=True)
    scaled = (count * weights).unsqueeze(-1).unsqueeze(-1) * queries
    mask = None if present is None else present.repeat_interleave(queries.shape[2], 1)
    return Mixture((weights.unsqueeze(-1) * latents).sum(1), scaled.flatten(1, 2), mask)


class MixtureHead(nn.Module):
    """Classification and regression: one linear layer on the latent."""

    def __init__(self, task: Task, width: int) -> None:
        super().__init__()
        self.linear = LinearHead(width, prediction_shape(task))

    def forward(self, mixture: Mixture) -> Tensor:
        """Mixture -> (batch, classes) or (batch, *shape)."""
        prediction: Tensor = self.linear(mixture.latent)
        return prediction


class TokenDecoder(nn.Module):
    """Generation: a learned token per patch attends to the paths' tokens; then a linear layer to pixels, unclipped."""

    def __init__(self, patches: Patches, sizes: Sizes) -> None:
        super().__init__()
        self._patches = patches
        self.queries = positions(patches.count, sizes.width)
        self.before_attention = nn.LayerNorm(sizes.width)
        self.attention = MultiHeadAttention(sizes.width, sizes.heads)
        self.norm = nn.LayerNorm(sizes.width)
        self.draw = linear(sizes.width, patches.values)

    def forward(self, mixture: Mixture) -> Tensor:
        """Mixture -> (batch, channels, height, width)."""
        found = self.attention(self.before_attention(self.queries), mixture.tokens, mixture.mask)
        return self._patches.join(self.draw(self.norm(self.queries + found)))


def nothing(batch: int, width: int, device: torch.device) -> Mixture:
    """Return what a head sees of samples without any modality: zeros, as if every path were absent."""
    return Mixture(torch.zeros(batch, width, device=device), torch.zeros(batch, 1, width, device=device))
