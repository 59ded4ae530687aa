"""Splits inside clients: sizes, strata, whole units, and shares of an official test table."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tables import dataset_of, federation_of, often, table_of

from polyfed.registry import Chosen
from polyfed.rng import numpy_generator
from polyfed.scenario.official_test import share_sizes
from polyfed.scenario.parts import Parts
from polyfed.scenario.split import commonest, cut, part_size, quotas


def parts_of(sizes: list[int]) -> Parts:
    return Parts.of_lists(np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1]))


def test_part_sizes_by_hand():
    samples = np.array([1, 2, 15, 16, 30, 80, 81, 1000])
    assert part_size(samples, 0.1).tolist() == [0, 1, 7, 8, 8, 8, 9, 100]
    assert part_size(np.array([30, 130]), 0.1).tolist() == [8, 13]
    assert part_size(samples, 0.0).tolist() == [0] * 8


def test_quotas_by_hand():
    """9 of (50, 30, 20): 4.5, 2.7, 1.8 -> 4, 3, 2; one of two equal strata goes to the lower."""
    owner, counts = np.array([0, 0, 0, 1, 1]), np.array([50, 30, 20, 5, 5])
    assert quotas(owner, counts, np.array([9, 1])).tolist() == [4, 3, 2, 1, 0]


@often
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.floats(0.01, 0.9), st.integers(0, 99))
def test_a_cut_meets_size_and_label_quotas(sizes: list[int], fraction: float, seed: int):
    parts = parts_of(sizes)
    labels = np.random.default_rng(seed).integers(0, 4, sum(sizes))
    chosen = cut(parts, labels, fraction, numpy_generator(seed))
    wanted = part_size(parts.sizes, fraction)
    assert np.bincount(parts.owner[chosen], minlength=len(sizes)).tolist() == wanted.tolist()
    for client, size in enumerate(wanted):
        mine = parts.span(client)
        exact = np.bincount(labels[mine], minlength=4) * size / sizes[client]
        assert np.abs(np.bincount(labels[mine][chosen[mine]], minlength=4) - exact).max() < 1


@often
@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.floats(0.01, 0.9), st.integers(0, 99))
def test_units_are_never_torn(sizes: list[int], fraction: float, seed: int):
    parts = parts_of(sizes)
    draw = np.random.default_rng(seed)
    units, labels = draw.integers(0, 9, sum(sizes)), draw.integers(0, 3, sum(sizes))
    chosen = cut(parts, labels, fraction, numpy_generator(seed), units)
    for client in range(len(sizes)):
        mine = parts.span(client)
        inside = {int(unit) for unit in units[mine][chosen[mine]]}
        outside = {int(unit) for unit in units[mine][~chosen[mine]]}
        assert not inside & outside
        assert outside
        several = len(inside | outside) > 1
        assert bool(inside) == (several and bool(part_size(parts.sizes, fraction)[client]))


def test_whole_units_meet_the_size_and_reach_every_label():
    """Three labels with ten units of ten samples each: a fifth of 300 is 60 samples, two units of each label."""
    units = np.repeat(np.arange(30), 10)
    labels = np.repeat(np.arange(3), 100)
    chosen = cut(parts_of([300]), labels, 0.2, numpy_generator(1), units)
    assert np.bincount(labels[chosen]).tolist() == [20, 20, 20]


def test_the_commonest_value_is_the_lower_one_in_a_tie():
    assert commonest(np.array([0, 0, 0, 1, 1]), np.array([2, 1, 2, 5, 4])).tolist() == [2, 4]


def test_shares_of_a_test_table_by_hand():
    assert share_sizes(np.array([10, 20, 70]), 50).tolist() == [5, 10, 35]
    assert share_sizes(np.array([1, 1, 98]), 10).tolist() == [1, 1, 8]
    assert share_sizes(np.array([1, 1, 98]), 2).tolist() == [0, 0, 2]
    assert share_sizes(np.array([5, 5]), 2).tolist() == [1, 1]


@often
@given(st.lists(st.integers(1, 500), min_size=1, max_size=30), st.integers(0, 400))
def test_shares_add_up_and_leave_nobody_out(sizes: list[int], samples: int):
    shares = share_sizes(np.array(sizes), samples)
    assert shares.sum() == samples
    assert shares.min() >= (1 if samples >= len(sizes) else 0)


LABELS = [0, 1, 2] * 40


@pytest.mark.parametrize("official", [True, False])
def test_parts_of_a_client_and_of_clients_are_disjoint_and_complete(official: bool):
    dataset = dataset_of(table_of(LABELS), table_of([0, 1, 2] * 7) if official else None)
    clients = list(federation_of(dataset, 4).clients())
    own = [row for c in clients for part in (c.train, c.validation) for row in part.rows.tolist()]
    tests = [row for c in clients for row in c.test.rows.tolist()]
    if official:
        assert (sorted(own), sorted(tests)) == (list(range(120)), list(range(21)))
        assert all(c.test.table is dataset.test for c in clients)
        assert {(len(c.train), len(c.validation)) for c in clients} == {(22, 8)}
    else:
        assert sorted(own + tests) == list(range(120))
        assert {(len(c.train), len(c.validation), len(c.test)) for c in clients} == {(14, 8, 8)}


def test_the_test_share_has_the_label_mix_of_the_training_samples():
    dataset = dataset_of(table_of(LABELS), table_of([0, 1, 2] * 20))
    federation = federation_of(dataset, 4, partition=Chosen("dirichlet", {"alpha": 0.2}), validation=0.0)
    for client in federation.clients():
        trained = np.bincount(client.train.target("digit").numpy(), minlength=3) / len(client.train)
        tested = np.bincount(client.test.target("digit").numpy(), minlength=3) / len(client.test)
        assert np.abs(trained - tested).max() < 0.15
        assert 13 <= len(client.test) <= 15


def test_a_stratum_that_runs_out_is_replaced_by_the_clients_other_labels_only():
    """The test table has one sample of label 0, which one of the clients trains on alone."""
    dataset = dataset_of(table_of([0] * 10 + [1] * 10, fields={"site": [0] * 10 + [1] * 10}), table_of([0] + [1] * 9))
    clients = list(federation_of(dataset, None, partition=Chosen("natural", {"field": "site"})).clients())
    assert clients[0].test.target("digit").tolist() == [0]
    assert clients[1].test.target("digit").tolist() == [1] * 5


FIRST_HALF = [True] * 60 + [False] * 60


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ({"image": [True, True, False] * 40, "audio": [False, False, True] * 40}, {}),
        ({}, {"image": [True, True, False] * 40, "audio": [False, False, True] * 40}),
        ({"audio": FIRST_HALF}, {"audio": [not there for there in FIRST_HALF]}),
    ],
)
def test_what_samples_lack_does_not_matter_to_the_dealing_of_the_test_table(
    train: dict[str, list[bool]], test: dict[str, list[bool]]
):
    whole, lacking = table_of(LABELS), dataset_of(table_of(LABELS, present=train), table_of(LABELS, present=test))
    for client, same in zip(
        federation_of(lacking, 4).clients(), federation_of(dataset_of(whole, whole), 4).clients(), strict=True
    ):
        assert len(client.test) == 30
        assert client.test.rows.tolist() == same.test.rows.tolist()


def test_a_client_that_can_use_few_of_the_test_samples_gets_one_of_them():
    """Two of twelve test samples have sound; the shares are two samples each, so most listeners go away empty."""
    heard = [True] * 2 + [False] * 10
    dataset = dataset_of(table_of([0, 1] * 60), table_of([0, 1] * 6, present={"audio": heard}))
    sets = Chosen("listed", {"sets": [["image"]] * 4 + [["audio"]] * 2})
    for seed in range(5):
        clients = list(federation_of(dataset, 6, modalities=sets, seed=seed).clients())
        assert [len(client.test) > 0 for client in clients] == [True] * 6
        assert {int(row) for client in clients[4:] for row in client.test.rows} == {0, 1}
        rows = [row for client in clients for row in client.test.rows.tolist()]
        assert len(rows) == len(set(rows))


def test_a_client_whose_labels_are_not_in_the_test_table_gets_other_samples():
    dataset = dataset_of(table_of([0] * 20 + [1] * 20, fields={"site": [0] * 20 + [1] * 20}), table_of([0] * 10))
    clients = list(federation_of(dataset, None, partition=Chosen("natural", {"field": "site"})).clients())
    assert [len(client.test) for client in clients] == [5, 5]


def test_a_client_that_can_use_no_test_sample_has_none():
    dataset = dataset_of(table_of([0, 1] * 20), table_of([0, 1] * 5, present={"audio": [False] * 10}))
    clients = list(federation_of(dataset, 2, modalities=Chosen("listed", {"sets": [["image"], ["audio"]]})).clients())
    assert [len(client.test) for client in clients] == [5, 0]


def test_natural_clients_share_the_test_table_where_one_can_use_nothing_of_its_own_group():
    train = table_of(
        [0, 1] * 10, fields={"subject": [7] * 10 + [3] * 10}, present={"audio": [True] * 10 + [False] * 10}
    )
    test = table_of([0, 1] * 4, fields={"subject": [7, 3] * 4}, present={"image": [True, True, False, True] * 2})
    dataset = dataset_of(train, test)
    natural_partition = Chosen("natural", {"field": "subject"})
    own = list(federation_of(dataset, None, partition=natural_partition).clients())
    assert [set(client.test.field("subject").tolist()) for client in own] == [{3}, {7}]
    test = table_of([0, 1] * 4, fields={"subject": [7, 3] * 4}, present={"image": [True, False] * 4})
    shared = list(federation_of(dataset_of(train, test), None, partition=natural_partition).clients())
    assert min(len(client.test) for client in shared) > 0


def test_each_client_is_stratified_by_its_own_task():
    table = table_of([0, 1] * 50)
    tasks = Chosen("groups", {"groups": [{"clients": 1, "tasks": ["digit"]}, {"clients": 1, "tasks": ["age"]}]})
    federation = federation_of(dataset_of(table), 2, tasks=tasks, only_tasks=None, test=0.0, validation=0.2)
    first = federation.client(0)
    validation = np.bincount(first.validation.target("digit").numpy())
    exact = (validation + np.bincount(first.train.target("digit").numpy())) / 5
    assert np.abs(validation - exact).max() < 1
    assert len(federation.client(1).validation) == 10


def natural(train: list[int], test: list[int]) -> list[list[int]]:
    dataset = dataset_of(
        table_of([0, 1] * (len(train) // 2), fields={"subject": train}),
        table_of([0, 1] * (len(test) // 2), fields={"subject": test}),
    )
    federation = federation_of(dataset, None, partition=Chosen("natural", {"field": "subject"}))
    return [sorted(set(client.test.field("subject").tolist())) for client in federation.clients()]


def test_natural_clients_are_tested_on_their_own_groups_where_there_are_some():
    assert natural([7] * 10 + [3] * 10, [3, 3, 7, 7, 9, 9]) == [[3], [7]]


def test_natural_clients_share_the_test_table_by_label_if_it_has_other_groups():
    train = table_of([0, 1] * 10, fields={"subject": [7] * 10 + [3] * 10})
    dataset = dataset_of(train, table_of([0, 1, 0, 1], fields={"subject": [3, 3, 8, 8]}))
    clients = list(federation_of(dataset, None, partition=Chosen("natural", {"field": "subject"})).clients())
    assert [sorted(client.test.target("digit").tolist()) for client in clients] == [[0, 1], [0, 1]]
    assert sorted(row for client in clients for row in client.test.rows.tolist()) == [0, 1, 2, 3]


def test_units_stay_with_one_client_and_on_one_side():
    bouts = list(np.repeat(np.arange(30), 4))
    dataset = dataset_of(table_of(LABELS, fields={"bout": [int(bout) for bout in bouts]}), unit="bout")
    seen: set[int] = set()
    for client in federation_of(dataset, 3).clients():
        for part in (client.train, client.validation, client.test):
            units = set(part.field("bout").tolist())
            assert units
            assert not units & seen
            seen |= units
    assert seen == set(range(30))


def test_unit_numbers_may_repeat_among_natural_groups():
    fields = {"subject": [1] * 60 + [2] * 60, "bout": [row // 6 % 10 for row in range(120)]}
    dataset = dataset_of(table_of(LABELS, fields=fields), unit="bout")
    federation = federation_of(dataset, None, partition=Chosen("natural", {"field": "subject"}))
    assert [set(client.train.field("subject").tolist()) for client in federation.clients()] == [{1}, {2}]
