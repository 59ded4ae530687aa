"""The correlation within groups, by hand and where there is none."""

from __future__ import annotations

import math

import pytest

from polyfed.report.correlation import correlation_within

RISING = [("a", 1.0, 10.0), ("a", 2.0, 20.0), ("a", 3.0, 30.0)]
BENT = [("b", 1.0, 1.0), ("b", 2.0, 3.0), ("b", 3.0, 2.0)]
"""Deviations (-1, 0, 1) and (-1, 1, 0): their product is 1, either square 2, so the correlation is 1/2."""


def test_it_is_the_mean_over_groups() -> None:
    assert correlation_within(RISING) == pytest.approx(1.0)
    assert correlation_within(BENT) == pytest.approx(0.5)
    assert correlation_within([*RISING, *BENT]) == pytest.approx(0.75)


def test_a_trend_over_groups_does_not_count() -> None:
    """Both numbers grow from round to round, but within a round one falls as the other rises."""
    points = [(r, 10.0 * r + i, 10.0 * r - i) for r in range(5) for i in range(3)]
    assert correlation_within(points) == pytest.approx(-1.0)


def test_the_order_of_points_does_not_matter() -> None:
    points = [*RISING, *BENT]
    assert correlation_within(points[::-1]) == pytest.approx(correlation_within(points))


@pytest.mark.parametrize(
    "points",
    [
        [],
        [("a", 1.0, 2.0)],
        [("a", 1.0, 2.0), ("a", 2.0, 1.0)],
        [("a", 1.0, 2.0), ("a", 2.0, 3.0), ("b", 1.0, 2.0), ("b", 2.0, 3.0)],
        [("a", 1.0, float(i)) for i in range(5)],
        [("a", float(i), 0.0) for i in range(5)],
        [("a", float(i), 0.1 + i * 1e-17) for i in range(5)],
        [("a", float(i), 0.1 + i * 2e-16) for i in range(5)],
    ],
    ids=["none", "one point", "two points", "two in each group", "first constant", "second zero", "same", "rounding"],
)
def test_nothing_to_tell(points: list[tuple[str, float, float]]) -> None:
    assert correlation_within(points) is None


def test_groups_that_tell_nothing_are_left_out() -> None:
    small = [("c", 1.0, 5.0), ("c", 2.0, 1.0)]
    constant = [("d", 7.0, float(i)) for i in range(4)]
    assert correlation_within([*small, *BENT, *constant]) == pytest.approx(0.5)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_points_that_are_not_finite_are_left_out(odd: float) -> None:
    assert correlation_within([*BENT, ("b", odd, 1.0), ("b", 1.0, odd), ("b", odd, odd)]) == pytest.approx(0.5)
    assert correlation_within([("a", 1.0, 2.0), ("a", 2.0, 3.0), ("a", odd, 4.0)]) is None
    assert correlation_within([("a", odd, odd)] * 4) is None


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_very_small_and_large_numbers_are_compared_like_others(scale: float) -> None:
    assert correlation_within([(name, scale * one, other) for name, one, other in BENT]) == pytest.approx(0.5)


def test_numbers_too_far_apart_to_subtract_tell_nothing() -> None:
    assert correlation_within([("a", -1.7e308, 1.0), ("a", 0.0, 2.0), ("a", 1.7e308, 3.0)]) is None
