"""Heads: from the fused vector to the prediction of one task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from polyfed.data.schema import Task, TaskKind
from polyfed.errors import UserError
from polyfed.model.encoder_convolution import group_norm
from polyfed.model.encoders import Count, layers

# Heads that fit a kind of task; the first is the default.
FITTING: dict[TaskKind, tuple[str, ...]] = {
    "classification": ("linear", "mlp"),
    "regression": ("linear", "mlp"),
    "generation": ("decoder", "mlp", "linear"),
}

# The decoder doubles an axis from at most this many cells up to the target's size.
START = 7


def default_head(task: Task) -> str:
    """Return the name of the head a task gets unless the user chooses another."""
    return FITTING[task.kind][0]


def prediction_shape(task: Task) -> tuple[int, ...]:
    """Shape of one prediction: the logits of a classification, otherwise the shape of the target."""
    return (task.classes,) if task.kind == "classification" else task.shape


class LinearHead(nn.Linear):
    """One linear layer, its output in the shape of the prediction."""

    def __init__(self, width: int, shape: Sequence[int]) -> None:
        super().__init__(width, math.prod(shape))
        self.shape = tuple(shape)

    def forward(self, input: Tensor) -> Tensor:
        """(batch, width) -> (batch, *shape)."""
        return super().forward(input).reshape(input.shape[0], *self.shape)


def linear(task: Task, width: int) -> nn.Module:
    """One linear layer: logits of a classification, values of a regression (or of a small generation).

    (batch, width) -> (batch, classes) or (batch, *shape).
    """
    return LinearHead(width, prediction_shape(task))


def mlp(
    task: Task,
    width: int,
    *,
    hidden: Annotated[tuple[Count, ...], Field(description="units of each hidden layer")] = (64,),
) -> nn.Module:
    """Hidden layers with ReLU, then a linear layer.

    (batch, width) -> (batch, classes) or (batch, *shape).
    """
    sizes = (width, *hidden)
    return nn.Sequential(*layers(sizes), LinearHead(sizes[-1], prediction_shape(task)))


class Upsampling(nn.Module):
    """Enlarge a map to a size by repeating the nearest cells, then convolution, GroupNorm and ReLU."""

    def __init__(self, inner: int, outer: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.convolution = nn.Conv2d(inner, outer, 3, padding=1, bias=False)
        self.norm = group_norm(outer)

    def forward(self, values: Tensor) -> Tensor:
        """(batch, inner, *any) -> (batch, outer, *size)."""
        return functional.relu(self.norm(self.convolution(functional.interpolate(values, size=self.size))))


def decoder_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Sizes of the decoder's maps, smallest first, the target's last; at least one step."""
    sizes = [(height, width)]
    while len(sizes) == 1 or max(sizes[-1]) > START:
        # A long axis is halved until it is as short as the others; a target that is small all over, once.
        limit = START if max(sizes[-1]) > START else 0
        height, width = (math.ceil(axis / 2) if axis > limit else axis for axis in sizes[-1])
        sizes.append((height, width))
    return sizes[::-1]


def decoder(
    task: Task,
    width: int,
    *,
    channels: Annotated[
        int, Field(ge=1, description="channels of the smallest map; halved at each step down to 8")
    ] = 32,
) -> nn.Module:
    """Draws an image or spectrogram: a small map, enlarged step by step with convolutions and GroupNorm.

    (batch, width) -> (batch, *task.shape), any size. No sigmoid at the end: values are as the target has them.
    """
    if task.kind != "generation" or len(task.shape) != 3:
        raise UserError(
            f"task {task.name!r}: head 'decoder' draws images and spectrograms, not {task.kind} of shape {task.shape}. "
            f"Choices: {', '.join(name for name in FITTING[task.kind] if name != 'decoder')}"
        )
    sizes = decoder_sizes(*task.shape[1:])
    inner = channels
    drawing = nn.Sequential(LinearHead(width, (inner, *sizes[0])), nn.ReLU())
    for size in sizes[1:]:
        outer = max(8, inner // 2)
        drawing.append(Upsampling(inner, outer, size))
        inner = outer
    return drawing.append(nn.Conv2d(inner, task.shape[0], 3, padding=1))
