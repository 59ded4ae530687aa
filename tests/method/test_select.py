from __future__ import annotations

import pytest

from polyfed.engine.drive import drive
from polyfed.errors import UserError
from polyfed.method.protocol import Clock
from polyfed.method.select import SELECTORS, Selector
from polyfed.scenario.federation import Card
from tests.worlds import tiny, train

ROSTER = {k: Card(k, f"client {k}", ("audio", "image") if k % 2 else ("image",), ("digit",), 10) for k in range(20)}


def choose(selector: Selector, round_number: int = 1, seed: int = 0) -> dict[int, frozenset[str]]:
    return dict(drive(selector(ROSTER, Clock(seed, round_number, 10)), lambda wanted: None))


def test_everyone_takes_part_with_all_modalities() -> None:
    chosen = choose(SELECTORS.build("all", {}))
    assert chosen.keys() == ROSTER.keys()
    assert chosen[1] == {"audio", "image"} and chosen[2] == {"image"}


def test_random_draws_so_many_clients_without_replacement_and_anew_each_round() -> None:
    selector = SELECTORS.build("random", {"clients": 5})
    cohorts = [tuple(choose(selector, number)) for number in range(1, 30)]
    assert all(len(set(cohort)) == 5 and list(cohort) == sorted(cohort) for cohort in cohorts)
    assert len(set(cohorts)) > 20
    assert {client for cohort in cohorts for client in cohort} == set(ROSTER)
    assert choose(selector, 3) == choose(selector, 3)
    assert choose(selector, 3, seed=1) != choose(selector, 3)


def test_more_clients_per_round_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match=r"select\.clients: 21 clients per round, but the federation has 20"):
        choose(SELECTORS.build("random", {"clients": 21}))


def test_only_the_cohort_is_asked() -> None:
    outcome = train(tiny(select__name="random", select__clients=2, rounds=1, method__name="local"))
    assert len(outcome.personal) == 2
