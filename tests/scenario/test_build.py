"""Federations: lazy, repeatable, honest cards, and one clear error per mistake."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_tables import dataset_of, federation_of, table_of

from polyfed.data.columns import TensorColumn
from polyfed.data.dataset import Dataset
from polyfed.data.samples import Table
from polyfed.data.schema import Modality, Task
from polyfed.errors import UserError
from polyfed.registry import Chosen
from polyfed.scenario.federation import Federation
from polyfed.scenario.store import fingerprint

LABELS = [0, 1, 2] * 20
SMALL = dataset_of(table_of(LABELS))
GROUPS = Chosen(
    "groups",
    {
        "groups": [
            {"clients": 1, "modalities": ["image"]},
            {"clients": 1, "modalities": ["audio"]},
            {"clients": 1, "modalities": ["image", "audio"]},
        ]
    },
)


def test_cards_tell_what_the_clients_hold():
    federation = federation_of(SMALL, modalities=GROUPS)
    assert [card.name for card in federation.cards.values()] == ["client 0", "client 1", "client 2"]
    assert [card.group for card in federation.cards.values()] == ["image", "audio", "audio+image"]
    for client in federation.clients():
        assert client.card.examples == len(client.train) == 6
        for part in (client.train, client.validation, client.test):
            assert (part.modalities, part.tasks) == (client.card.modalities, client.card.tasks)


def test_natural_clients_are_named_after_their_group():
    dataset = dataset_of(table_of(LABELS, fields={"subject": [5, 7, 9] * 20}))
    natural = Chosen("natural", {"field": "subject"})
    assert [card.name for card in federation_of(dataset, None, partition=natural).cards.values()] == [
        "subject 5",
        "subject 7",
        "subject 9",
    ]
    names = sorted(card.name for card in federation_of(dataset, 2, partition=natural).cards.values())
    assert names[0].startswith("client ")
    assert names[1] in {"subject 5", "subject 7", "subject 9"}


def test_natural_clients_bear_the_names_of_their_groups_where_there_are_some():
    dataset = dataset_of(table_of(LABELS, fields={"speaker": [0, 2] * 30, "subject": [5, 7] * 30}))
    named = replace(dataset, field_labels={"speaker": ("ann", "bob", "george")})
    for field, expected in (("speaker", ["speaker ann", "speaker george"]), ("subject", ["subject 5", "subject 7"])):
        federation = federation_of(named, None, partition=Chosen("natural", {"field": field}))
        assert [card.name for card in federation.cards.values()] == expected


def test_tasks_default_to_classification_and_regression():
    assert list(federation_of(SMALL, only_tasks=None).tasks) == ["digit", "age"]
    assert list(federation_of(SMALL, only_tasks=["picture", "digit"]).tasks) == ["digit", "picture"]


def test_modalities_are_those_in_use():
    assert list(federation_of(SMALL, modalities=Chosen("all", {"only": ["audio"]})).modalities) == ["audio"]


def test_the_fingerprint_tells_scenarios_apart():
    base = fingerprint(federation_of(SMALL))
    assert base == fingerprint(federation_of(dataset_of(table_of(LABELS))))
    others = [
        federation_of(SMALL, seed=2),
        federation_of(SMALL, 4),
        federation_of(SMALL, validation=0.0),
        federation_of(SMALL, modalities=GROUPS),
        federation_of(SMALL, modalities=Chosen("sample-skew", {"base": "all"})),
        federation_of(SMALL, only_tasks=["digit", "age"]),
        federation_of(dataset_of(table_of([1, 0, 2] * 20))),
    ]
    assert len({base, *map(fingerprint, others)}) == len(others) + 1


def test_clients_do_not_depend_on_the_order_of_asking():
    one, other = (federation_of(SMALL, modalities=Chosen("sample-skew", {"base": "all"})) for _ in range(2))
    for k in (2, 0, 1):
        other.client(k)
    assert fingerprint(one) == fingerprint(other)


def rows(federation: Federation) -> list[list[int]]:
    parts = [part for client in federation.clients() for part in (client.train, client.validation, client.test)]
    return [part.rows.tolist() for part in parts]


def test_case_c_has_the_samples_of_its_case_b_and_thins_training_only():
    base = {"min_holders": 2}
    case_b = federation_of(SMALL, 4, modalities=Chosen("mixed", base))
    case_c = federation_of(SMALL, 4, modalities=Chosen("sample-skew", base))
    assert rows(case_b) == rows(case_c)
    assert list(case_b.cards.values()) == list(case_c.cards.values())
    assert any(not mask.all() for client in case_c.clients() for mask in client.train.present.values())
    for client in case_c.clients():
        for part in (client.train, client.validation):
            assert torch.stack(list(part.present.values())).any(0).all()
        assert all(mask.all() for mask in client.test.present.values())


def half(count: int, first: bool) -> list[bool]:
    return [(row < count // 2) == first for row in range(count)]


def two_sources() -> Dataset:
    present = {"image": half(60, True), "audio": half(60, False)}
    return dataset_of(table_of(LABELS, present=present, fields={"source": [0] * 30 + [1] * 30}))


def test_cards_leave_out_what_a_clients_samples_lack():
    federation = federation_of(two_sources(), None, partition=Chosen("natural", {"field": "source"}))
    assert [card.modalities for card in federation.cards.values()] == [("image",), ("audio",)]


def test_samples_without_any_held_modality_are_left_out():
    federation = federation_of(
        two_sources(), 2, modalities=Chosen("listed", {"sets": [["image"], ["audio"]]}), validation=0.0, test=0.0
    )
    for client in federation.clients():
        (mask,) = client.train.present.values()
        assert mask.all()
        assert 0 < client.card.examples < 30


def test_case_c_never_takes_the_last_modality_of_a_sample():
    """The data lacks audio in half of the rows, the skew thins image there: such samples keep what they have."""
    dataset = dataset_of(table_of(LABELS, present={"audio": half(60, True)}))
    skew = Chosen("sample-skew", {"base": "all", "beta": 0.2})
    for client in federation_of(dataset, 3, modalities=skew).clients():
        assert torch.stack(list(client.train.present.values())).any(0).all()


def test_pooled_keeps_who_held_what():
    pooled = federation_of(SMALL, modalities=GROUPS).pooled().client(0)
    assert len(pooled.train) == 18
    assert [int(pooled.train.present[name].sum()) for name in ("audio", "image")] == [12, 12]


def test_listed_modalities_that_the_samples_lack_are_refused():
    explicit = Chosen("listed", {"sets": [["audio"], ["image", "audio"]]})
    with pytest.raises(UserError, match="client 0 should hold the modality 'audio', but none of its 30 samples has it"):
        federation_of(two_sources(), None, partition=Chosen("natural", {"field": "source"}), modalities=explicit)


def test_a_client_with_nothing_to_train_on_is_refused():
    skew = Chosen("n-of-m", {"n": 1})
    with pytest.raises(UserError, match=r"client \d has nothing to train on: none of its 30 samples"):
        for seed in range(20):
            federation_of(
                two_sources(), None, partition=Chosen("natural", {"field": "source"}), modalities=skew, seed=seed
            )


def test_a_modality_no_sample_has_is_refused():
    dataset = dataset_of(table_of(LABELS, present={"audio": [False] * 60}))
    with pytest.raises(UserError, match="no client holds the modality 'audio'"):
        federation_of(dataset)


def test_an_empty_client_is_refused():
    partition = Chosen("dirichlet", {"minimum": 0, "quantity_alpha": 0.01})
    with pytest.raises(UserError, match=r"client \d+ gets no samples from the partition 'dirichlet'"):
        federation_of(SMALL, 20, partition=partition)


def test_more_clients_than_samples_or_units_is_refused():
    with pytest.raises(UserError, match="61 clients, but the pool has 60 samples"):
        federation_of(SMALL, 61)
    bouts = dataset_of(table_of(LABELS, fields={"bout": [row // 30 for row in range(60)]}), unit="bout")
    with pytest.raises(UserError, match="3 clients, but small has 2 groups of the field 'bout'"):
        federation_of(bouts)
    with pytest.raises(UserError, match=r"the pool has 2; .* \(rows of small with the same 'bout' stay together"):
        federation_of(bouts, 2, partition=Chosen("quantity", {"minimum": 30}))


@pytest.mark.parametrize(("validation", "test"), [(1.0, 0.2), (-0.1, 0.2), (0.1, float("nan"))])
def test_impossible_shares_are_refused(validation: float, test: float):
    with pytest.raises(UserError, match="must be at least 0 and below 1"):
        federation_of(SMALL, validation=validation, test=test)


def test_unknown_and_missing_tasks_are_refused():
    with pytest.raises(UserError, match="dataset small: unknown task 'digits'; did you mean 'digit'"):
        federation_of(SMALL, only_tasks=["digits"])
    with pytest.raises(UserError, match="no task is in use"):
        federation_of(SMALL, only_tasks=[])


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_is_refused(label: int):
    with pytest.raises(
        UserError, match=rf"training table, row 2: task 'digit' has the target {label}, but its 3 classes"
    ):
        federation_of(dataset_of(table_of([0, 1, label, 0])))
    with pytest.raises(UserError, match=rf"test table, row 0: task 'digit' has the target {label} \(and 1 more rows\)"):
        federation_of(dataset_of(table_of(LABELS), table_of([label, 0, label])))


@pytest.mark.parametrize("age", [float("nan"), float("inf")])
def test_a_regression_target_that_is_no_number_is_refused(age: float):
    table = table_of([0, 1, 2], ages=[1.0, age, 2.0])
    with pytest.raises(UserError, match=rf"row 1: task 'age' has the target {age}, but a regression target"):
        federation_of(dataset_of(table), 1, only_tasks=["age"])


def test_a_vector_of_regression_targets_is_checked_too():
    targets = torch.zeros(4, 2)
    targets[3, 1] = torch.nan
    table = Table({"image": TensorColumn(torch.zeros(4, 1))}, {"pose": TensorColumn(targets)})
    dataset = Dataset(
        "poses", {"image": Modality("image", "vector", (1,))}, {"pose": Task("pose", "regression", (2,))}, table
    )
    with pytest.raises(UserError, match=r"poses, training table, row 3: task 'pose' has the target \[0.0, nan\]"):
        federation_of(dataset, 1, only_tasks=None)


def test_many_small_clients_are_made_on_demand():
    dataset = dataset_of(table_of([0, 1, 2] * 2000))
    federation = federation_of(dataset, 1000, partition=Chosen("dirichlet", {"alpha": 0.3}))
    assert len(federation.cards) == 1000
    assert {card.examples for card in federation.cards.values()} == {2}
    last = federation.client(999)
    assert [len(part) for part in (last.train, last.validation, last.test)] == [2, 1, 3]
