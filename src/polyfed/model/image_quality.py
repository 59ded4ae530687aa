"""How close generated pictures and spectrograms with values in [0, 1] come to their targets."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from polyfed.model.losses import per_sample

LEAST_ERROR = 1e-10
"""Floor of the mean squared error in PSNR, which is thus at most 100 dB; that of a perfect copy would be infinite."""
ROUNDING = 1e-6
"""How far a value may be outside [0, 1] for rounding, as from resizing."""

RADIUS, SIGMA = 5, 1.5
WINDOW = 2 * RADIUS + 1
"""Pixels across the window of SSIM."""
LUMINANCE, CONTRAST = 0.01**2, 0.03**2
SAMPLES_AT_ONCE = 16
"""SSIM takes so many samples at once: their intermediate values still fit in a processor's cache."""


def in_range(target: Tensor) -> Tensor:
    """Say which targets (samples, ...) lie in [0, 1] with all entries: (samples,) bool."""
    low, high = target.flatten(1).aminmax(dim=1)
    return (low >= -ROUNDING) & (high <= 1 + ROUNDING)


def fits_window(shape: tuple[int, ...]) -> bool:
    """Whether SSIM is defined for targets (channels, height, width): both sides take up its window of 11 pixels."""
    return len(shape) == 3 and min(shape[1:]) >= WINDOW


def peak_signal_to_noise(prediction: Tensor, target: Tensor) -> Tensor:
    """PSNR of every sample in dB: (samples, ...) twice -> (samples,) in double precision.

    -10 log10 of the mean squared error, for values in [0, 1]; predictions are clipped to it. At most 100 dB.
    """
    error = per_sample((prediction.double().clamp(0, 1) - target.double()).square())
    return -10 * error.clamp(min=LEAST_ERROR).log10()


def structural_similarity(prediction: Tensor, target: Tensor) -> Tensor:
    """SSIM of every sample: (samples, channels, height, width) twice -> (samples,) in double precision.

    Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity" (2004), with their Gaussian
    window of 11 x 11 pixels (σ 1.5) and their constants for values in [0, 1]. Predictions are clipped to [0, 1]. Beyond
    its border a picture is continued by its mirror image; the mean is over all pixels and channels. Both sides must be
    at least as long as the window.
    """
    height, width = (_window(side).to(target.device) for side in target.shape[-2:])
    parts = zip(*(torch.split(images, SAMPLES_AT_ONCE) for images in (prediction, target)), strict=True)
    return torch.cat([_similarity(one.double().clamp(0, 1), other.double(), height, width) for one, other in parts])


def _similarity(one: Tensor, other: Tensor, height: Tensor, width: Tensor) -> Tensor:
    raw = torch.stack((one, other, one * one + other * other, one * other))
    first, second, square, product = height @ raw @ width.T
    squares, means = first * first + second * second, first * second
    # rounding may leave the variances' sum just below zero
    variances, covariance = (square - squares).clamp(min=0), product - means
    luminance = (2 * means + LUMINANCE) / (squares + LUMINANCE)
    return per_sample(luminance * (2 * covariance + CONTRAST) / (variances + CONTRAST))


@lru_cache(maxsize=16)
def _window(side: int) -> Tensor:
    """Return the matrix (side, side) that takes the window's mean along one axis: a Gaussian falls apart by axes."""
    offsets = torch.arange(-RADIUS, RADIUS + 1)
    weights = torch.exp(-((offsets / SIGMA).double() ** 2) / 2)
    places = (torch.arange(side).unsqueeze(1) + offsets).abs()
    mirrored = torch.where(places < side, places, 2 * (side - 1) - places)
    matrix = torch.zeros(side, side, dtype=torch.float64)
    return matrix.scatter_add_(1, mirrored, (weights / weights.sum()).expand(side, -1))
