"""``scenario.validation_source: shared``: all clients hold out the very same samples, which nobody trains on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_tables import dataset_of, federation_of, often, table_of
from tests.worlds import tiny, train

from polyfed.data.dataset import Dataset
from polyfed.errors import UserError
from polyfed.experiment.world import build_world
from polyfed.registry import Chosen
from polyfed.scenario.federation import Federation
from polyfed.scenario.store import fingerprint

NAMES = ("image", "audio", "video")
LABELS = [0, 1, 2] * 80
FIELDS = {"subject": [row // 30 for row in range(240)], "clip": [row // 4 for row in range(240)]}
CASES: Mapping[str, Chosen] = {
    "all": Chosen("all"),
    "mixed": Chosen("mixed", {"min_holders": 2}),
    "sample-skew": Chosen("sample-skew", {"min_holders": 2, "minimum_rate": 0.2}),
}
every_case = pytest.mark.parametrize("case", CASES)


def small(unit: str | None = None) -> Dataset:
    return dataset_of(table_of(LABELS, modalities=NAMES, fields=FIELDS), unit=unit)


def shared(dataset: Dataset | None = None, clients: int | None = 6, **options: Any) -> Federation:
    return federation_of(dataset or small(), clients, **{"validation_source": "shared", **options})


def held_out(federation: Federation) -> list[int]:
    """The rows that all clients are validated on, which must be the same."""
    (rows,) = {tuple(client.validation.rows.tolist()) for client in federation.clients()}
    return list(rows)


@every_case
def test_all_clients_have_the_same_samples_of_what_they_hold(case: str) -> None:
    federation = shared(modalities=CASES[case])
    assert len(held_out(federation)) == 24
    for client in federation.clients():
        assert client.validation.modalities == client.card.modalities == client.train.modalities
        assert client.validation.tasks == client.card.tasks
        for name in client.validation.modalities:
            assert client.validation.present[name].all(), "a sample skew does not concern shared samples"


@every_case
@pytest.mark.parametrize("unit", [None, "clip"])
def test_nobody_trains_or_is_tested_on_them_and_all_others_are_dealt(case: str, unit: str | None) -> None:
    federation = shared(small(unit), modalities=CASES[case])
    dealt = [
        row for client in federation.clients() for part in (client.train, client.test) for row in part.rows.tolist()
    ]
    assert sorted([*dealt, *held_out(federation)]) == list(range(240))


def test_a_sample_skew_still_takes_modalities_from_training_samples() -> None:
    clients = list(shared(modalities=CASES["sample-skew"]).clients())
    assert any(not client.train.present[name].all() for client in clients for name in client.train.modalities)
    for client in clients:
        assert torch.stack([client.train.present[name] for name in client.train.modalities]).any(0).all()


@pytest.mark.parametrize(("fraction", "size"), [(0.001, 8), (0.1, 24), (0.25, 60), (0.9, 120)])
def test_sizes_and_labels_are_those_of_the_table(fraction: float, size: int) -> None:
    """A share of the table rounded up, at least 8, at most half; the three labels are equally frequent."""
    rows = held_out(shared(validation=fraction))
    counts = np.bincount([LABELS[row] for row in rows], minlength=3)
    assert len(rows) == size
    assert counts.max() - counts.min() <= 1


def test_rows_that_belong_together_are_held_out_together() -> None:
    rows = held_out(shared(small("clip")))
    assert len(rows) == 24
    assert sorted(row for clip in {row // 4 for row in rows} for row in range(4 * clip, 4 * clip + 4)) == rows


@often
@given(seed=st.integers(0, 2**32), clients=st.integers(1, 20), alpha=st.sampled_from([0.1, 1.0, None]))
def test_they_depend_on_the_seed_and_the_share_only(seed: int, clients: int, alpha: float | None) -> None:
    partition = Chosen("dirichlet", {"alpha": alpha, "minimum": 4})
    federation = shared(clients=clients, partition=partition, seed=seed, test=0.0)
    assert held_out(federation) == held_out(shared(clients=3, seed=seed))
    assert all(len(client.train) for client in federation.clients())


def test_another_seed_holds_out_others_and_the_same_seed_the_same_federation() -> None:
    assert held_out(shared(seed=1)) != held_out(shared(seed=2))
    assert fingerprint(shared()) == fingerprint(shared())


def test_the_default_is_the_client_own_share() -> None:
    assert fingerprint(federation_of(small(), 6)) == fingerprint(federation_of(small(), 6, validation_source="client"))
    own = [set(client.validation.rows.tolist()) for client in federation_of(small(), 6).clients()]
    assert not set.intersection(*own)


def test_a_client_leaves_out_samples_of_which_it_can_use_nothing() -> None:
    """Even rows lack the audio, which is all that client 1 holds."""
    table = table_of(LABELS, present={"audio": [row % 2 == 1 for row in range(240)]})
    federation = shared(dataset_of(table), 2, modalities=Chosen("listed", {"sets": [["image"], ["audio"]]}))
    everything, odd = (client.validation for client in federation.clients())
    assert len(everything) == 24
    assert odd.rows.tolist() == [row for row in everything.rows.tolist() if row % 2 == 1]


def test_a_client_is_validated_on_samples_labelled_for_its_tasks() -> None:
    table = table_of(LABELS, ages=[float(row) for row in range(240)])
    table = type(table)(
        table.inputs, table.targets, labelled={"age": torch.arange(240) < 120, "digit": torch.arange(240) >= 60}
    )
    tasks = Chosen("listed", {"sets": [["digit"], ["age"], ["age", "digit"]]})
    first, second, third = shared(dataset_of(table), 3, tasks=tasks, only_tasks=None, validation=0.5).clients()
    rows = third.validation.rows.tolist()
    assert len(rows) == 120
    assert first.validation.rows.tolist() == [row for row in rows if row >= 60]
    assert second.validation.rows.tolist() == [row for row in rows if row < 120]


def test_with_an_official_test_table_nothing_else_is_held_out() -> None:
    federation = shared(dataset_of(table_of(LABELS), table_of([0, 1, 2] * 20)))
    assert sum(len(client.train) for client in federation.clients()) == 240 - 24
    assert len(held_out(federation)) == 24


def test_one_modality_alone_keeps_the_samples() -> None:
    federation = shared(modalities=CASES["mixed"])
    assert held_out(federation.keeping(["audio"])) == held_out(federation)


def test_natural_clients_keep_their_groups() -> None:
    federation = shared(clients=None, partition=Chosen("natural", {"field": "subject"}))
    assert [card.name for card in federation.cards.values()] == [f"subject {number}" for number in range(8)]
    for client in federation.clients():
        assert {row // 30 for row in client.train.rows.tolist()} == {client.card.id}


def test_a_group_that_would_vanish_is_refused() -> None:
    table = table_of(LABELS, fields={"subject": list(range(240))})
    with pytest.raises(UserError, match=r"all there is of the 'subject' \d+, .* smaller validation"):
        shared(dataset_of(table), None, partition=Chosen("natural", {"field": "subject"}))


def test_an_unknown_field_is_still_named() -> None:
    with pytest.raises(UserError, match="unknown field 'person'"):
        shared(partition=Chosen("natural", {"field": "person"}))


def test_without_validation_there_is_nothing_to_share() -> None:
    with pytest.raises(UserError, match=r"validation is 0, but validation_source is 'shared'"):
        shared(validation=0.0)
    with pytest.raises(UserError, match=r"validation is 0, but validation_source is 'shared'"):
        build_world(tiny(scenario__validation=0, scenario__validation_source="shared"))


def test_an_unknown_source_is_refused_when_the_experiment_is_read() -> None:
    with pytest.raises(UserError, match=r"validation_source.*server"):
        tiny(scenario__validation_source="server")


def test_an_experiment_says_which() -> None:
    assert tiny().resolved["scenario"]["validation_source"] == "client"
    federation = build_world(tiny(scenario__validation_source="shared")).federation
    rows = held_out(federation)
    trained = {row for client in federation.clients() for row in client.train.rows.tolist()}
    assert rows and not trained & set(rows)


@pytest.mark.parametrize("method", ["fedavg", "fedhgb", "centralized"])
def test_methods_train_with_it(method: str) -> None:
    """The same bits again, and others than with the clients' own samples held out."""

    def digests(**changes: Any) -> tuple[str, str]:
        outcome = train(tiny(rounds=2, method__name=method, **changes))
        return outcome.digest, outcome.personal_digest

    found = digests(scenario__validation_source="shared")
    assert found == digests(scenario__validation_source="shared")
    assert found != digests()
