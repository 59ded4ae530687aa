"""Attention written out with matmul and softmax, so that ``torch.func.vmap`` can stack models of many clients."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from polyfed.errors import UserError


def linear(inner: int, outer: int) -> nn.Linear:
    """A linear layer with the first values of Glorot and Bengio (2010).

    PyTorch's own are smaller by a factor of about 1.7, and a transformer then hardly starts to learn under plain SGD.
    """
    layer = nn.Linear(inner, outer)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with several heads (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"heads {heads} do not divide the attention width {width}")
        self.heads = heads
        self.query = linear(width, width)
        self.key = linear(width, width)
        self.value = linear(width, width)
        self.output = linear(width, width)

    def _split(self, values: Tensor) -> Tensor:
        """(batch, n, width) -> (batch, heads, n, width / heads)."""
        heads = values.reshape(*values.shape[:-1], self.heads, values.shape[-1] // self.heads)
        return heads.transpose(-2, -3)

    def forward(self, asking: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """Let each row of ``asking`` (batch, n, width) attend to ``memory`` (batch, m, width).

        Where ``mask`` (batch, m) is false the memory row has weight exactly 0. If all are false the weights are equal
        and the result is to be discarded: it is finite, so no NaN comes back through the gradient.
        """
        query, key, value = (
            self._split(self.query(asking)),
            self._split(self.key(memory)),
            self._split(self.value(memory)),
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        if mask is not None:
            lowest = scores.new_full((), torch.finfo(scores.dtype).min)
            scores = torch.where(mask.unsqueeze(-2).unsqueeze(-2), scores, lowest)
        found = scores.softmax(-1) @ value
        mixed: Tensor = self.output(found.transpose(-2, -3).flatten(-2))
        return mixed


def feed_forward(width: int, ratio: int) -> nn.Sequential:
    """Two linear layers with ``ratio * width`` units between them."""
    return nn.Sequential(linear(width, ratio * width), nn.GELU(), linear(ratio * width, width))


class Block(nn.Module):
    """One transformer layer with LayerNorm before each part: self-attention, then a feed-forward network."""

    def __init__(self, width: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(width)
        self.attention = MultiHeadAttention(width, heads)
        self.before_feed_forward = nn.LayerNorm(width)
        self.feed_forward = feed_forward(width, ratio)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """tokens (batch, n, width), mask (batch, n) bool -> (batch, n, width)."""
        normal = self.before_attention(tokens)
        tokens = tokens + self.attention(normal, normal, mask)
        deeper: Tensor = self.feed_forward(self.before_feed_forward(tokens))
        return tokens + deeper


def positions(count: int, width: int) -> nn.Parameter:
    """Learned positions (count, width), at first random and about as large as embedded patches."""
    return nn.Parameter(0.3 * torch.randn(count, width))
