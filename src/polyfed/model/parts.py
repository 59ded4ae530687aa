"""Registries of the parts the ``modular`` model is made of, and how a user's choice becomes a part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import nn

from polyfed.model import encoder_convolution, encoder_transformer, encoders, fusion, heads
from polyfed.registry import Registry

T = TypeVar("T")
Choice = Mapping[str, object]
"""``name`` of a registered builder and its options, as in ``{"name": "cnn", "channels": [16, 32]}``."""

# Called as ``builder(modality, width, **options)``: a module (batch, *shape) -> (batch, width).
ENCODERS: Registry[nn.Module] = Registry("encoder")
ENCODERS.add("cnn", encoder_convolution.cnn)
ENCODERS.add("transformer", encoder_transformer.transformer)
ENCODERS.add("cnn1d", encoder_convolution.cnn1d)
ENCODERS.add("mlp", encoders.mlp)
ENCODERS.add("bag", encoders.bag)
ENCODERS.add("text-transformer", encoder_transformer.text_transformer)

# Called as ``builder(features, **options)`` with the width of the features.
FUSIONS: Registry[fusion.Fusion] = Registry("fusion")
FUSIONS.add("concat", fusion.concat)
FUSIONS.add("attention", fusion.attention)

# Called as ``builder(task, width, **options)``: a module (batch, width) -> (batch, classes) or (batch, *shape).
HEADS: Registry[nn.Module] = Registry("head")
HEADS.add("linear", heads.linear)
HEADS.add("mlp", heads.mlp)
HEADS.add("decoder", heads.decoder)


def build(registry: Registry[T], choice: Choice, default: str, place: str, *context: object) -> T:
    """Build what the user chose; errors name the place in the experiment and the choices."""
    options = {key: value for key, value in choice.items() if key != "name"}
    return registry.build(str(choice.get("name", default)), options, *context, place=place)
