"""Pictures of scenes, pixel by pixel, without smoothed edges."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from polyfed.data.scenes import SIDE, Scene

LEVELS: Mapping[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "green": (30, 160, 40),
    "blue": (40, 70, 230),
    "yellow": (240, 220, 40),
    "purple": (150, 40, 190),
    "orange": (250, 130, 10),
    "black": (0, 0, 0),
    "gray": (120, 120, 120),
    "white": (255, 255, 255),
    "brown": (110, 70, 40),
}
"""Red, green and blue of every colour, from 0 to 255."""


def picture(scene: Scene) -> Tensor:
    """Draw a scene: (3, SIDE, SIDE) bytes."""
    pixels = np.empty((3, SIDE, SIDE), dtype=np.uint8)
    pixels[:] = _levels(scene.background)
    for thing in scene.objects:
        patch = pixels[:, thing.y : thing.y + thing.across, thing.x : thing.x + thing.across]
        np.copyto(patch, _levels(thing.colour), where=mask(thing.shape, thing.across))
    return torch.from_numpy(pixels)


@cache
def mask(shape: str, across: int) -> npt.NDArray[np.bool_]:
    """Return the pixels (across, across) that a shape covers; it touches all four sides of the square."""
    y, x = np.indices((across, across)) - (across - 1) / 2
    squared = x * x + y * y
    # a little less than the radius, so that small discs lose more than their corners
    disc = squared <= across * across / 4 - across / 8
    shapes: dict[str, npt.NDArray[np.bool_]] = {
        "circle": disc,
        "square": np.ones_like(disc),
        "triangle": np.abs(x) <= (y + (across + 1) / 2) / 2,
        "cross": np.minimum(np.abs(x), np.abs(y)) <= across / 6,
        "ring": disc & (squared >= across * across / 16),
    }
    return shapes[shape]


@cache
def _levels(colour: str) -> npt.NDArray[np.uint8]:
    return np.array(LEVELS[colour], dtype=np.uint8)[:, None, None]
