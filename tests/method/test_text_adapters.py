"""Every client's text adapter is mixed with those of the clients nearest to it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from polyfed.method.text_adapters import TextWeights, coefficients, distances, mixed, nearest

RULES: tuple[TextWeights, ...] = ("convex", "printed", "mean_one")


def even(count: int) -> Tensor:
    """Distances of adapters that are all equally far apart."""
    return torch.ones(count, count, dtype=torch.float64) - torch.eye(count, dtype=torch.float64)


def adapters(count: int, seed: int = 0) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {"A": torch.randn(2, 3, generator=generator), "B": torch.randn(4, 2, generator=generator)} for _ in range(count)
    ]


def test_distances_are_over_all_tensors() -> None:
    one = {"A": torch.zeros(2, 2), "B": torch.zeros(3)}
    other = {"A": torch.full((2, 2), 2.0), "B": torch.tensor([0.0, 3.0, 0.0])}
    assert torch.equal(distances([one, other]), torch.tensor([[0.0, 5.0], [5.0, 0.0]], dtype=torch.float64))


@given(count=st.integers(1, 6), seed=st.integers(0, 99))
def test_distances_are_symmetric_with_a_zero_diagonal(count: int, seed: int) -> None:
    apart = distances(adapters(count, seed))
    assert torch.equal(apart, apart.t())
    assert not apart.diagonal().any()


def test_distances_of_near_adapters_do_not_drown_in_rounding() -> None:
    base = {"A": torch.full((1000,), 1000.0)}
    moved = {"A": base["A"] + torch.tensor([2.0**-10] + [0.0] * 999)}
    assert float(distances([base, moved])[0, 1]) == 2.0**-10


def test_the_nearest_are_chosen_and_the_earlier_of_equals() -> None:
    apart = torch.tensor([0.0, 2.0, 1.0, 2.0, 0.5], dtype=torch.float64)
    assert nearest(apart, 0, 3) == [4, 2, 1]


@pytest.mark.parametrize("rule", RULES)
def test_clients_without_samples_change_nobody_and_lose_nothing(rule: TextWeights) -> None:
    alone = coefficients(torch.zeros(1, 1, dtype=torch.float64), [0], 6, rule)
    assert alone.tolist() == [[1.0]]
    apart = torch.tensor([[0.0, 1, 3], [1, 0, 3], [3, 3, 0]], dtype=torch.float64)
    parts = coefficients(apart, [0, 0, 4], 1, rule)
    assert parts[:2].tolist() == [[1, 0, 0], [0, 1, 0]]
    assert parts[2, 2] == 1
    assert coefficients(apart, [0, 5, 4], 0, rule).tolist() == torch.eye(3).tolist()
    assert coefficients(apart, [0, 5, 4], 2, rule).isfinite().all()


def test_golden_coefficients() -> None:
    # client 0: neighbours 1 (distance 1) and 2 (distance 3): w = 3/4, 1/4; n = 2, 4, 8
    apart = torch.tensor([[0.0, 1, 3, 9], [1, 0, 3, 9], [3, 3, 0, 9], [9, 9, 9, 0]], dtype=torch.float64)
    held = {rule: coefficients(apart, [2, 4, 8, 5], 2, rule)[0] for rule in RULES}
    assert held["printed"].tolist() == pytest.approx([2 / 14, 3 / 14, 2 / 14, 0])
    assert held["convex"].tolist() == pytest.approx([2 / 7, 3 / 7, 2 / 7, 0])
    assert held["mean_one"].tolist() == pytest.approx([2 / 12, 6 / 12, 4 / 12, 0])


@given(
    examples=st.lists(st.integers(1, 50), min_size=2, max_size=7),
    neighbours=st.integers(0, 8),
    seed=st.integers(0, 99),
)
def test_sums_of_the_coefficients(examples: list[int], neighbours: int, seed: int) -> None:
    apart = distances(adapters(len(examples), seed))
    for rule in ("convex", "mean_one"):
        held = coefficients(apart, examples, neighbours, rule)
        assert held.sum(1).tolist() == pytest.approx([1] * len(examples))
        assert bool((held >= 0).all())
    printed = coefficients(apart, [3] * len(examples), neighbours, "printed")
    chosen = min(neighbours, len(examples) - 1)
    assert printed.sum(1).tolist() == pytest.approx([2 / (chosen + 1) if chosen else 1.0] * len(examples))


def test_equal_distances_and_samples() -> None:
    count = 5
    held = {rule: coefficients(even(count), [7] * count, count - 1, rule) for rule in RULES}
    off = even(count)
    assert torch.allclose(held["convex"], torch.eye(count).double() / 2 + off / (2 * (count - 1)))
    assert torch.allclose(held["mean_one"], torch.full((count, count), 1 / count).double())
    assert torch.allclose(held["printed"], torch.eye(count).double() / count + off / (count * (count - 1)))


def test_mean_one_with_equal_distances_is_fedavg() -> None:
    examples = [1, 2, 3, 10]
    held = coefficients(even(4), examples, 3, "mean_one")
    assert torch.allclose(held, torch.tensor(examples).double().expand(4, 4) / 16)


@pytest.mark.parametrize("count", [2, 5])
def test_with_one_neighbour_all_rules_agree(count: int) -> None:
    apart, examples = distances(adapters(count)), list(range(1, count + 1))
    first, *others = (coefficients(apart, examples, 1, rule) for rule in RULES)
    assert all(torch.allclose(first, other) for other in others)
    near = nearest(apart[0], 0, 1)[0]
    assert float(first[0, 0]) == pytest.approx(1 / (1 + examples[near]))


@pytest.mark.parametrize("rule", RULES)
def test_more_neighbours_than_there_are_and_none(rule: TextWeights) -> None:
    apart, examples = distances(adapters(4)), [1, 2, 3, 4]
    assert torch.equal(coefficients(apart, examples, 9, rule), coefficients(apart, examples, 3, rule))
    assert torch.equal(coefficients(apart, examples, 0, rule), torch.eye(4, dtype=torch.float64))
    assert torch.equal(coefficients(torch.zeros(1, 1).double(), [5], 6, rule), torch.ones(1, 1).double())


def test_equal_adapters_stay_what_they_are() -> None:
    same = [adapters(1)[0] for _ in range(3)]
    apart = distances(same)
    assert not apart.any()
    for rule in ("convex", "mean_one"):
        for new in mixed(same, coefficients(apart, [1, 2, 3], 2, rule)):
            assert all(torch.allclose(new[name], same[0][name], rtol=1e-6, atol=0) for name in new)
    printed = coefficients(apart, [1, 2, 3], 2, "printed")
    for row, new in zip(printed, mixed(same, printed), strict=True):
        assert torch.allclose(new["A"], float(row.sum()) * same[0]["A"])


def test_what_is_far_weighs_less_and_is_dropped_first() -> None:
    def weight(away: float, neighbours: int) -> float:
        held = [{"A": torch.tensor([0.0])}, {"A": torch.tensor([1.0])}, {"A": torch.tensor([away])}]
        return float(coefficients(distances(held), [1, 1, 1], neighbours, "convex")[0, 2])

    assert weight(2.0, 2) > weight(4.0, 2) > weight(8.0, 2) > 0
    assert weight(8.0, 1) == 0


def test_clusters_do_not_leak() -> None:
    near, far = adapters(3, 0), [{k: v + 100 for k, v in held.items()} for held in adapters(3, 1)]
    held = coefficients(distances([*near, *far]), [1] * 6, 2, "convex")
    assert not held[:3, 3:].any()
    assert not held[3:, :3].any()


@given(seed=st.integers(0, 99), neighbours=st.integers(0, 4))
def test_new_adapters_lie_between_the_old_which_are_not_touched(seed: int, neighbours: int) -> None:
    held = adapters(4, seed)
    before = [{name: value.clone() for name, value in one.items()} for one in held]
    new = mixed(held, coefficients(distances(held), [1, 5, 2, 9], neighbours, "convex"))
    for name in ("A", "B"):
        stacked = torch.stack([one[name] for one in held])
        for one in new:
            assert bool((one[name] >= stacked.amin(0) - 1e-6).all())
            assert bool((one[name] <= stacked.amax(0) + 1e-6).all())
    assert all(torch.equal(one[name], old[name]) for one, old in zip(held, before, strict=True) for name in one)


def test_a_client_alone_keeps_its_very_values() -> None:
    held = adapters(2)
    new = mixed(held, torch.eye(2, dtype=torch.float64))
    assert all(new[k][name] is held[k][name] for k in range(2) for name in ("A", "B"))
