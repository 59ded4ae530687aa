from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from polyfed.report.convergence import convergence_rounds, rounds_to, smoothed
from polyfed.report.history import Curve


def curve(*values: float) -> Curve:
    return Curve(tuple(range(2, 2 * len(values) + 2, 2)), values)


def test_values_are_means_of_the_last_five() -> None:
    assert smoothed(curve(1, 2, 3, 4, 5, 11)).values == (1, 1.5, 2, 2.5, 3, 5)


def test_rounds_are_those_of_the_evaluations() -> None:
    rising = curve(0, 0, 1, 1, 1, 1, 1, 1)
    assert rounds_to(rising, 0.6, window=5) == 10
    assert rounds_to(rising, 0.6, window=1) == 6
    assert rounds_to(rising, 1.1) is None


def test_convergence_is_at_98_percent_of_the_runs_own_maximum() -> None:
    assert convergence_rounds(curve(0.5, 0.97, 0.99, 1.0, 0.2), window=1) == 6
    assert convergence_rounds(curve(0.3)) == 2
    assert convergence_rounds(curve()) is None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_a_run_always_converges_to_itself(values: list[float]) -> None:
    found = convergence_rounds(curve(*values))
    assert found is not None and 2 <= found <= 2 * len(values)
