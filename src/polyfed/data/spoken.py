"""Square spectrograms of the Free Spoken Digit recordings, and their pairing with written digits of the same class."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from polyfed import rng
from polyfed.data.fsdd import TEST_TAKES, Clips
from polyfed.data.pairing import pair_by_class
from polyfed.data.spectrogram import fit_length, log_power, resize, unit_range

WINDOW, HOP = 256, 64  # samples: 32 ms every 8 ms at 8 kHz
CHUNK = 250  # clips at a time, so that the waveforms and full spectrograms are never all in memory


def square_spectrograms(read: Clips, size: int, noise_db: float | None, seed: int) -> Tensor:
    """Compute log-power spectrograms of all clips, (clips, 1, size, size) uint8, 0..255 for the range [0, 1].

    Each clip is cut or zero-padded to one second, white noise is added ``noise_db`` below the clip's mean power (None:
    no noise; drawn per clip from the seed), and the log power is resized bilinearly and stretched to [0, 1] by its own
    minimum and maximum. One of the 255 steps is about 0.3 dB.
    """
    waves = [wave for _, wave in read.named()]
    parts = []
    for start in range(0, len(waves), CHUNK):
        chosen = range(start, min(start + CHUNK, len(waves)))
        heard = torch.stack([recording(waves[i], read.sample_rate, noise_db, (seed, "noise", i)) for i in chosen])
        levels = resize(log_power(heard, WINDOW, HOP), (size, size))
        parts.append(unit_range(levels).mul_(255).round_().to(torch.uint8))
    return torch.cat(parts).unsqueeze(1)


def recording(wave: npt.NDArray[np.int16], length: int, noise_db: float | None, key: tuple[rng.Key, ...]) -> Tensor:
    """Return a 16-bit wave as float32 of full scale 1 and the given length, with noise drawn by the key."""
    clip = torch.from_numpy(wave.astype(np.float32) / 32768)
    heard = fit_length(clip, length)
    if noise_db is None:
        return heard
    power = clip.square().mean() / 10 ** (noise_db / 10)
    return heard + power.sqrt() * torch.randn(length, generator=rng.torch_generator(*key))


def pair_with_speech(read: Clips, digit: Tensor, test: bool, seed: int) -> Tensor:
    """Draw a clip of the same digit for each row, from takes 0-4 for test rows and from the others for training."""
    allowed = torch.from_numpy(np.flatnonzero((read.take < TEST_TAKES) == test))
    labels = torch.from_numpy(read.label).long()[allowed]
    draw = rng.numpy_generator(seed, "speech", "test" if test else "train")
    return allowed[pair_by_class(digit, labels, draw)]
