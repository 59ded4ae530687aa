"""Spectrograms of short sound clips, in torch only.

Waves are float tensors of full scale 1 (16-bit samples divided by 32768). Levels are decibels relative to a sine of
full scale, so a level is about 0 at the loudest and ``floor`` at and below the softest that is told apart.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

FLOOR = -80.0  # dB; 16-bit sound spans about 96 dB, and its last bits are mostly noise


def log_power(waves: Tensor, n_fft: int, hop: int, *, floor: float = FLOOR) -> Tensor:
    """Power spectrogram in decibels: waves (N, T) -> (N, n_fft // 2 + 1, frames), values at least ``floor``.

    Frame j is the Hann-windowed span ``[j * hop, j * hop + n_fft)``; nothing is padded, so
    ``frames = 1 + (T - n_fft) // hop``. Raises ValueError where a wave is shorter than one frame.
    """
    return decibels(power(waves, n_fft, hop), floor)


def log_mel(waves: Tensor, sample_rate: int, n_fft: int, hop: int, bins: int, *, floor: float = FLOOR) -> Tensor:
    """Mel spectrogram in decibels: waves (N, T) -> (N, bins, frames), values at least ``floor``.

    Framing is that of ``log_power``; the power is summed under the triangles of ``mel_filters``.
    """
    filters = mel_filters(sample_rate, n_fft, bins).to(waves)
    return decibels(torch.einsum("bf,nft->nbt", filters, power(waves, n_fft, hop)), floor)


def power(waves: Tensor, n_fft: int, hop: int) -> Tensor:
    """Squared magnitude per frequency and frame, (N, n_fft // 2 + 1, frames); 1 at the peak of a full-scale sine."""
    if waves.shape[-1] < n_fft:
        raise ValueError(f"waves of {waves.shape[-1]} samples are shorter than one frame of {n_fft}")
    window = torch.hann_window(n_fft, dtype=waves.dtype, device=waves.device)
    spectrum: Tensor = torch.fft.rfft(waves.unfold(-1, n_fft, hop) * window)
    return (spectrum.abs() * (2 / window.sum())).square().transpose(1, 2)


def decibels(values: Tensor, floor: float = FLOOR) -> Tensor:
    """Return ``10 log10`` of powers, at least ``floor``."""
    return 10 * torch.log10(values.clamp_min(10 ** (floor / 10)))


def mel_filters(sample_rate: int, n_fft: int, bins: int) -> Tensor:
    """Triangles of height 1, evenly spaced in mel from 0 Hz to half the sample rate, (bins, n_fft // 2 + 1).

    The scale is ``mel = 2595 log10(1 + f / 700)``. Raises ValueError where a triangle would contain no frequency.
    """
    highest = 2595 * torch.log10(torch.tensor(1 + sample_rate / 2 / 700, dtype=torch.float64))
    corners = 700 * (10 ** (torch.linspace(0, 1, bins + 2, dtype=torch.float64) * highest / 2595) - 1)
    frequencies = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * sample_rate / n_fft
    left, centre, right = (corners[k : k + bins, None] for k in range(3))
    rising = (frequencies - left) / (centre - left)
    falling = (right - frequencies) / (right - centre)
    filters = torch.minimum(rising, falling).clamp_min(0)
    if bool((filters.sum(1) == 0).any()):
        raise ValueError(f"{bins} mel bins are too many for {n_fft // 2 + 1} frequencies up to {sample_rate / 2:g} Hz")
    return filters.to(torch.float32)


def fit_length(wave: Tensor, length: int) -> Tensor:
    """Make the last axis ``length`` long: zeros are added, or samples cut off, at the end."""
    return functional.pad(wave, (0, length - wave.shape[-1]))


def resize(spec: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale spectrograms (N, bins, frames) to (N, *size): bilinear, smoothed where they shrink."""
    scaled: Tensor = functional.interpolate(spec[:, None], size=size, mode="bilinear", antialias=True)
    return scaled[:, 0]


def unit_range(spec: Tensor) -> Tensor:
    """Stretch each sample (first axis) to [0, 1] by its own minimum and maximum; a constant sample becomes 0."""
    flat = spec.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    span = torch.where(high > low, high - low, torch.ones_like(high))
    return ((flat - low) / span).view_as(spec)
