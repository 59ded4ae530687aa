"""Partitions: disjoint, complete, of the sizes promised, and the same for the same seed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from small_tables import dataset_of, digits, often, table_of

from polyfed.data.schema import Task
from polyfed.errors import UserError
from polyfed.scenario.catalog import PARTITIONS
from polyfed.scenario.partition import sizes_of, take_from_stock

OPTIONS = {
    "iid": st.just({}),
    "dirichlet": st.fixed_dictionaries(
        {
            "alpha": st.sampled_from([1e-3, 0.1, 1.0, 1e6, None]),
            "quantity_alpha": st.sampled_from([None, 0.1, 1.0]),
        }
    ),
    "shards": st.just({"shards_per_client": 2}),
    "quantity": st.fixed_dictionaries({"alpha": st.sampled_from([0.05, 1.0, 100.0])}),
}


@st.composite
def dealt(draw: st.DrawFn) -> tuple[str, dict[str, object], list[int], int]:
    name = draw(st.sampled_from(sorted(OPTIONS)))
    clients = draw(st.integers(1, 8))
    labels = draw(st.lists(st.integers(0, 2), min_size=2 * clients, max_size=120))
    return name, draw(OPTIONS[name]), labels, clients


@often
@given(dealt(), st.integers(0, 9))
def test_parts_are_disjoint_complete_and_repeatable(world: tuple[str, dict[str, object], list[int], int], seed: int):
    name, options, labels, clients = world
    parts = PARTITIONS.build(name, options, *digits(labels), clients, seed)
    assert len(parts) == clients
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    assert all(np.array_equal(part, np.unique(part)) for part in parts)
    again = PARTITIONS.build(name, options, *digits(labels), clients, seed)
    assert all(np.array_equal(one, other) for one, other in zip(parts, again, strict=True))


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_another_seed_deals_otherwise(name: str):
    pool = digits([0, 1, 2] * 20)
    one, other = (PARTITIONS.build(name, {}, *pool, 4, seed) for seed in (1, 2))
    assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@often
@given(st.integers(1, 500), st.integers(1, 40), st.sampled_from([None, 0.05, 1.0]), st.integers(0, 3))
def test_sizes_add_up_and_keep_the_default_minimum(samples: int, clients: int, alpha: float | None, seed: int):
    if clients > samples:
        samples, clients = clients, samples
    sizes = sizes_of(samples, clients, alpha, None, seed)
    assert sizes.sum() == samples
    assert sizes.min() >= max(1, min(200, int(0.4 * samples / clients)))
    if alpha is None:
        assert sizes.max() - sizes.min() <= 1


def test_sizes_of_case_a_spread_around_the_minimum():
    sizes = sizes_of(5000, 50, 0.1, 20, seed=1)
    assert (sizes.sum(), len(sizes)) == (5000, 50)
    assert sizes.min() == 20
    assert sizes.max() > 500


def test_equal_sizes_give_what_is_left_to_the_lower_clients():
    assert sizes_of(11, 3, None, 1, seed=1).tolist() == [4, 4, 3]


def test_without_alpha_every_client_has_the_label_mix_of_the_pool():
    labels = [0] * 6000 + [1] * 3000 + [2] * 1000
    for part in PARTITIONS.build("dirichlet", {"alpha": None}, *digits(labels), 5, 1):
        mix = np.bincount(np.array(labels)[part], minlength=3) / len(part)
        assert np.abs(mix - [0.6, 0.3, 0.1]).max() < 0.04


def test_a_very_large_alpha_gives_equal_shares_of_balanced_classes():
    labels = [0, 1, 2] * 1000
    for part in PARTITIONS.build("dirichlet", {"alpha": 1e9}, *digits(labels), 5, 1):
        assert np.abs(np.bincount(np.array(labels)[part], minlength=3) / len(part) - 1 / 3).max() < 0.08


def test_clients_see_more_classes_as_alpha_grows():
    labels = np.arange(4000) % 10

    def classes(alpha: float) -> float:
        parts = PARTITIONS.build("dirichlet", {"alpha": alpha}, *digits(labels.tolist(), 10), 20, 1)
        return float(np.mean([len(np.unique(labels[part])) for part in parts]))

    assert classes(0.02) < classes(0.2) < classes(2.0)
    assert classes(2.0) > 9


def test_a_mix_without_stock_falls_back_to_what_is_there():
    taken = take_from_stock(4, np.array([1.0, 0.0, 0.0]), np.array([1, 3, 0]), np.random.default_rng(0))
    assert taken.tolist() == [1, 3, 0]


def test_shards_hold_few_classes():
    labels = np.repeat(np.arange(10), 20)
    parts = PARTITIONS.build("shards", {"shards_per_client": 2}, *digits(labels.tolist(), 10), 10, 1)
    assert {len(part) for part in parts} == {20}
    assert max(len(np.unique(labels[part])) for part in parts) <= 2


def test_dirichlet_uses_the_named_task():
    dataset = dataset_of(table_of([0, 1, 2, 0]))
    pool = dataset.train.everything()
    parts = PARTITIONS.build("dirichlet", {"label": "digit"}, pool, dataset.tasks, 2, 1)
    assert [len(part) for part in parts] == [2, 2]


def test_samples_without_label_are_dealt_too():
    pool, tasks = digits([0, 1, 2, 0, 1, 2])
    unlabelled = type(pool)(pool.table, pool.rows, pool.present, {"digit": torch.tensor([True, False] * 3)})
    parts = PARTITIONS.build("dirichlet", {"alpha": 0.5}, unlabelled, tasks, 2, 1)
    assert sorted(np.concatenate(parts).tolist()) == list(range(6))


SUBJECTS = [30, 10, 20, 10, 30, 30]


def natural(clients: int | None, seed: int = 1) -> list[list[int]]:
    dataset = dataset_of(table_of([0] * 6, fields={"subject": SUBJECTS}))
    parts = PARTITIONS.build("natural", {"field": "subject"}, dataset.train.everything(), dataset.tasks, clients, seed)
    return [part.tolist() for part in parts]


@pytest.mark.parametrize("clients", [None, 3])
def test_natural_gives_each_group_a_client_in_ascending_order(clients: int | None):
    assert natural(clients) == [[1, 3], [2], [0, 4, 5]]


def test_natural_with_fewer_clients_deals_whole_groups():
    groups = [sorted({SUBJECTS[row] for row in part}) for part in natural(2)]
    assert sorted(subject for held in groups for subject in held) == [10, 20, 30]
    assert sorted(map(len, groups)) == [1, 2]
    assert len({str(natural(2, seed)) for seed in range(10)}) > 1


@pytest.mark.parametrize("clients", [0, 4])
def test_natural_with_an_impossible_number_of_clients_is_refused(clients: int):
    with pytest.raises(UserError, match=f"{clients} clients, but the field 'subject' has 3 groups"):
        natural(clients)


def test_one_of_a_kind_is_not_counted_as_several():
    with pytest.raises(UserError, match=r"2 clients, but the field 'site' has 1 group; use 1 client, or null"):
        PARTITIONS.build(
            "natural", {"field": "site"}, table_of([0] * 4, fields={"site": [7] * 4}).everything(), {}, 2, 1
        )
    with pytest.raises(UserError, match=r"2 clients, but the pool has 1 sample to deal; use 1 client$"):
        PARTITIONS.build("iid", {}, *digits([0]), 2, 1)


def test_natural_over_an_unknown_field_is_refused():
    dataset = dataset_of(table_of([0], fields={"subject": [1]}))
    with pytest.raises(UserError, match="unknown field 'subjects'; did you mean 'subject'"):
        PARTITIONS.build("natural", {"field": "subjects"}, dataset.train.everything(), dataset.tasks, None, 1)


@pytest.mark.parametrize(
    ("name", "options", "clients", "message"),
    [
        ("iid", {}, None, "iid: say how many clients"),
        ("iid", {}, 7, "7 clients, but the pool has 6 samples"),
        ("quantity", {}, 0, "quantity: 0 clients"),
        ("dirichlet", {"minimum": 4}, 2, "minimum 4 for each of 2 clients needs 8 samples.*to 3 or less"),
        ("dirichlet", {"label": "digits"}, 2, "unknown classification task 'digits'; did you mean 'digit'"),
        ("shards", {"shards_per_client": 4}, 2, "2 clients with 4 shards each need 8 samples"),
    ],
)
def test_impossible_partitions_are_refused(name: str, options: dict[str, object], clients: int | None, message: str):
    with pytest.raises(UserError, match=message):
        PARTITIONS.build(name, options, *digits([0, 1, 2, 0, 1, 2]), clients, 1)


def test_labels_are_needed_for_a_label_skew():
    pool, _ = digits([0, 1])
    with pytest.raises(UserError, match="no classification task"):
        PARTITIONS.build("dirichlet", {}, pool, {"age": Task("age", "regression")}, 2, 1)


@pytest.mark.parametrize("alpha", [0, -1, float("inf"), "many"])
def test_a_wrong_alpha_is_refused_when_options_are_read(alpha: object):
    with pytest.raises(ValidationError):
        PARTITIONS.options("dirichlet").model_validate({"alpha": alpha})


def test_label_counts_of_two_clients_by_hand():
    """With one class per client in reach and equal sizes, two clients of two classes exhaust the stock exactly."""
    labels = [0, 0, 0, 1, 1, 1]
    parts = PARTITIONS.build("dirichlet", {"alpha": 1e-6}, *digits(labels, 2), 2, 3)
    counts = sorted(str(Counter(labels[row] for row in part)) for part in parts)
    assert [len(part) for part in parts] == [3, 3]
    assert counts == ["Counter({0: 3})", "Counter({1: 3})"]
