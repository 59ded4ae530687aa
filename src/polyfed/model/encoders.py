"""Which encoder fits which kind of modality, and the encoders that need no convolution or attention.

An encoder maps one modality, (batch, *shape), to features (batch, width). It never sees absence: rows of absent samples
are zero, the encoder computes something from them and the fusion's mask discards it. So an encoder must treat every
sample by itself; statistics over the batch (BatchNorm) would let absent rows leak and are not used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from polyfed.data.schema import Modality, ModalityKind
from polyfed.errors import UserError
from polyfed.model.masks import keep

Count = Annotated[int, Field(ge=1)]

# Encoders that fit a kind of modality; the first is the default.
FITTING: dict[ModalityKind, tuple[str, ...]] = {
    "image": ("cnn", "transformer", "mlp"),
    "audio": ("cnn", "transformer", "mlp"),
    "sensor": ("cnn1d", "mlp"),
    "vector": ("mlp",),
    "tokens": ("bag", "text-transformer"),
}


def default_encoder(modality: Modality) -> str:
    """Return the name of the encoder a modality gets unless the user chooses another."""
    return FITTING[modality.kind][0]


def require_fit(modality: Modality, encoder: str) -> None:
    """Refuse an encoder that cannot read this kind of modality."""
    fitting = FITTING[modality.kind]
    if encoder not in fitting:
        raise UserError(
            f"modality {modality.name!r}: encoder {encoder!r} cannot read {modality.kind} data of shape "
            f"{modality.shape}. Choices: {', '.join(fitting)}"
        )
    if modality.kind == "tokens" and modality.vocabulary < 1:
        raise UserError(
            f"modality {modality.name!r}: encoder {encoder!r} needs its vocabulary (the number of token ids)"
        )


def layers(sizes: Sequence[int]) -> list[nn.Module]:
    """Linear layers between these sizes, each followed by a ReLU."""
    return [layer for inner, outer in pairwise(sizes) for layer in (nn.Linear(inner, outer), nn.ReLU())]


def project(inner: int, width: int) -> nn.Sequential:
    """Last layers of an encoder: linear, LayerNorm, ReLU.

    LayerNorm brings the features of all modalities to one scale; without it plain SGD starts slowly.
    """
    return nn.Sequential(nn.Linear(inner, width), nn.LayerNorm(width), nn.ReLU())


def mlp(
    modality: Modality,
    width: int,
    *,
    hidden: Annotated[tuple[Count, ...], Field(description="units of each hidden layer")] = (128,),
) -> nn.Module:
    """Linear layers with ReLU on the flattened sample: feature vectors, or anything small.

    (batch, *shape) -> (batch, width). Absence: rows of absent samples are zero here and their features are discarded.
    """
    require_fit(modality, "mlp")
    sizes = (math.prod(modality.shape), *hidden)
    return nn.Sequential(nn.Flatten(), *layers(sizes), project(sizes[-1], width))


class Bag(nn.Module):
    """Mean of the embeddings of the tokens that are not padding."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (batch, length) of ids, 0 is padding -> (batch, width); zero for a text without tokens."""
        return mean_of_tokens(self.embedding(tokens), tokens != 0)


def mean_of_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """values (batch, length, width), mask (batch, length) bool -> mean over the true ones (batch, width), or zero."""
    return keep(values, mask).sum(-2) / mask.sum(-1, keepdim=True).clamp(min=1)


def bag(modality: Modality, width: int) -> nn.Module:
    """Mean of token embeddings; the order of the tokens does not count.

    (batch, length) of ids, 0 is padding -> (batch, width). Absence: an absent text is all padding here (features zero)
    and its features are discarded.
    """
    require_fit(modality, "bag")
    return Bag(modality.vocabulary, width)
