"""Fusion: from the features of the modalities a sample has to one vector.

A fusion is made of parts that are components of their own: ``fusion.<modality>`` for each modality, and parts that
every client uses. A client without a modality holds nothing of that modality's part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from polyfed.model.attention import MultiHeadAttention, feed_forward
from polyfed.model.masks import keep

# Each of them maps 0 to 0, so that a sample without any modality is fused to zeros.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": functional.gelu,
    "tanh": torch.tanh,
    "none": torch.Tensor.clone,
}

Presence = Mapping[str, Tensor | None]
"""Masks (batch,) by modality; None: every sample has it."""


def kept(values: Tensor, present: Tensor | None) -> Tensor:
    """Zero the rows of absent samples."""
    return values if present is None else keep(values, present)


def everybody(features: Tensor) -> Tensor:
    """Return a mask (batch,) of samples that are all present."""
    return torch.ones(features.shape[0], dtype=torch.bool, device=features.device)


FusedWidth = Annotated[
    int | None, Field(ge=1, description="width of the fused vector; by default that of the features")
]
Dropout = Annotated[float, Field(ge=0, lt=1, description="share of the fused vector's entries dropped in training")]


class Fusion(Protocol):
    """What the ``modular`` model asks of a fusion."""

    @property
    def width(self) -> int:
        """Width of the fused vector."""
        ...

    @property
    def shared(self) -> tuple[str, ...]:
        """Names of the parts that a client uses whatever its modalities."""
        ...

    def part(self, name: str) -> nn.Module:
        """Build the part of a modality, or the shared part of that name."""
        ...

    def fuse(self, parts: nn.ModuleDict, features: Mapping[str, Tensor], present: Presence) -> Tensor:
        """Fuse features[m] (batch, width) where present[m] (batch,) is true -> (batch, fused width).

        There is at least one modality in ``features``. Rows of absent samples are not used, whatever they hold; a
        sample without any modality gives zeros.
        """
        ...


def dropped(fused: Tensor, share: float, training: bool) -> Tensor:
    """Dropout, left out altogether at 0 so that ``vmap`` meets no random operation."""
    return functional.dropout(fused, share) if training and share > 0 else fused


@dataclass(frozen=True)
class Concat:
    """activation( Σ over present m of W_m z_m + b_m ).

    This is one linear layer on the concatenation of z_m · present_m and present_m over all modalities m: the columns
    of a modality, and b_m as the column of its presence, are the component ``fusion.<m>``.
    """

    features: int
    width: int
    activation: str
    dropout: float
    shared: tuple[str, ...] = ()

    def part(self, name: str) -> nn.Module:
        """Build the columns of one modality."""
        return nn.Linear(self.features, self.width)

    def fuse(self, parts: nn.ModuleDict, features: Mapping[str, Tensor], present: Presence) -> Tensor:
        """Fuse; see ``Fusion``."""
        blocks = [kept(parts[m](kept(features[m], present[m])), present[m]) for m in sorted(features)]
        fused = ACTIVATIONS[self.activation](reduce(torch.add, blocks))
        return dropped(fused, self.dropout, parts.training)


def concat(
    features: int,
    *,
    width: FusedWidth = None,
    activation: Annotated[Literal["relu", "gelu", "tanh", "none"], Field(description="applied to the fused vector")] = (
        "relu"
    ),
    dropout: Dropout = 0.0,
) -> Fusion:
    """Concatenation with masks and a linear layer; each modality's columns are a component of their own."""
    return Concat(features, width or features, activation, dropout)


class Pooling(nn.Module):
    """A learned query attends to the tokens of the present modalities; then a feed-forward network."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(0.02 * torch.randn(width))
        self.before_attention = nn.LayerNorm(width)
        self.attention = MultiHeadAttention(width, heads)
        self.before_feed_forward = nn.LayerNorm(width)
        self.feed_forward = feed_forward(width, ratio=2)
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens (batch, modalities, width), mask (batch, modalities) bool -> (batch, width)."""
        query = self.query.expand(tokens.shape[0], 1, -1)
        mixed = query + self.attention(query, self.before_attention(tokens), mask)
        mixed = mixed + self.feed_forward(self.before_feed_forward(mixed))
        fused: Tensor = self.norm(mixed).squeeze(-2)
        return fused


@dataclass(frozen=True)
class Attention:
    """Attention of a learned query over one token per present modality.

    ``fusion.<m>`` projects features to a token; its bias is the embedding that tells modalities apart.
    ``fusion.attention`` is the rest and is held by every client.
    """

    features: int
    width: int
    heads: int
    dropout: float
    shared: tuple[str, ...] = ("attention",)

    def part(self, name: str) -> nn.Module:
        """Build the projection of one modality, or the attention."""
        return Pooling(self.width, self.heads) if name in self.shared else nn.Linear(self.features, self.width)

    def fuse(self, parts: nn.ModuleDict, features: Mapping[str, Tensor], present: Presence) -> Tensor:
        """Fuse; see ``Fusion``."""
        names = sorted(features)
        tokens = torch.stack([parts[m](kept(features[m], present[m])) for m in names], dim=-2)
        mask = torch.stack([everybody(features[m]) if (here := present[m]) is None else here for m in names], dim=-1)
        fused = keep(parts["attention"](tokens, mask), mask.any(-1))
        return dropped(fused, self.dropout, parts.training)


def attention(
    features: int,
    *,
    width: FusedWidth = None,
    heads: Annotated[int, Field(ge=1, description="attention heads; they must divide the width")] = 4,
    dropout: Dropout = 0.0,
) -> Fusion:
    """Attention of a learned query over the modalities that are present; one component is shared by all clients."""
    return Attention(features, width or features, heads, dropout)
