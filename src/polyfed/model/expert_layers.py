"""Layers of the ``experts`` model. LayerNorm comes before each part and belongs to it; there is no dropout.

A scope's attention and an expert's feed-forward networks are modules of their own, since different clients share them;
a stage alternates between the layers of the one and of the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from polyfed.model.attention import MultiHeadAttention, linear, positions
from polyfed.model.expert_stems import Tokens

Key = TypeVar("Key")


class Sizes(NamedTuple):
    """Sizes all layers have in common; ``units`` are those of a feed-forward network's hidden layer."""

    width: int
    heads: int
    layers: int
    units: int
    queries: int


class SelfAttention(nn.Module):
    """The self-attention layers of an input scope."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(sizes.width) for _ in range(sizes.layers))
        self.layers = nn.ModuleList(MultiHeadAttention(sizes.width, sizes.heads) for _ in range(sizes.layers))

    def forward(self, layer: int, tokens: Tokens) -> Tokens:
        """Add a layer's attention to the tokens."""
        normal = self.norms[layer](tokens.values)
        return Tokens(tokens.values + self.layers[layer](normal, normal, tokens.mask), tokens.mask)


class FewQueries(MultiHeadAttention):
    """Multi-head attention of a few rows to many: the same function, computed from the few rows' side.

    Instead of making a key and a value of every memory row, queries are carried through the key's weights to the
    memory, and what they find there through the value's: cheaper while queries · heads are fewer than the width.
    """

    def forward(self, asking: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """Let rows (batch or 1, n, width) attend to ``memory`` (batch, m, width); ``mask`` as in the base class."""
        rows, count, width = asking.shape
        depth = width // self.heads
        query = self._by_head(self.query(asking) / math.sqrt(depth))
        carried = query @ self.key.weight.reshape(self.heads, depth, width)  # (heads, rows · n, width)
        offset = query @ self.key.bias.reshape(self.heads, depth, 1)  # alike for all memory rows: it changes no weight
        carried, offset = (part.reshape(self.heads, rows, count, -1).transpose(0, 1) for part in (carried, offset))
        scores = carried.flatten(1, 2) @ memory.transpose(-1, -2) + offset.flatten(1, 2)
        if mask is not None:
            lowest = scores.new_full((), torch.finfo(scores.dtype).min)
            scores = torch.where(mask.unsqueeze(-2), scores, lowest)
        found = scores.softmax(-1) @ memory  # (batch, heads · n, width)
        found = found.reshape(-1, self.heads, count, width).transpose(0, 1).flatten(1, 2)
        values = found @ self.value.weight.reshape(self.heads, depth, width).transpose(-1, -2)
        together = values.transpose(0, 1).reshape(-1, count, width)
        mixed: Tensor = self.output(together + self.value.bias)
        return mixed

    def _by_head(self, values: Tensor) -> Tensor:
        """(rows, n, width) -> (heads, rows · n, width / heads)."""
        return values.reshape(-1, self.heads, values.shape[-1] // self.heads).transpose(0, 1)


class CrossAttention(nn.Module):
    """The query tokens of an output scope and its cross-attention layers; keys and values get no LayerNorm."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.queries = positions(sizes.queries, sizes.width)
        self.norms = nn.ModuleList(nn.LayerNorm(sizes.width) for _ in range(sizes.layers))
        self.layers = nn.ModuleList(FewQueries(sizes.width, sizes.heads) for _ in range(sizes.layers))

    def forward(self, layer: int, asking: Tensor, memory: Tokens) -> Tensor:
        """Add a layer's attention to the query tokens (batch or 1, queries, width)."""
        found: Tensor = self.layers[layer](self.norms[layer](asking), memory.values, memory.mask)
        return asking + found


class FeedForwards(nn.Module):
    """The feed-forward networks of one stage, one per layer."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(sizes.width), linear(sizes.width, sizes.units), nn.GELU(), linear(sizes.units, sizes.width)
            )
            for _ in range(sizes.layers)
        )

    def forward(self, layer: int, values: Tensor) -> Tensor:
        """Add a layer's network to (..., width)."""
        deeper: Tensor = self.layers[layer](values)
        return values + deeper


class Expert(nn.Module):
    """The feed-forward networks of a knowledge type: those of the input stage and those of the output stage."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.input = FeedForwards(sizes)
        self.output = FeedForwards(sizes)


class InputStack(nn.Module):
    """Self-attention with one feed-forward network per layer: what a modality has in the plain network."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention = SelfAttention(sizes)
        self.expert = FeedForwards(sizes)


class OutputStack(nn.Module):
    """Queries, cross-attention and one feed-forward network per layer: what a task has in the plain network."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention = CrossAttention(sizes)
        self.expert = FeedForwards(sizes)


def input_stage(attention: SelfAttention, experts: Mapping[Key, FeedForwards], tokens: Tokens) -> dict[Key, Tokens]:
    """Send tokens through a scope's attention and, in parallel, through each expert.

    The first layer's attention is computed once, since all experts start from the same tokens; later ones for all
    experts in one pass.
    """
    attended = attention(0, tokens)
    values = [expert(0, attended.values) for expert in experts.values()]
    for layer in range(1, len(attention.layers)):
        together = attention(layer, Tokens(torch.cat(values), repeated(tokens.mask, len(values))))
        parts = together.values.chunk(len(values))
        values = [expert(layer, part) for expert, part in zip(experts.values(), parts, strict=True)]
    return {key: Tokens(value, tokens.mask) for key, value in zip(experts, values, strict=True)}


def output_stage(
    attention: CrossAttention, experts: Mapping[Key, FeedForwards], memories: Mapping[Key, Tokens]
) -> dict[Key, Tensor]:
    """Let a scope's queries attend to memories of equally many tokens, each with its expert.

    Returns query tokens (batch, queries, width) by memory.
    """
    masks = [memory.mask for memory in memories.values() if memory.mask is not None]
    joined = Tokens(torch.cat([memory.values for memory in memories.values()]), torch.cat(masks) if masks else None)
    asking = attention.queries.unsqueeze(0)
    for layer in range(len(attention.layers)):
        parts = attention(layer, asking, joined).chunk(len(memories))
        asking = torch.cat([experts[key](layer, part) for key, part in zip(memories, parts, strict=True)])
    return dict(zip(memories, asking.chunk(len(memories)), strict=True))


def repeated(mask: Tensor | None, times: int) -> Tensor | None:
    """Repeat a mask along the batch."""
    return None if mask is None else torch.cat([mask] * times)
