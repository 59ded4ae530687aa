"""Stems of the ``experts`` model: from one modality of one domain to tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from polyfed.data.schema import Modality, Task
from polyfed.errors import UserError
from polyfed.model.attention import linear, positions
from polyfed.model.encoders import Count
from polyfed.model.patches import Pair, Patches, image_shape, pair, power_of_two
from polyfed.registry import Options

MOST_PATCHES = 81
"""Patches that a sample is cut into at most, unless the user says otherwise: attention compares all with all."""

SHORTEST_CHUNK, CHUNKS = 5, 16
"""A vector is cut into so many chunks; a short one into fewer, of so many features."""

Size = Annotated[Count | tuple[Count, Count], Field(description="one number, or height and width")]


class Tokens(NamedTuple):
    """``values`` (batch, tokens, width); where ``mask`` (batch, tokens) is false there is padding; None: nowhere."""

    values: Tensor
    mask: Tensor | None = None


def joined(parts: Sequence[Tokens]) -> Tokens:
    """Join tokens of several modalities to one sequence."""
    if all(part.mask is None for part in parts):
        return Tokens(torch.cat([part.values for part in parts], 1))
    masks = [
        torch.ones_like(part.values[..., 0], dtype=torch.bool) if part.mask is None else part.mask for part in parts
    ]
    return Tokens(torch.cat([part.values for part in parts], 1), torch.cat(masks, 1))


class StemOptions(Options):
    """How a modality becomes tokens."""

    patch: Annotated[Size | None, Field(description="values per token along each axis, or along the only one")] = None
    canvas: Annotated[Size | None, Field(description="what images and spectrograms are padded to with zeros")] = None


class DecoderOptions(Options):
    """How a generated image or spectrogram is put together."""

    patch: Annotated[Size | None, Field(description="pixels per token along each axis")] = None


def family_of(modality: Modality) -> str:
    """Return the name that a modality has in every domain; experts belong to it."""
    return modality.family


def largest(modality: Modality, modalities: Mapping[str, Modality]) -> Pair:
    """Return the height and width that hold every image of the family: all its domains get the same grid of patches."""
    family = [image_shape(other.shape) for other in modalities.values() if alike(modality, other)]
    return max(shape[1] for shape in family), max(shape[2] for shape in family)


def alike(modality: Modality, other: Modality) -> bool:
    """Whether two modalities are pictures of the same kind in two domains."""
    return (family_of(modality), modality.kind) == (family_of(other), other.kind)


def chunk(features: int) -> int:
    """Return the default number of features in a token of a vector."""
    return min(features, max(SHORTEST_CHUNK, -(-features // CHUNKS)))


def patches_of(modality: Modality, modalities: Mapping[str, Modality], options: StemOptions) -> Patches:
    """Return how a modality is cut, by default so that the sizes of the published scenarios come out.

    Images and spectrograms: padded to the largest of their family, patches of the smallest power of two from 2 on that
    gives at most 81. Sequences: one token per step, or per 2, 4 ... steps for more than 81. Vectors: chunks.
    """
    shape = image_shape(modality.shape)
    pictures = modality.kind in ("image", "audio") and len(modality.shape) == 3
    if pictures:
        canvas = pair(options.canvas) if options.canvas is not None else largest(modality, modalities)
        if canvas[0] < shape[1] or canvas[1] < shape[2]:
            raise UserError(f"model.stems.{modality.name}: canvas {canvas} is smaller than the samples, {shape[1:]}")
        return Patches(shape, pair(options.patch or power_of_two(canvas, 2, MOST_PATCHES)), canvas)
    if options.canvas is not None or isinstance(options.patch, tuple):
        raise UserError(
            f"model.stems.{modality.name}: {modality.kind} data of shape {modality.shape} has no height and width; "
            "patch is one number, and there is no canvas"
        )
    default = chunk(shape[2]) if len(modality.shape) == 1 else power_of_two(shape[2:], 1, MOST_PATCHES)
    return Patches(shape, (1, options.patch or default))


def text_vocabulary(modality: Modality, options: StemOptions) -> int:
    """Return the number of token ids of a text; it has one token per id and no patches."""
    if options != StemOptions():
        raise UserError(f"model.stems.{modality.name}: text has one token per id; there is no patch and no canvas")
    if modality.vocabulary < 1:
        raise UserError(f"modality {modality.name!r}: a text needs its vocabulary (the number of token ids)")
    return modality.vocabulary


def drawn_patches(task: Task, options: DecoderOptions) -> Patches:
    """Return the patches that a generated sample is made of, by default of the size that a stem would choose."""
    if len(task.shape) != 3:
        raise UserError(
            f"task {task.name!r}: the model 'experts' generates images and spectrograms (channels, height, width), "
            f"not shape {task.shape}"
        )
    shape = image_shape(task.shape)
    return Patches(shape, pair(options.patch or power_of_two(shape[1:], 2, MOST_PATCHES)))


class PatchStem(nn.Module):
    """Patches, steps or chunks -> one linear map for all, learned positions, LayerNorm."""

    def __init__(self, patches: Patches, width: int) -> None:
        super().__init__()
        self._patches = patches
        self.embed = linear(patches.values, width)
        self.positions = positions(patches.count, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, samples: Tensor) -> Tokens:
        """(batch, *shape of the modality) -> tokens."""
        cut = self._patches.cut(samples.reshape(samples.shape[0], *self._patches.shape))
        return Tokens(self.norm(self.embed(cut) + self.positions))


class TextStem(nn.Module):
    """Token ids -> embeddings, learned positions, LayerNorm; id 0 is padding."""

    def __init__(self, vocabulary: int, length: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = positions(length, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor) -> Tokens:
        """(batch, length) -> tokens, padding masked."""
        return Tokens(self.norm(self.embedding(ids) + self.positions), ids != 0)
