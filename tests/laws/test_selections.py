"""Laws that hold for every selection of the registry, each held in small real runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from polyfed.engine.checkpoint import digest_of
from polyfed.engine.loop import Outcome
from polyfed.engine.tree import pack
from polyfed.errors import UserError
from polyfed.experiment.config import Experiment
from polyfed.experiment.world import build_world
from polyfed.method.protocol import Reply
from polyfed.method.selections import SELECTORS
from tests.worlds import tiny, train

# Every selection, and those options that make it remember or ask something else.
WAYS: Mapping[str, Mapping[str, Any]] = {
    **{name: {"select__name": name} for name in SELECTORS.names()},
    "pow-d on batches": {"select__name": "pow-d", "select__candidates": 3, "select__estimate": "batch"},
    "pow-d by last losses": {"select__name": "pow-d", "select__candidates": 3, "select__estimate": "last"},
    "divfl fresh": {"select__name": "divfl", "select__fresh": True},
    "divfl full": {"select__name": "divfl", "select__greedy": "full"},
    "divfl represented": {"select__name": "divfl", "select__shares": "represented"},
    "bms low threshold": {"select__name": "bms", "select__threshold": 0.5, "select__conflict_rule": "code"},
    "bms everything": {"select__name": "bms", "select__compared": "everything", "select__refresh_single": False},
    **{
        f"bms with {method}": {"method__name": method, "select__name": "bms", "select__threshold": 0.5}
        for method in ("bmsfed", "fedproto", "pmr")
    },
    "bms decoupled": {"select__name": "bms", "select__gradients": "decoupled", "select__threshold": 0.5},
    "bms decoupled with bmsfed": {
        "method__name": "bmsfed",
        "select__name": "bms",
        "select__gradients": "decoupled",
        "select__threshold": 0.5,
    },
    "bms with bmsfed by client": {"method__name": "bmsfed", "method__ratio": "client", "select__name": "bms"},
}
every_way = pytest.mark.parametrize("way", WAYS)


def experiment_of(way: str, **changes: Any) -> Experiment:
    size = {} if WAYS[way]["select__name"] == "all" else {"select__clients": 2}
    return tiny(**{"engine__workers": 1, **WAYS[way], **size, **changes})


def ends(outcome: Outcome) -> tuple[str, str, str]:
    """Return digests of the parameters, of what clients keep, and of all the server remembers."""
    return outcome.digest, outcome.personal_digest, digest_of(pack(outcome.state)[1])


@cache
def undisturbed(way: str) -> tuple[str, str, str]:
    return ends(train(experiment_of(way)))


@every_way
def test_cohorts_are_of_existing_clients_with_modalities_they_own(way: str, tmp_path: Path) -> None:
    experiment = experiment_of(way)
    train(experiment, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    owned = [card.modalities for card in build_world(experiment).federation.cards.values()]
    trained = [line for line in lines if line["kind"] == "client" and line["step"] == "train"]
    for number in (1, 2, 3):
        cohort = [line for line in trained if line["round"] == number]
        assert len(cohort) == len({line["client"] for line in cohort}) == (4 if way == "all" else 2)
        for line in cohort:
            assert set(line["modalities"]) <= set(owned[line["client"]])
            assert line["modalities"] == sorted(owned[line["client"]]) or WAYS[way]["select__name"] == "bms"


@every_way
def test_stopping_and_resuming_changes_no_bit(way: str, tmp_path: Path) -> None:
    for done in (1, 2):
        folder = tmp_path / str(done)
        train(experiment_of(way, rounds=done), folder)
        assert ends(train(experiment_of(way), folder, resume=True)) == undisturbed(way)


@every_way
def test_the_number_of_workers_changes_no_bit(way: str) -> None:
    assert ends(train(experiment_of(way, engine__workers=2))) == undisturbed(way)


@every_way
def test_a_reply_lost_at_first_changes_the_run_and_does_not_end_it(way: str) -> None:
    """Of client 1 nothing is known then: its reply to whatever is asked first in round 1 is lost."""
    lost: list[int] = []

    def deliver(number: int, client: int, reply: Reply) -> Reply | None:
        if number == 1 and client == 1 and not lost:
            lost.append(client)
            return None
        return reply

    outcome = train(experiment_of(way, engine__quorum=0.1), deliver=deliver)
    assert outcome.progress.round == 3
    assert (ends(outcome) == undisturbed(way)) == (not lost)


def test_methods_that_share_nothing_are_refused_by_selections_that_compare_updates() -> None:
    for name in ("divfl", "bms"):
        with pytest.raises(UserError, match="the method shares no parameters"):
            train(tiny(select__name=name, select__clients=2, method__name="local"))
