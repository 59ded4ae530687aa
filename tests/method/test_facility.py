"""Facility location and the two-sided choice of BMSFed, held against brute force and against each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from polyfed.method.facility import (
    ConflictRule,
    Distances,
    Draw,
    balanced_greedy,
    best,
    cost,
    enough,
    lazy_greedy,
    nearest_yet,
    represented,
    stochastic_greedy,
)

RULES: tuple[ConflictRule, ...] = ("hybrid", "slides_literal", "code")


def matrix(rng: np.random.Generator, count: int) -> Distances:
    """Distances between random points of a plane."""
    points = rng.normal(size=(count, 2))
    return np.asarray(np.linalg.norm(points[:, None] - points[None], axis=2))


def without(distances: Distances, *places: int) -> Distances:
    """Make clients unknown."""
    changed = distances.copy()
    changed[list(places), :] = changed[:, list(places)] = np.nan
    return changed


def drawing(seed: int) -> Draw:
    rng = np.random.default_rng(seed)

    def draw(places: Sequence[int], count: int) -> list[int]:
        return [places[i] for i in rng.choice(len(places), count, replace=False).tolist()]

    return draw


def all_of(places: Sequence[int], count: int) -> Sequence[int]:
    return places


def plain_greedy(distances: Distances, size: int) -> list[int]:
    """Greedy as it is written: at every step the client that makes the cost smallest, ties to the lowest."""
    chosen: list[int] = []
    while len(chosen) < size:
        left = [place for place in range(len(distances)) if place not in chosen]
        chosen.append(min(left, key=lambda place: (cost(distances, [*chosen, place]), place)))
    return chosen


def choose(
    whole: Distances,
    single: Distances,
    ratios: NDArray[np.float64],
    size: int,
    *,
    threshold: float = 1.5,
    rule: ConflictRule = "hybrid",
    candidates: int | None = None,
    seed: int = 0,
    share_cover: bool = True,
) -> tuple[list[int], list[int]]:
    count = candidates or enough(len(whole), size)
    return balanced_greedy(
        whole,
        single,
        ratios,
        size,
        threshold=threshold,
        candidates=count,
        draw=drawing(seed),
        rule=rule,
        share_cover=share_cover,
    )


# ------------------------------------------------------------------------------------------------ greedy


@pytest.mark.parametrize("seed", range(40))
def test_greedy_reaches_its_share_of_the_best_gain_and_gains_shrink(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, size = int(rng.integers(4, 11)), int(rng.integers(1, 5))
    distances = rng.random((count, count)) if seed % 2 else matrix(rng, count)
    np.fill_diagonal(distances, 0)
    top = count * distances.max()
    optimum = top - min(cost(distances, chosen) for chosen in combinations(range(count), size))
    chosen = lazy_greedy(distances, size)
    assert top - cost(distances, chosen) >= (1 - 1 / math.e) * optimum - 1e-9
    costs = [cost(distances, chosen[:number]) for number in range(1, size + 1)]
    gains = -np.diff([top, *costs])
    assert (gains >= -1e-9).all()
    assert (np.diff(gains) <= 1e-9).all()


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_lazy_greedy_is_plain_greedy(count: int, size: int, seed: int, largest: int) -> None:
    """Whole numbers, so that sums are exact and many candidates are equally good; some clients are unknown."""
    rng = np.random.default_rng(seed)
    distances = rng.integers(0, largest + 1, (count, count)).astype(np.float64)
    np.fill_diagonal(distances, 0)
    distances = without(distances, *np.flatnonzero(rng.random(count) < 0.2).tolist())
    assert lazy_greedy(distances, size) == plain_greedy(distances, min(size, count))
    assert stochastic_greedy(distances, size, count, all_of) == plain_greedy(distances, min(size, count))


def test_by_hand() -> None:
    """Three near one another, two more near each other: first the middle of the three, then one of the two."""
    places = np.array([0.0, 1.0, 2.0, 10.0, 11.0])
    distances = np.abs(places[:, None] - places[None])
    assert cost(distances, [1]) == 1 + 1 + 9 + 10
    assert lazy_greedy(distances, 2) == [2, 3]
    assert cost(distances, [2, 3]) == 2 + 1 + 0 + 0 + 1
    assert represented(distances, [2, 3]) == [3, 2]
    assert represented(without(distances, 0), [2, 3]) == [2, 2]
    assert represented(without(distances, 0), [0, 3]) == [1, 4]
    assert represented(np.zeros((3, 3)), [1, 2]) == [2, 1]
    assert best(distances, nearest_yet(5), [4, 3]) == 3
    assert best(np.zeros((5, 5)), nearest_yet(5), [4, 3, 2]) == 2


def test_as_many_candidates_as_the_sheet_says() -> None:
    assert [enough(20, 5), enough(100, 5), enough(1000, 10)] == [5, 10, 100]


def test_candidates_are_drawn_anew_from_those_that_are_left() -> None:
    seen: list[Sequence[int]] = []

    def draw(places: Sequence[int], count: int) -> Sequence[int]:
        seen.append(list(places))
        return places[:count]

    chosen = stochastic_greedy(matrix(np.random.default_rng(0), 7), 4, 5, draw)
    assert [len(places) for places in seen] == [7, 6, 5, 4]
    for number, places in enumerate(seen):
        assert places == [place for place in range(7) if place not in chosen[:number]]


@pytest.mark.parametrize("unknown", [[0], [0, 1, 4], [0, 1, 2, 3, 4, 5]])
def test_clients_of_which_nothing_is_known_come_last(unknown: list[int]) -> None:
    distances = without(matrix(np.random.default_rng(2), 6), *unknown)
    for chosen in (lazy_greedy(distances, 6), stochastic_greedy(distances, 6, 6, all_of)):
        assert sorted(chosen) == list(range(6))
        assert set(chosen[6 - len(unknown) :]) == set(unknown)
    multi, uni = choose(distances, distances, np.full(6, 9.0), 6, candidates=6, rule="code")
    assert sorted([*multi, *uni]) == list(range(6))
    if len(unknown) < 6:
        assert multi[:1] + uni[:1] != [unknown[0]]


# ------------------------------------------------------------------------------------------------ BMSFed


@pytest.mark.parametrize("rule", RULES)
def test_sets_are_disjoint_and_of_the_right_size(rule: ConflictRule) -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        count, size = int(rng.integers(2, 12)), int(rng.integers(1, 14))
        whole, single = matrix(rng, count), matrix(rng, count)
        threshold = float(rng.choice([0, 0.5, 1, 1.5, 3, math.inf]))
        before = whole.copy(), single.copy()
        multi, uni = choose(
            whole, single, rng.lognormal(0.3, 0.4, count), size, threshold=threshold, rule=rule, seed=seed
        )
        assert len(set(multi) | set(uni)) == len(multi) + len(uni) == min(size, count)
        assert np.array_equal(whole, before[0]) and np.array_equal(single, before[1])


@pytest.mark.parametrize("rule", ["hybrid", "code"])
def test_with_nobody_above_the_threshold_it_is_divfl(rule: ConflictRule) -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        count, size = int(rng.integers(3, 30)), int(rng.integers(1, 8))
        whole, single, ratios = matrix(rng, count), matrix(rng, count), rng.uniform(0.2, 1.5, count)
        candidates = enough(count, min(size, count))
        expected = stochastic_greedy(whole, size, candidates, drawing(seed))
        assert choose(whole, single, ratios, size, rule=rule, candidates=candidates, seed=seed) == (expected, [])


def mean_alone(threshold: float, rule: ConflictRule) -> float:
    found = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        whole, single = matrix(rng, 20), matrix(rng, 20)
        ratios = rng.lognormal(0.3, 0.4, 20)
        found.append(len(choose(whole, single, ratios, 5, threshold=threshold, rule=rule, candidates=8, seed=seed)[1]))
    return float(np.mean(found))


@pytest.mark.parametrize("rule", RULES)
def test_a_higher_threshold_trains_fewer_alone(rule: ConflictRule) -> None:
    means = [mean_alone(threshold, rule) for threshold in (0, 0.5, 1, 1.5, 2, 3, math.inf)]
    assert all(later <= earlier for earlier, later in pairwise(means))
    assert means[-1] == 0
    assert (means[0] == 5) == (rule == "code")


def test_where_the_best_candidates_are_one_hybrid_has_it_take_part_with_everything() -> None:
    distances = matrix(np.random.default_rng(1), 12)
    assert choose(distances, distances, np.full(12, 9.0), 5)[1] == []
    assert choose(distances, distances, np.full(12, 9.0), 5, rule="code")[0] == []


# The first cost is least at client 0, the second at client 1.
FIRST = np.array([[0.0, 1, 1], [1, 0, 5], [1, 5, 0]])
SECOND = np.array([[0.0, 1, 5], [1, 0, 1], [5, 1, 0]])


@pytest.mark.parametrize(
    ("rule", "ratio", "expected"),
    [
        ("hybrid", 2.0, ([], [1])),
        ("slides_literal", 2.0, ([], [1])),
        ("code", 2.0, ([], [1])),
        ("hybrid", 1.5, ([0], [])),
        ("slides_literal", 1.5, ([1], [])),
        ("code", 1.5, ([0], [])),
    ],
)
def test_conflict_rules_by_hand(rule: ConflictRule, ratio: float, expected: tuple[list[int], list[int]]) -> None:
    assert choose(FIRST, SECOND, np.array([9.0, ratio, 9.0]), 1, rule=rule, candidates=3) == expected


def test_multi_modal_participants_cover_the_weak_modality_if_asked_to() -> None:
    """Clients 0 and 1 are alike in the weak modality. Once 0 takes part with everything, 1 adds nothing there.

    Its cover not shared, the second cost is still that of the empty set, for which client 1 is best.
    """
    whole = np.array([[0.0, 2, 2, 2], [2, 0, 9, 9], [2, 9, 0, 9], [2, 9, 9, 0]])
    single = np.array([[0.0, 0, 4, 5], [0, 0, 3, 4], [4, 3, 0, 9], [5, 4, 9, 0]])
    ratios = np.array([1.0, 1.0, 9.0, 9.0])
    shared = choose(whole, single, ratios, 2, candidates=4)
    assert shared == ([0], [3])
    assert choose(whole, single, ratios, 2, candidates=4, share_cover=False) == ([0, 1], [])


def test_only_owners_of_the_weak_modality_train_it_alone() -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        whole, single = matrix(rng, 10), without(matrix(rng, 10), 0, 3, 4)
        multi, uni = choose(whole, single, np.full(10, 9.0), 6, rule="code", seed=seed)
        assert len(multi) + len(uni) == 6
        assert not {0, 3, 4} & set(uni)
    nobody = without(matrix(rng, 10), *range(10))
    assert choose(whole, nobody, np.full(10, 9.0), 6)[1] == []
