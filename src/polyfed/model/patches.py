"""Images, spectrograms, sequences and vectors cut into patches, and patches put together again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

Pair = tuple[int, int]


def pair(size: int | Pair) -> Pair:
    """Return height and width; one number stands for both."""
    return (size, size) if isinstance(size, int) else size


def image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return (channels, height, width): (channels, time) is one row of pixels, (features,) one with one channel."""
    channels = shape[0] if len(shape) > 1 else 1
    return channels, shape[-2] if len(shape) > 2 else 1, shape[-1]


@dataclass(frozen=True)
class Patches:
    """How samples (channels, height, width) are cut: into patches of a size, in rows and columns.

    ``canvas`` (height, width), by default the sample's own, is what the sample is padded to, at the bottom and on the
    right, with zeros; a canvas that the patch does not divide is padded further.
    """

    shape: tuple[int, int, int]
    patch: Pair
    canvas: Pair | None = None

    @property
    def rows(self) -> int:
        """Return the number of patches from top to bottom."""
        return math.ceil((self.canvas or self.shape[1:])[0] / self.patch[0])

    @property
    def columns(self) -> int:
        """Return the number of patches from left to right."""
        return math.ceil((self.canvas or self.shape[1:])[1] / self.patch[1])

    @property
    def count(self) -> int:
        """Return the number of patches of a sample."""
        return self.rows * self.columns

    @property
    def values(self) -> int:
        """Return the number of values in a patch."""
        return self.shape[0] * self.patch[0] * self.patch[1]

    def cut(self, samples: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, patches, values), row by row."""
        below = self.rows * self.patch[0] - samples.shape[-2]
        beside = self.columns * self.patch[1] - samples.shape[-1]
        padded = functional.pad(samples, (0, beside, 0, below))
        cut = padded.reshape(*padded.shape[:2], self.rows, self.patch[0], self.columns, self.patch[1])
        return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def join(self, patches: Tensor) -> Tensor:
        """(batch, patches, values) -> (batch, channels, height, width); what would be padding is cut off."""
        channels, height, width = self.shape
        apart = patches.reshape(patches.shape[0], self.rows, self.columns, channels, *self.patch)
        whole = apart.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
        return whole[..., :height, :width]


def power_of_two(axes: Sequence[int], smallest: int, most: int) -> int:
    """Return the smallest power of two, from ``smallest`` on, as patch size along all axes with ``most`` patches."""
    size = smallest
    while math.prod(math.ceil(axis / size) for axis in axes) > most:
        size *= 2
    return size
