"""``scenario.keep``: clients keep some modalities; all else stays as it is in the multi-modal federation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_tables import dataset_of, federation_of, table_of
from tests.worlds import tiny, train
from torch import Tensor

from polyfed.data.samples import Samples
from polyfed.errors import UserError
from polyfed.experiment.world import build_world
from polyfed.registry import Chosen
from polyfed.scenario.federation import Federation
from polyfed.scenario.store import fingerprint

NAMES = ("image", "audio", "video")
CASES = {
    "all": Chosen("all"),
    "mixed": Chosen("mixed", {"min_holders": 2}),
    "n-of-m": Chosen("n-of-m", {"n": 2}),
    "sample-skew": Chosen("sample-skew", {"min_holders": 2, "minimum_rate": 0.2}),
}
every_case = pytest.mark.parametrize("case", CASES)


def whole(case: str) -> Federation:
    """Eight clients; the data itself lacks the audio of some rows."""
    present = {"audio": [row % 10 != 3 for row in range(240)]}
    table = table_of([0, 1, 2] * 80, modalities=NAMES, present=present)
    return federation_of(dataset_of(table), 8, modalities=CASES[case])


def splits(federation: Federation, client: int) -> list[Samples]:
    held = federation.client(client)
    return [held.train, held.validation, held.test]


def having(samples: Samples, modality: str) -> Tensor:
    return samples.rows[samples.present[modality]]


@every_case
@pytest.mark.parametrize("modality", NAMES)
def test_clients_keep_their_samples_of_a_modality_in_their_order(case: str, modality: str) -> None:
    full = whole(case)
    kept = full.keeping([modality])
    for client in kept.cards:
        for before, after in zip(splits(full, client), splits(kept, client), strict=True):
            assert torch.equal(after.rows, having(before, modality))
            assert after.modalities == (modality,)
            assert after.present[modality].all()
            assert after.tasks == before.tasks


@every_case
def test_two_of_three_keep_their_masks(case: str) -> None:
    full = whole(case)
    kept = full.keeping(["video", "audio"])
    for client, card in kept.cards.items():
        held = [name for name in full.cards[client].modalities if name != "image"]
        assert list(card.modalities) == held
        for before, after in zip(splits(full, client), splits(kept, client), strict=True):
            left = torch.stack([before.present[name] for name in held]).any(0)
            assert torch.equal(after.rows, before.rows[left])
            for name in held:
                assert torch.equal(after.present[name], before.present[name][left])


@every_case
@pytest.mark.parametrize("modality", NAMES)
def test_clients_without_stay_out_and_ids_stay(case: str, modality: str) -> None:
    full = whole(case)
    kept = full.keeping([modality])
    holders = [client for client, card in full.cards.items() if modality in card.modalities]
    assert list(kept.cards) == holders
    assert case != "n-of-m" or len(holders) < 8
    for client, card in kept.cards.items():
        assert (card.id, card.name, card.tasks) == (client, full.cards[client].name, full.cards[client].tasks)
        assert card.modalities == (modality,)
    for client in set(full.cards) - set(holders):
        assert client not in kept.cards
        with pytest.raises(KeyError):
            kept.client(client)


@every_case
def test_cards_count_the_samples_that_are_left(case: str) -> None:
    full = whole(case)
    kept = full.keeping(["audio"])
    assert [card.examples for card in kept.cards.values()] == [len(client.train) for client in kept.clients()]
    assert sum(card.examples for card in kept.cards.values()) < sum(card.examples for card in full.cards.values())


@every_case
def test_keeping_all_changes_nothing(case: str) -> None:
    full = whole(case)
    assert fingerprint(full.keeping(NAMES)) == fingerprint(full)


def test_the_federation_it_was_made_of_is_not_changed() -> None:
    full = whole("sample-skew")
    before, cards = fingerprint(full), list(full.cards.values())
    full.keeping(["audio"])
    assert fingerprint(full) == before
    assert list(full.cards.values()) == cards


@every_case
def test_the_servers_test_samples_have_the_kept_modalities_only(case: str) -> None:
    full = whole(case)
    kept = full.keeping(["audio"])
    assert full.server_test is not None
    assert kept.server_test is not None
    assert kept.server_test.modalities == ("audio",)
    assert torch.equal(kept.server_test.rows, having(full.server_test, "audio"))
    assert set(kept.modalities) == {"audio"}


def test_a_client_whose_training_samples_lack_the_modality_stays_out() -> None:
    """Its validation or test samples may have it: there is nothing to train on."""
    table = table_of([0, 1, 2] * 20, present={"audio": [row >= 57 for row in range(60)]})
    full = federation_of(dataset_of(table), 3, test=0.5)
    kept = full.keeping(["audio"])
    assert 0 < len(kept.cards) < 3
    assert all(len(client.train) > 0 for client in kept.clients())


def test_pooling_holds_the_samples_of_those_left() -> None:
    full = whole("mixed")
    pooled = full.keeping(["audio"]).pooled()
    expected = [having(splits(full, k)[0], "audio") for k, card in full.cards.items() if "audio" in card.modalities]
    assert torch.equal(pooled.client(0).train.rows, torch.cat(expected))
    assert pooled.cards[0].examples == sum(map(len, expected))


# -------------------------------------------------------------------------- as part of an experiment


def test_an_unknown_modality_is_one_clear_error() -> None:
    with pytest.raises(UserError, match=r"scenario\.keep: unknown modality 'imag'; did you mean 'image'"):
        build_world(tiny(scenario__keep=["imag"]))


def test_keeping_nothing_is_refused_when_it_is_read() -> None:
    with pytest.raises(UserError, match=r"scenario\.keep"):
        tiny(scenario__keep=[])


def test_selection_draws_from_those_left(tmp_path: Path) -> None:
    """Clients 1 and 2 hold audio."""
    select: dict[str, Any] = {"select__name": "random", "select__clients": 1}
    train(tiny(scenario__keep=["audio"], rounds=8, **select), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    cohorts = [line["cohort"] for line in lines if line["kind"] == "round"]
    assert {tuple(cohort) for cohort in cohorts} == {(1,), (2,)}


def test_asking_more_than_are_left_is_refused() -> None:
    with pytest.raises(UserError, match=r"select\.clients: 3 clients per round, but the federation has 2"):
        build_world(tiny(scenario__keep=["audio"], select__name="random", select__clients=3))


@pytest.mark.parametrize("method", ["fedavg", "centralized", "local", "fedhgb"])
@pytest.mark.parametrize("server_test", [False, True])
def test_a_whole_run(method: str, server_test: bool, tmp_path: Path) -> None:
    experiment = tiny(scenario__keep=["audio"], method__name=method, engine__server_test=server_test)
    outcome = train(experiment, tmp_path / "whole")
    assert outcome.progress.round == 3
    tensors = {**getattr(outcome.state, "parameters", {}), **outcome.personal.get(0, {}).get("parameters", {})}
    tensors |= outcome.personal.get(1, {}).get("parameters", {})
    assert not [name for name in tensors if "image" in name]
    lines = [json.loads(line) for line in (tmp_path / "whole" / "records.jsonl").read_text().splitlines()]
    assert {line["client"] for line in lines if line["kind"] == "evaluation"} == {1, 2}
    start = build_world(experiment).architecture.initial(3)
    assert not torch.equal(tensors["encoder.audio.1.weight"], start["encoder.audio.1.weight"])
    train(
        tiny(scenario__keep=["audio"], method__name=method, engine__server_test=server_test, rounds=1), tmp_path / "p"
    )
    assert train(experiment, tmp_path / "p", resume=True).digest == outcome.digest


def test_what_is_kept_is_part_of_a_runs_identity(tmp_path: Path) -> None:
    train(tiny(rounds=1), tmp_path)
    with pytest.raises(UserError):
        train(tiny(scenario__keep=["audio"]), tmp_path, resume=True)


def test_encoders_of_what_is_not_kept_may_stay_in_the_file_but_unknown_ones_may_not() -> None:
    world = build_world(tiny(scenario__keep=["audio"]))
    assert world.architecture.components(["audio"], []) == ("encoder.audio", "fusion.audio")
    with pytest.raises(UserError, match=r"model\.encoders: unknown modality 'imag'"):
        build_world(tiny(scenario__keep=["audio"], model__encoders={"imag": {"name": "mlp"}}))
