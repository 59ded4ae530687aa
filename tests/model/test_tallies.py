from __future__ import annotations

from functools import reduce

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from polyfed.model.tallies import Correlation, Mean


def pearson(prediction: list[float], target: list[float]) -> float | None:
    return Correlation.of(torch.tensor(prediction), torch.tensor(target)).result()


def noisy(rows: int = 40, entries: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(rows, entries, generator=generator)
    return target + torch.randn(rows, entries, generator=generator) * torch.tensor([0.1, 1.0, 10.0])[:entries], target


def test_a_mean_by_hand() -> None:
    both = Mean.of(torch.tensor([1.0, 2.0])) + Mean.of(torch.tensor([6.0]))
    assert both == Mean(9.0, 3.0)
    assert both.result() == 3.0
    assert (both + Mean(1.0, 1.0, undefined=1.0)).result() is None


def test_correlation_by_hand() -> None:
    # differences from the means: -1, 0, 1 and -1, 1, 0: joint 1, squares 2 and 2
    assert pearson([1, 2, 3], [4, 6, 5]) == pytest.approx(0.5)
    assert pearson([1, 2, 3], [-2, -4, -6]) == pytest.approx(-1)


def test_entries_are_averaged() -> None:
    prediction, target = torch.tensor([[1.0, 1], [2, 2], [3, 3]]), torch.tensor([[4.0, -2], [6, -4], [5, -6]])
    assert Correlation.of(prediction, target).result() == pytest.approx((0.5 - 1) / 2)


@pytest.mark.parametrize(
    ("prediction", "target"),
    [
        ([1.0, 2.0, 3.0], [0.1, 0.1, 0.1]),
        ([0.1] * 3, [1.0, 2.0, 3.0]),
        ([1.0], [2.0]),
        ([], []),
        ([0.1, 0.1, 0.1 + 2**-28], [1.0, 2.0, 3.0]),  # a last digit of rounding is no variation
        ([float("nan"), 1.0, 2.0], [1.0, 2.0, 3.0]),  # the error metrics tell of this
    ],
)
def test_without_variation_there_is_no_correlation(prediction: list[float], target: list[float]) -> None:
    assert pearson(prediction, target) is None


def test_an_entry_that_does_not_vary_is_not_counted() -> None:
    prediction, target = torch.tensor([[1.0, 7], [2, 7], [3, 7]]), torch.tensor([[4.0, 1], [6, 2], [5, 3]])
    assert Correlation.of(prediction, target).result() == pytest.approx(0.5)


@given(cuts=st.lists(st.integers(0, 40), max_size=6))
def test_correlation_adds_up_wherever_samples_are_cut(cuts: list[int]) -> None:
    prediction, target = noisy()
    parts = [torch.tensor_split(values, sorted(cuts)) for values in (prediction, target)]
    total = reduce(lambda one, other: one + other, map(Correlation.of, *parts))
    assert total.result() == pytest.approx(Correlation.of(prediction, target).result(), rel=1e-12)


@pytest.mark.parametrize("mean", [1e4, -1e6])
def test_a_large_mean_costs_no_digits(mean: float) -> None:
    generator = torch.Generator().manual_seed(1)
    pair = torch.randint(-50, 50, (2, 64), generator=generator)  # whole numbers: float32 holds them beside the mean
    expected = float(torch.corrcoef(pair.double())[0, 1])
    parts = [values.split(7) for values in (pair + mean).float()]
    total = reduce(lambda one, other: one + other, map(Correlation.of, *parts))
    assert total.result() == pytest.approx(expected, rel=1e-12)


@given(scale=st.floats(0.01, 100), shift=st.floats(-10, 10))
def test_scale_and_shift_are_irrelevant(scale: float, shift: float) -> None:
    prediction, target = (values.double() for values in noisy())
    moved = Correlation.of(prediction * scale + shift, target).result()
    assert moved == pytest.approx(Correlation.of(prediction, target).result(), rel=1e-9)


def test_correlation_agrees_with_torchmetrics() -> None:
    from torchmetrics.regression import PearsonCorrCoef

    prediction, target = noisy()
    reference = PearsonCorrCoef(num_outputs=3)(prediction, target).mean()
    assert Correlation.of(prediction, target).result() == pytest.approx(float(reference), rel=1e-5)
