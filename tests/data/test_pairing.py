"""Pairing by class and stratified subsets."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyfed import rng
from polyfed.data.pairing import pair_by_class, stratified
from polyfed.errors import UserError

LABELS = st.lists(st.integers(0, 3), min_size=1, max_size=40).map(torch.tensor)


@given(labels=LABELS, seed=st.integers(0, 99))
def test_a_pair_has_one_class_and_is_repeatable(labels: torch.Tensor, seed: int) -> None:
    pool = torch.tensor([3, 1, 0, 2, 2, 0, 1])
    found = pair_by_class(labels, pool, rng.numpy_generator(seed))
    assert torch.equal(pool[found], labels)
    assert torch.equal(found, pair_by_class(labels, pool, rng.numpy_generator(seed)))


def test_every_candidate_of_the_class_is_drawn() -> None:
    found = pair_by_class(torch.zeros(200, dtype=torch.int64), torch.tensor([0, 1, 0, 0]), rng.numpy_generator(0))
    assert set(found.tolist()) == {0, 2, 3}


def test_a_class_without_candidates_is_refused() -> None:
    with pytest.raises(UserError, match="class 2 has no sample"):
        pair_by_class(torch.tensor([0, 2]), torch.tensor([0, 1]), rng.numpy_generator(0))


@given(labels=LABELS, seed=st.integers(0, 99), share=st.floats(0, 1))
def test_a_stratified_choice_keeps_the_shares(labels: torch.Tensor, seed: int, share: float) -> None:
    limit = int(share * len(labels))
    rows = stratified(labels, limit, rng.numpy_generator(seed))
    assert len(rows.unique()) == limit
    assert torch.equal(rows, rows.sort().values)
    exact = labels.bincount() * limit / len(labels)
    assert (labels[rows].bincount(minlength=len(exact)) - exact).abs().max() <= 1


def test_no_limit_keeps_all_and_too_large_a_limit_is_refused() -> None:
    labels = torch.tensor([1, 0, 1])
    assert stratified(labels, None, rng.numpy_generator(0)).tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="limit 4 is more than the 3"):
        stratified(labels, 4, rng.numpy_generator(0))
