"""Transformer encoders: ``transformer`` on patches of images and spectrograms, ``text-transformer`` on token ids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from polyfed.data.schema import Modality
from polyfed.model.attention import Block, linear, positions
from polyfed.model.encoders import Count, mean_of_tokens, project, require_fit
from polyfed.model.patches import Patches, image_shape, pair

Hidden = Annotated[int | None, Field(ge=1, description="width inside; by default that of the features")]
Layers = Annotated[int, Field(ge=1, description="transformer layers")]
Heads = Annotated[int, Field(ge=1, description="attention heads; they must divide the width inside")]
Ratio = Annotated[int, Field(ge=1, description="units of the feed-forward part as a multiple of the width inside")]


class PatchTransformer(nn.Module):
    """Patches -> tokens with learned positions -> layers -> mean (Dosovitskiy et al. 2021, without a class token)."""

    def __init__(self, shape: Sequence[int], patch: tuple[int, int], hidden: int, width: int) -> None:
        super().__init__()
        self._cutting = Patches(image_shape(shape), patch)
        self.embed = linear(self._cutting.values, hidden)
        self.positions = positions(self._cutting.count, hidden)
        self.layers = nn.ModuleList()
        self.norm = nn.LayerNorm(hidden)
        self.project = project(hidden, width)

    def patches(self, values: Tensor) -> Tensor:
        """(batch, channels, height, width), padded with zeros, -> (batch, patches, channels · patch area)."""
        return self._cutting.cut(values)

    def forward(self, values: Tensor) -> Tensor:
        """values (batch, channels, height, width) -> (batch, width)."""
        tokens = self.embed(self.patches(values)) + self.positions
        for layer in self.layers:
            tokens = layer(tokens)
        features: Tensor = self.project(self.norm(tokens).mean(-2))
        return features


def patch_size(patch: int | tuple[int, int] | None, size: Sequence[int]) -> tuple[int, int]:
    """Return patch height and width; by default about six patches along each axis, of at least two pixels."""
    if patch is not None:
        return pair(patch)
    return max(2, math.ceil(size[0] / 6)), max(2, math.ceil(size[1] / 6))


def transformer(
    modality: Modality,
    width: int,
    *,
    patch: Annotated[
        Count | tuple[Count, Count] | None,
        Field(description="patch size, one number or height and width; by default about 6 x 6 patches"),
    ] = None,
    hidden: Hidden = None,
    layers: Layers = 2,
    heads: Heads = 4,
    ratio: Ratio = 2,
) -> nn.Module:
    """Transformer on patches of images and spectrograms, LayerNorm first, learned positions.

    (batch, channels, height, width) -> (batch, width). A size that the patch does not divide is padded with zeros.
    Absence: rows of absent samples are zero here and their features are discarded.
    """
    require_fit(modality, "transformer")
    inside = hidden or width
    model = PatchTransformer(modality.shape, patch_size(patch, modality.shape[1:]), inside, width)
    model.layers.extend(Block(inside, heads, ratio) for _ in range(layers))
    return model


class TextTransformer(nn.Module):
    """Token embeddings with learned positions -> layers that attend to tokens only -> mean over tokens."""

    def __init__(self, modality: Modality, hidden: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(modality.vocabulary, hidden)
        self.positions = positions(modality.shape[0], hidden)
        self.layers = nn.ModuleList()
        self.norm = nn.LayerNorm(hidden)
        self.project = project(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (batch, length) of ids, 0 is padding -> (batch, width)."""
        mask = tokens != 0
        values = self.embedding(tokens) + self.positions
        for layer in self.layers:
            values = layer(values, mask)
        features: Tensor = self.project(mean_of_tokens(self.norm(values), mask))
        return features


def text_transformer(
    modality: Modality,
    width: int,
    *,
    hidden: Hidden = None,
    layers: Layers = 2,
    heads: Heads = 4,
    ratio: Ratio = 2,
) -> nn.Module:
    """Transformer on token ids with a padding mask, LayerNorm first, learned positions.

    (batch, length) of ids, 0 is padding -> (batch, width); padding changes nothing. Absence: an absent text is all
    padding here and its features are discarded.
    """
    require_fit(modality, "text-transformer")
    inside = hidden or width
    model = TextTransformer(modality, inside, width)
    model.layers.extend(Block(inside, heads, ratio) for _ in range(layers))
    return model
