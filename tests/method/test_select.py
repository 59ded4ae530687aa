from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from polyfed.engine.drive import drive
from polyfed.errors import UserError
from polyfed.experiment.world import build_world
from polyfed.method.objective import supervised
from polyfed.method.protocol import (
    ClientStep,
    Clock,
    Cohort,
    Conversation,
    Groups,
    Measure,
    Order,
    Reply,
    Work,
    ask,
    join,
    measure,
)
from polyfed.method.select import Draft, Everyone, Selector, uniform, whole_cohort
from polyfed.method.selections import SELECTORS
from polyfed.model.architecture import Tensors
from polyfed.rng import numpy_generator
from polyfed.scenario.federation import Card, Cards, Client, Roster
from tests.worlds import tiny, train

ROSTER = {k: Card(k, f"client {k}", ("audio", "image") if k % 2 else ("image",), ("digit",), 10) for k in range(20)}


def undrafted(cohort: Cohort) -> dict[int, Order]:
    raise AssertionError("nothing is asked")


def choose(selector: Selector, round_number: int = 1, seed: int = 0) -> dict[int, frozenset[str]]:
    conversation = selector.choose(undrafted, {}, ROSTER, Clock(seed, round_number, 10))
    cohort, memory = drive(conversation, lambda wanted: None)
    assert memory == {}
    return dict(cohort)


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


def drawn(roster: Roster, number: int) -> list[int]:
    cohort, _ = drive(uniform(clients=5).choose(undrafted, {}, roster, Clock(0, number, 10)), lambda wanted: None)
    return list(cohort)


def test_a_draw_depends_on_the_order_of_the_roster_alone() -> None:
    """Numbered clients are not listed to draw some of them; those drawn are the same."""
    sets = [card.modalities for card in ROSTER.values()]
    numbered = Cards(sets, [("digit",)] * 20, np.full(20, 10), {})
    shifted = {k + 100: card for k, card in ROSTER.items()}
    for number in range(1, 20):
        generator = numpy_generator(*Clock(0, number, 10).key("select"))
        expected = generator.choice(np.arange(20), 5, replace=False, shuffle=False)
        assert drawn(numbered, number) == drawn(ROSTER, number) == sorted(expected.tolist())
        assert drawn(shifted, number) == [k + 100 for k in drawn(ROSTER, number)]


def test_only_the_cohort_is_asked() -> None:
    outcome = train(tiny(select__name="random", select__clients=2, rounds=1, method__name="local"))
    assert len(outcome.personal) == 2


@dataclass(frozen=True)
class Worst(Everyone):
    """Asks every client for its loss, trains the two worst, and counts how often each was chosen."""

    @property
    def steps(self) -> Mapping[str, ClientStep]:
        return {"measure": self.measure}

    def measure(self, order: Order, personal: Groups, client: Client, clock: Clock) -> Work:
        start = join(order.tensors["parameters"], personal.get("parameters", {}), client=client.card.id)
        numbers = yield from measure(Measure(supervised, start, client.train, order.active))
        return Reply(len(client.train), {}, {"loss": numbers["loss"]}), personal

    def begin(self, initial: Tensors, roster: Roster) -> Groups:
        return {"chosen": {"times": torch.zeros(len(roster))}}

    def choose(self, draft: Draft, memory: Groups, roster: Roster, clock: Clock) -> Conversation[tuple[Cohort, Groups]]:
        orders = draft(whole_cohort(roster, roster))
        replies = yield from ask({k: replace(order, step="measure", expects={}) for k, order in orders.items()})
        worst = sorted(replies, key=lambda k: -replies[k].numbers["loss"])[:2]
        times = memory["chosen"]["times"].clone()
        times[worst] += 1
        return {k: frozenset(roster[k].modalities) for k in sorted(worst)}, {"chosen": {"times": times}}


def test_a_selector_may_exchange_and_remember_and_its_memory_survives_a_stop(tmp_path: Path) -> None:
    world = build_world(tiny(rounds=3))
    context = replace(world.method.context, select=Worst())
    worst = replace(world, method=replace(world.method, context=context))
    whole = worst.loop().run()
    assert float(whole.state.selection["chosen"]["times"].sum()) == 3 * 2
    short = replace(worst, experiment=tiny(rounds=1))
    short.loop(tmp_path).run()
    resumed = worst.loop(tmp_path).run(resume=True)
    assert resumed.digest == whole.digest
    assert torch.equal(resumed.state.selection["chosen"]["times"], whole.state.selection["chosen"]["times"])
