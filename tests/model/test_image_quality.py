from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyfed.model.image_quality import fits_window, in_range, peak_signal_to_noise, structural_similarity


def pictures(*shape: int, seed: int = 0, noise: float = 0.2) -> tuple[Tensor, Tensor]:
    """Targets in [0, 1] and predictions about them, some beyond that range."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(shape, generator=generator)
    return target + noise * torch.randn(shape, generator=generator), target


def test_noise_by_hand() -> None:
    target = torch.tensor([[0.5, 0.5], [0.0, 1.0], [0.0, 0.0]])
    prediction = torch.tensor([[0.6, 0.4], [-3.0, 7.0], [1.0, 1.0]])
    # errors 0.01, none once clipped (at most 100 dB), 1
    assert peak_signal_to_noise(prediction, target).tolist() == pytest.approx([20, 100, 0], abs=1e-5)


def test_similarity_of_even_pictures_by_hand() -> None:
    # without variance what is left compares the means: (2 · 0.5 · 0.25 + 0.0001) / (0.25 + 0.0625 + 0.0001)
    found = structural_similarity(torch.full((1, 1, 11, 12), 0.5), torch.full((1, 1, 11, 12), 0.25))
    assert found.tolist() == pytest.approx([0.2501 / 0.3126], rel=1e-12)


def test_a_copy_is_perfect() -> None:
    _, target = pictures(3, 2, 12, 15)
    assert structural_similarity(target, target).tolist() == pytest.approx([1, 1, 1], rel=1e-12)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 11, 17), (1, 40, 12)])
def test_agreement_with_torchmetrics(shape: tuple[int, ...]) -> None:
    from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

    prediction, target = pictures(20, *shape)
    similarity = StructuralSimilarityIndexMeasure(data_range=(0.0, 1.0))(prediction, target)
    assert float(structural_similarity(prediction, target).mean()) == pytest.approx(float(similarity), abs=1e-6)
    noise = PeakSignalNoiseRatio(data_range=(0.0, 1.0), reduction="elementwise_mean", dim=(1, 2, 3))(prediction, target)
    assert float(peak_signal_to_noise(prediction, target).mean()) == pytest.approx(float(noise), rel=1e-5)


@settings(max_examples=25)
@given(seed=st.integers(0, 999), noise=st.floats(0, 5))
def test_bounds(seed: int, noise: float) -> None:
    prediction, target = pictures(2, 1, 11, 13, seed=seed, noise=noise)
    similarity, ratio = structural_similarity(prediction, target), peak_signal_to_noise(prediction, target)
    assert ((similarity >= -1) & (similarity <= 1 + 1e-12)).all()
    assert ((ratio >= 0) & (ratio <= 100 + 1e-12)).all()


def test_more_noise_is_worse() -> None:
    worse = [pictures(4, 1, 16, 16, noise=noise) for noise in (0.05, 0.2, 0.6)]
    for measure in (structural_similarity, peak_signal_to_noise):
        values = [float(measure(*pair).mean()) for pair in worse]
        assert values == sorted(values, reverse=True)


def test_similarity_is_symmetric_and_blind_to_transposition() -> None:
    prediction, target = (values.clamp(0, 1) for values in pictures(3, 1, 14, 20))
    found = structural_similarity(prediction, target)
    torch.testing.assert_close(structural_similarity(target, prediction), found)
    torch.testing.assert_close(structural_similarity(prediction.mT, target.mT), found)


def test_each_sample_is_judged_by_itself() -> None:
    prediction, target = pictures(37, 1, 12, 12)  # more than are taken at once
    whole = structural_similarity(prediction, target)
    alone = torch.cat([structural_similarity(prediction[k : k + 1], target[k : k + 1]) for k in range(37)])
    torch.testing.assert_close(whole, alone, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("shape", "fits"), [((1, 11, 11), True), ((1, 10, 28), False), ((1, 28, 10), False), ((28, 28), False), ((), False)]
)
def test_the_window_must_fit(shape: tuple[int, ...], fits: bool) -> None:
    assert fits_window(shape) is fits


def test_range() -> None:
    target = torch.tensor([[0.0, 1.0], [0.0, 1.0 + 1e-7], [-0.01, 0.5], [0.5, 1.01], [0.5, torch.nan]])
    assert in_range(target).tolist() == [True, True, False, False, False]
