from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyfed.data.spectrogram import FLOOR, fit_length, log_mel, log_power, mel_filters, power, resize, unit_range


def tone(frequency: float, samples: int = 2048, level: float = 1.0) -> torch.Tensor:
    return level * torch.sin(2 * math.pi * frequency * torch.arange(samples) / 8000)[None]


def test_a_full_scale_tone_is_at_0_db_in_its_own_bin() -> None:
    spec = log_power(tone(1000), n_fft=256, hop=128)
    assert spec.shape == (1, 129, 15)  # 1 + (2048 - 256) // 128 frames
    assert (spec.argmax(1) == 32).all()  # 1000 Hz / (8000 Hz / 256)
    torch.testing.assert_close(spec[:, 32], torch.zeros(1, 15), atol=1e-3, rtol=0)
    torch.testing.assert_close(spec[:, 31], torch.full((1, 15), -6.02), atol=1e-2, rtol=0)  # Hann: half beside the peak


def test_a_tenth_of_the_amplitude_is_20_db_less() -> None:
    loud, soft = (log_power(tone(1000, level=level), 256, 128)[0, 32, 0] for level in (1.0, 0.1))
    assert (loud - soft).item() == pytest.approx(20, abs=1e-3)


def test_silence_is_at_the_floor() -> None:
    assert (log_power(torch.zeros(2, 300), 256, 128) == FLOOR).all()
    assert (log_mel(torch.zeros(2, 300), 8000, 256, 128, 32, floor=-60.0) == -60).all()


def test_an_impulse_has_the_same_power_at_every_frequency() -> None:
    wave = torch.zeros(1, 8)
    wave[0, 4] = 1  # the Hann window of 8 is 1 there and sums to 4: magnitude 1 * 2 / 4
    torch.testing.assert_close(power(wave, 8, 8), torch.full((1, 5, 1), 0.25))


def test_mel_bands_follow_the_pitch() -> None:
    bands = [int(log_mel(tone(f), 8000, 256, 128, 32)[0, :, 3].argmax()) for f in (200, 500, 1000, 2000, 3500)]
    assert bands == sorted(set(bands))
    filters = mel_filters(8000, 256, 32)
    assert filters.shape == (32, 129)
    assert filters.min() == 0
    assert filters.max() <= 1


def test_neighbouring_mel_triangles_add_up_to_one() -> None:
    filters = mel_filters(16000, 4096, 10)
    inside = filters.sum(0)[filters[0].argmax() + 1 : filters[-1].argmax()]
    torch.testing.assert_close(inside, torch.ones_like(inside))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="waves of 200 samples are shorter than one frame of 256"):
        log_power(torch.zeros(1, 200), 256, 128)
    with pytest.raises(ValueError, match="100 mel bins are too many for 33 frequencies up to 4000 Hz"):
        log_mel(torch.zeros(1, 200), 8000, 64, 32, 100)


def test_lengths_are_cut_and_filled_at_the_end() -> None:
    wave = torch.tensor([1.0, 2.0, 3.0])
    assert fit_length(wave, 5).tolist() == [1, 2, 3, 0, 0]
    assert fit_length(wave, 2).tolist() == [1, 2]
    assert fit_length(wave[None], 3).tolist() == [[1, 2, 3]]


def test_resizing_keeps_constants_and_averages_what_shrinks() -> None:
    assert resize(torch.full((2, 5, 7), 3.0), (4, 9)).shape == (2, 4, 9)
    torch.testing.assert_close(resize(torch.full((1, 5, 7), 3.0), (2, 2)), torch.full((1, 2, 2), 3.0))
    stripes = torch.tensor([[[0.0, 1.0] * 8]])
    assert resize(stripes, (1, 2)).flatten().tolist() == pytest.approx([0.5, 0.5], abs=0.1)


def test_the_range_is_stretched_per_sample() -> None:
    spec = torch.tensor([[[-80.0, 0.0], [-40.0, -20.0]], [[5.0, 5.0], [5.0, 5.0]]])
    assert unit_range(spec).tolist() == [[[0, 1], [0.5, 0.75]], [[0, 0], [0, 0]]]


@given(st.integers(1, 400), st.integers(1, 64), st.integers(0, 2**32 - 1))
def test_features_are_finite_and_in_range(samples: int, hop: int, seed: int) -> None:
    noise = torch.randn(2, 64 + samples, generator=torch.Generator().manual_seed(seed))
    spec = log_mel(noise, 8000, 64, hop, 8)
    assert spec.shape == (2, 8, 1 + samples // hop)
    assert (spec >= FLOOR).all()
    unit = unit_range(spec)
    assert unit.amin() == 0
    assert unit.amax() == 1
