"""DivFL among clients whose updates are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from polyfed.engine.drive import drive
from polyfed.errors import UserError
from polyfed.method.companion import Asked
from polyfed.method.facility import lazy_greedy, represented
from polyfed.method.protocol import UNTRAINED, Clock, Groups, Reply
from polyfed.method.select import Selector, whole_cohort
from polyfed.method.select_diverse import WEIGHTS, WHOLE
from polyfed.method.selections import SELECTORS
from polyfed.method.updates import SQUARES, distances
from polyfed.scenario.federation import Card
from tests.worlds import tiny, train

COUNT = 12
ROSTER = {k: Card(k, f"client {k}", ("image",), ("digit",), 10 + k) for k in range(COUNT)}
SENT = {"encoder.image.weight": torch.ones(3, 4), "head.digit.bias": torch.zeros(2)}


def built(**options: object) -> Selector:
    return SELECTORS.build("divfl", {"clients": 4, **options})


def reply(client: int, seed: int = 0) -> Reply:
    generator = torch.Generator().manual_seed(1000 * seed + client)
    after = {name: value + torch.randn(value.shape, generator=generator) for name, value in SENT.items()}
    return Reply(ROSTER[client].examples, {"parameters": after})


def fed(
    selector: Selector, memory: Groups, clients: range | list[int], *, starting: bool = False, seed: int = 0
) -> Groups:
    cohort = whole_cohort(ROSTER, ROSTER if starting else clients)
    reducer = selector.watch(memory, Asked(SENT, cohort, ROSTER, starting))
    for client in clients:
        reducer.add(client, reply(client, seed))
    assert list(reducer.counted) == list(clients)
    return reducer.finish()


def started(selector: Selector, *lost: int) -> Groups:
    return fed(selector, selector.begin(SENT, ROSTER), [k for k in ROSTER if k not in lost], starting=True)


def choose(selector: Selector, memory: Groups, number: int = 1, seed: int = 0) -> tuple[list[int], Groups]:
    conversation = selector.choose(lambda cohort: {}, memory, ROSTER, Clock(seed, number, 9))
    cohort, after = drive(conversation, lambda wanted: None)
    return list(cohort), after


def test_full_greedy_chooses_by_the_distances_between_whole_updates() -> None:
    selector = built(greedy="full")
    memory = started(selector)
    flat = torch.stack(
        [torch.cat([(SENT[n] - reply(k).tensors["parameters"][n]).flatten() for n in SENT]) for k in ROSTER]
    )
    expected = torch.cdist(flat.double(), flat.double()).numpy()
    found = distances(memory, WHOLE)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (found[~np.eye(COUNT, dtype=bool)] > 0).all(), "the start-up pass gave no update"
    assert choose(selector, memory)[0] == sorted(lazy_greedy(expected, 4))


def test_stochastic_greedy_draws_by_seed_and_round_alone_and_changes_no_input() -> None:
    selector = built()
    memory = started(selector)
    before = {group: {name: value.clone() for name, value in held.items()} for group, held in memory.items()}
    runs = [[choose(selector, memory, number, seed)[0] for number in range(8)] for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    assert len({tuple(cohort) for cohort in runs[0]}) > 1
    for group, held in memory.items():
        assert held.keys() == before[group].keys()
        assert all(torch.equal(value, before[group][name]) for name, value in held.items())
    everybody = built(candidates=10**6)
    assert choose(everybody, memory)[0] == choose(built(greedy="full"), memory)[0]


def test_only_those_who_took_part_are_renewed() -> None:
    selector = built()
    memory = started(selector)
    later = fed(selector, memory, [2, 7], seed=1)
    changed = memory[SQUARES][WHOLE] != later[SQUARES][WHOLE]
    expected = torch.zeros(COUNT, COUNT, dtype=torch.bool)
    expected[[2, 7]] = expected[:, [2, 7]] = True
    expected.fill_diagonal_(False)
    assert torch.equal(changed, expected)
    assert torch.equal(memory[SQUARES][WHOLE], started(selector)[SQUARES][WHOLE])


def test_a_reply_without_parameters_teaches_nothing() -> None:
    selector = built()
    memory = started(selector)
    reducer = selector.watch(memory, Asked(SENT, whole_cohort(ROSTER, ROSTER), ROSTER, starting=True))
    reducer.add(0, Reply(10, {}))
    assert reducer.finish() is memory


@pytest.mark.parametrize("greedy", ["full", "stochastic"])
def test_clients_whose_first_reply_was_lost_are_not_chosen_while_others_are_left(greedy: str) -> None:
    selector = built(greedy=greedy)
    memory = started(selector, 0, 1, 5)
    for number in range(20):
        cohort, _ = choose(selector, memory, number)
        assert len(cohort) == 4
        assert not {0, 1, 5} & set(cohort) or greedy == "stochastic"
    # Of twelve clients, and of at least four candidates, at most three are unknown.
    assert choose(built(greedy=greedy, clients=12), memory)[0] == list(ROSTER)
    nothing = selector.begin(SENT, ROSTER)
    assert len(choose(selector, nothing)[0]) == 4


def test_replies_count_by_how_many_clients_they_stand_for() -> None:
    selector = built(greedy="full", shares="represented")
    cohort, memory = choose(selector, started(selector))
    expected = represented(distances(memory, WHOLE), cohort)
    assert sum(expected) == COUNT
    weigh = selector.reweighed(memory, lambda card, reply: -1.0)
    assert [weigh(ROSTER[client], reply(client)) for client in cohort] == expected
    assert weigh(ROSTER[cohort[0]], Reply(0, {})) == 0.0
    assert set(memory[WEIGHTS]) == {str(client) for client in cohort}
    by_examples = built().reweighed({}, lambda card, reply: float(reply.examples))
    assert by_examples(ROSTER[3], reply(3)) == 13.0


def test_the_start_up_pass_is_held_once_or_before_every_round() -> None:
    assert [built(start_epochs=2).starts(Clock(0, number, 9)) for number in (1, 2)] == [2, None]
    assert [built(fresh=True).starts(Clock(0, number, 9)) for number in (1, 2)] == [1, 1]


def test_candidates_without_a_draw_are_refused() -> None:
    with pytest.raises(UserError, match=r"select\.candidates: 3, but select\.greedy full looks at all"):
        built(greedy="full", candidates=3)


def asked_to(**options: Any) -> list[tuple[int, int]]:
    """Return round and client of every reply of a run."""
    seen = []

    def deliver(number: int, client: int, sent: Reply) -> Reply:
        seen.append((number, client))
        return sent

    train(tiny(select__name="divfl", select__clients=2, rounds=2, **options), deliver=deliver)
    return seen


def test_what_a_run_asks() -> None:
    stale, fresh = asked_to(), asked_to(select__fresh=True)
    assert [number for number, _ in stale] == [1] * 6 + [2] * 2
    assert [number for number, _ in fresh] == [1] * 6 + [2] * 6


def test_of_what_a_client_did_not_train_nothing_is_learnt() -> None:
    selector = built()
    memory = started(selector)
    for idle, learnt in (("encoder.image", False), ("encoder.audio", True)):
        reducer = selector.watch(memory, Asked(SENT, whole_cohort(ROSTER, [3]), ROSTER))
        new = reply(3, seed=5)
        reducer.add(3, Reply(new.examples, new.tensors, {f"{UNTRAINED}{idle}": 1.0}))
        assert torch.equal(reducer.finish()[WHOLE]["3"], memory[WHOLE]["3"]) != learnt


def test_a_method_that_weighs_replies_itself_cannot_be_told_otherwise() -> None:
    changes = {"select__name": "divfl", "select__clients": 2, "select__shares": "represented"}
    with pytest.raises(UserError, match=r"select\.shares: represented, but this method weighs replies itself"):
        train(tiny(method__name="multi-fedavg", rounds=1, **changes))
