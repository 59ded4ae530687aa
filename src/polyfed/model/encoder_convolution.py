"""Convolutional encoders: ``cnn`` for images and spectrograms, ``cnn1d`` for sensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from polyfed.data.schema import Modality
from polyfed.model.encoders import Count, project, require_fit

CONVOLUTIONS: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d}
POOLINGS: dict[int, Callable[..., nn.Module]] = {1: nn.AvgPool1d, 2: nn.AvgPool2d}

# Channels of the stages unless the user chooses: as many of these as the input's size asks for.
CHANNELS = (16, 32, 64, 64)


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm (Wu and He 2018) of four groups, or one where four do not divide the channels or would be tiny."""
    return nn.GroupNorm(4 if channels % 4 == 0 and channels >= 16 else 1, channels)


def halvings(size: int, grid: int) -> int:
    """How often to halve (rounding up) a size to bring it down to the grid."""
    return max(0, math.ceil(math.log2(size / grid)))


def default_channels(size: Sequence[int], grid: int) -> tuple[int, ...]:
    """Two stages for small inputs (up to 32 pixels at a grid of 4), then one more each time the size doubles."""
    stages = max(halvings(axis, grid) for axis in size) - 1
    return CHANNELS[: min(max(stages, 2), len(CHANNELS))]


class Convolutional(nn.Module):
    """Stages of convolution, GroupNorm and ReLU; then averages on a small grid and a linear layer.

    An axis is halved by the last stages, as often as it takes to bring it down to the grid or there are stages; what is
    left is averaged. Striding and averaging, unlike max pooling, give the same bits on every run on a GPU.
    """

    def __init__(self, shape: Sequence[int], width: int, channels: Sequence[int], kernel: int, grid: int) -> None:
        super().__init__()
        inner, *size = shape
        self.stages = nn.Sequential()
        for stage, outer in enumerate(channels):
            stride = [2 if len(channels) - stage <= halvings(axis, grid) else 1 for axis in shape[1:]]
            self.stages.append(self._stage(inner, outer, kernel, stride))
            inner, size = outer, [math.ceil(axis / by) for axis, by in zip(size, stride, strict=True)]
        window = [math.ceil(axis / grid) for axis in size]
        cells = math.prod(math.ceil(axis / by) for axis, by in zip(size, window, strict=True))
        self.pool = POOLINGS[len(size)](tuple(window), ceil_mode=True)
        self.project = project(inner * cells, width)

    @staticmethod
    def _stage(inner: int, outer: int, kernel: int, stride: Sequence[int]) -> nn.Sequential:
        convolution = CONVOLUTIONS[len(stride)](inner, outer, kernel, tuple(stride), padding=kernel // 2, bias=False)
        return nn.Sequential(convolution, group_norm(outer), nn.ReLU())

    def forward(self, values: Tensor) -> Tensor:
        """values (batch, channels, *size) -> (batch, width)."""
        features: Tensor = self.project(self.pool(self.stages(values)).flatten(1))
        return features


Channels = Annotated[
    tuple[Count, ...] | None,
    Field(min_length=1, description="channels of each stage; by default two to four stages, by the size of the input"),
]


def cnn(
    modality: Modality,
    width: int,
    *,
    channels: Channels = None,
    grid: Annotated[int, Field(ge=1, description="the final map is averaged to at most grid x grid cells")] = 4,
) -> nn.Module:
    """Small convolutional network with GroupNorm for images and spectrograms of any size.

    (batch, channels, height, width) -> (batch, width). Absence: rows of absent samples are zero here and their
    features are discarded.
    """
    require_fit(modality, "cnn")
    chosen = channels or default_channels(modality.shape[1:], grid)
    return Convolutional(modality.shape, width, chosen, kernel=3, grid=grid)


def cnn1d(
    modality: Modality,
    width: int,
    *,
    channels: Channels = None,
    grid: Annotated[int, Field(ge=1, description="the final map is averaged to at most this many time cells")] = 4,
) -> nn.Module:
    """Small convolutional network over time with GroupNorm, for sensors.

    (batch, channels, time) -> (batch, width). Absence: rows of absent samples are zero here and their features are
    discarded.
    """
    require_fit(modality, "cnn1d")
    chosen = channels or default_channels(modality.shape[1:], grid)
    return Convolutional(modality.shape, width, chosen, kernel=5, grid=grid)
