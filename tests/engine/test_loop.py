from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from polyfed.data.schema import Task
from polyfed.engine.background import Background
from polyfed.engine.evaluate import Evaluation, score
from polyfed.engine.saving import Save
from polyfed.engine.trainer import Trainer
from polyfed.errors import RunError
from polyfed.experiment.world import build_world
from tests.worlds import tiny, train


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def test_records_hold_a_line_per_round_and_client(tmp_path: Path) -> None:
    outcome = train(tiny(), tmp_path)
    rounds, clients = lines(tmp_path, "round"), lines(tmp_path, "client")
    assert [line["round"] for line in rounds] == [1, 2, 3]
    assert all(line["cohort"] == line["replied"] == [0, 1, 2, 3] for line in rounds)
    assert [(line["round"], line["client"]) for line in clients] == [(r, k) for r in (1, 2, 3) for k in range(4)]
    assert clients[2]["modalities"] == ["audio", "image"]
    for way in ("up", "down"):
        counted = sum(sum(line["bytes"][way].values()) for line in clients)
        assert counted == sum(line["bytes"][way] for line in rounds) == outcome.progress.bytes[way]
    evaluations = lines(tmp_path, "evaluation")
    assert {line["round"] for line in evaluations} == {0, 1, 2, 3}
    assert {line["split"] for line in evaluations} == {"validation", "test"}


def test_evaluations_and_checkpoints_keep_their_rhythm_and_never_miss_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    give = Background.give

    def noted(self: Background[Save], save: Save) -> None:
        given.append(save.round)
        give(self, save)

    monkeypatch.setattr(Background, "give", noted)
    train(tiny(rounds=5, engine__evaluate_every=2, engine__checkpoint_every=3), tmp_path)
    assert sorted({line["round"] for line in lines(tmp_path, "evaluation")}) == [0, 2, 4, 5]
    assert given == [0, 3, 5]
    assert max(path.name for path in (tmp_path / "checkpoints").glob("round-*")) == "round-000005"


def test_training_stops_when_the_target_is_reached(tmp_path: Path) -> None:
    outcome = train(tiny(rounds=50, engine__target=0.4, train__lr=0.2), tmp_path)
    assert 0 < outcome.progress.round < 50
    assert outcome.progress.stopped == f"the score reached the target 0.4 in round {outcome.progress.round}"
    again = train(tiny(rounds=50, engine__target=0.4, train__lr=0.2), tmp_path, resume=True)
    assert again.progress.round == outcome.progress.round


def test_training_stops_when_nothing_gets_better() -> None:
    outcome = train(tiny(rounds=50, engine__patience=2, train__lr=1e-9))
    assert outcome.progress.round == 2
    assert outcome.progress.stopped == "no better score in 2 evaluations"


def test_the_best_round_is_the_one_with_the_best_validation_score(tmp_path: Path) -> None:
    outcome = train(tiny(rounds=6, train__lr=0.2), tmp_path)
    tasks = build_world(tiny()).federation.tasks
    by_round: dict[int, list[Evaluation]] = {}
    for line in lines(tmp_path, "evaluation"):
        if line["split"] == "validation":
            found = Evaluation(line["client"], line["split"], line["examples"], line["metrics"])
            by_round.setdefault(line["round"], []).append(found)
    scores = {number: score(found, tasks) or 0.0 for number, found in by_round.items()}
    assert outcome.progress.best_score == max(scores.values())
    assert outcome.progress.best_round == min(r for r, value in scores.items() if value == max(scores.values()))


def test_the_score_is_the_mean_over_tasks_of_the_mean_over_clients_and_errors_count_negatively() -> None:
    tasks = {"digit": Task("digit", "classification", classes=10), "age": Task("age", "regression", (1,))}
    found = [
        Evaluation(0, "test", {}, {"digit": {"accuracy": 0.5}, "age": {"mse": 0.2}}),
        Evaluation(1, "test", {}, {"digit": {"accuracy": 1.0}}),
    ]
    assert score(found, tasks) == pytest.approx((0.75 - 0.2) / 2)
    assert score([], tasks) is None


def test_a_lost_quorum_ends_the_run_and_names_it() -> None:
    with pytest.raises(RunError, match=r"round 1: only 1 of 4 replies were sound, and the quorum .* is 0\.5"):
        train(tiny(), deliver=lambda round_number, client, reply: reply if client == 0 else None)


def test_a_round_goes_on_while_the_quorum_holds() -> None:
    outcome = train(tiny(), deliver=lambda round_number, client, reply: reply if client < 2 else None)
    assert {(entry["client"], entry["reason"]) for entry in outcome.progress.refused} == {
        (2, "lost on the way"),
        (3, "lost on the way"),
    }


def test_a_client_whose_reply_is_lost_keeps_what_it_has_learned() -> None:
    """The client does not know that its reply was lost; local training needs no reply at all."""

    def lost(round_number: int, client: int, reply: Any) -> Any:
        return None if (round_number, client) == (2, 1) else reply

    experiment = tiny(method__name="local", rounds=2)
    assert train(experiment, deliver=lost).personal_digest == train(experiment).personal_digest


def test_a_client_that_diverges_goes_on_from_its_former_personal_state(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Trainer.fit

    def diverging(self: Trainer, card: Any, request: Any, key: Any) -> Any:
        fitted = honest(self, card, request, key)
        if card.id != 1 or key[1] != 2:
            return fitted
        return replace(fitted, parameters={name: value * torch.nan for name, value in fitted.parameters.items()})

    one = train(tiny(method__name="local", rounds=1)).personal[1]["parameters"]
    monkeypatch.setattr(Trainer, "fit", diverging)
    outcome = train(tiny(method__name="local", rounds=2))
    assert all(torch.equal(value, outcome.personal[1]["parameters"][name]) for name, value in one.items())
    assert [(entry["round"], entry["client"]) for entry in outcome.progress.refused] == [(2, 1)]


def test_a_refused_reply_that_travelled_is_counted() -> None:
    def damaged(round_number: int, client: int, reply: Any) -> Any:
        return replace(reply, examples=10**9) if client == 1 else reply

    assert train(tiny(rounds=1), deliver=damaged).progress.bytes == train(tiny(rounds=1)).progress.bytes


def test_the_pooled_federation_is_one_client_judged_on_everybody(tmp_path: Path) -> None:
    train(tiny(method__name="centralized", rounds=1), tmp_path)
    (trained,) = lines(tmp_path, "client")
    world = build_world(tiny())
    assert trained["examples"] == sum(card.examples for card in world.federation.cards.values())
    assert {line["client"] for line in lines(tmp_path, "evaluation")} == {0, 1, 2, 3}


def test_pooled_samples_keep_the_masks_of_who_held_what() -> None:
    federation = build_world(tiny()).federation
    (pool,) = federation.pooled().clients()
    start = 0
    for client in federation.clients():
        part = slice(start, start + len(client.train))
        for modality in ("audio", "image"):
            assert bool(pool.train.present[modality][part].all()) == (modality in client.card.modalities)
        for task in ("digit", "parity"):
            assert bool(pool.train.labelled[task][part].any()) == (task in client.card.tasks)
        start += len(client.train)


def test_a_nan_in_training_is_refused_by_name(tmp_path: Path) -> None:
    """A diverging client does not poison the others."""
    with pytest.raises(RunError, match="quorum"):
        train(tiny(train__lr=1e30, rounds=3), tmp_path)
    refused = lines(tmp_path, "refused")
    assert refused and all(line["reason"] and line["component"] for line in refused)
