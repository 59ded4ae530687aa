"""Power-of-Choice and clients in turn."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch

from polyfed.engine.drive import drive
from polyfed.errors import UserError
from polyfed.experiment.world import build_world
from polyfed.method.companion import Asked
from polyfed.method.protocol import Ask, Clock, Cohort, Groups, Order, Reply
from polyfed.method.select import Selector, whole_cohort
from polyfed.method.select_loss import JUDGE, LAST, LOSS, LOSSES, LargestLoss, successive
from polyfed.method.selections import SELECTORS
from polyfed.scenario.federation import Card
from tests.worlds import tiny, train

SIZES = (10, 20, 30, 40)
ROSTER = {k: Card(k, f"client {k}", ("image",), ("digit",), size) for k, size in enumerate(SIZES)}


def draft(cohort: Cohort) -> dict[int, Order]:
    order = Order("train", frozenset({"image"}), {"parameters": {}, "prototypes": {}})
    return dict.fromkeys(cohort, order)


def built(**options: object) -> Selector:
    return SELECTORS.build("pow-d", options)


def losses_of(found: dict[int, float]) -> Callable[[Ask], dict[int, Reply]]:
    """Answer orders to judge with these losses; who has none does not answer."""

    def answer(wanted: Ask) -> dict[int, Reply]:
        for order in wanted.orders.values():
            assert (order.step, set(order.tensors), order.expects) == (JUDGE, {"parameters"}, {})
            assert order.needs == {LOSS: (0.0, math.inf)}
        asked.append(sorted(wanted.orders))
        return {k: Reply(1, {}, {LOSS: found[k]}) for k in wanted.orders if k in found}

    asked.clear()
    return answer


asked: list[list[int]] = []


def chosen(
    selector: Selector, number: int, losses: dict[int, float], memory: Groups | None = None, seed: int = 0
) -> list[int]:
    conversation = selector.choose(draft, memory or selector.begin({}, ROSTER), ROSTER, Clock(seed, number, 9))
    cohort, _ = drive(conversation, losses_of(losses))
    return list(cohort)


# ------------------------------------------------------------------------------------------------ pow-d


def test_the_largest_losses_of_the_candidates_are_taken() -> None:
    losses = {0: 0.5, 1: 2.0, 2: 1.0, 3: 0.1}
    assert chosen(built(clients=2), 1, losses) == [1, 2]
    assert asked == [[0, 1, 2, 3]]
    for number in range(20):
        found = chosen(built(clients=1, candidates=2), number, losses)
        (candidates,) = asked
        assert found == [max(candidates, key=lambda k: losses[k])]


def test_equal_losses_are_drawn_among_and_lost_answers_come_last() -> None:
    equal = Counter(
        client for number in range(400) for client in chosen(built(clients=1), number, dict.fromkeys(range(4), 1.0))
    )
    assert all(60 < equal[client] < 140 for client in range(4))
    assert chosen(built(clients=2), 1, {0: 0.0, 2: 0.0}) == [0, 2]
    assert len(chosen(built(clients=3), 1, {0: 0.0})) == 3


def shares(draws: list[tuple[int, ...]]) -> dict[tuple[int, ...], float]:
    return {found: count / len(draws) for found, count in Counter(draws).items()}


@pytest.mark.parametrize("options", [{"draw": "uniform"}, {"draw": "examples"}])
def test_with_as_many_candidates_as_clients_only_the_uniform_draw_is_random_selection(options: dict[str, Any]) -> None:
    """Six pairs: all equally likely with the uniform draw, and far from it with samples of 10 to 40."""
    selector = built(clients=2, candidates=2, **options)
    found = shares([tuple(chosen(selector, number, dict.fromkeys(range(4), 0.0))) for number in range(3000)])
    apart = max(abs(found.get(pair, 0) - 1 / 6) for pair in [(a, b) for a in range(4) for b in range(a + 1, 4)])
    assert (apart < 0.03) == (options["draw"] == "uniform")


def test_the_proportional_draw_has_the_probabilities_of_drawing_one_after_another() -> None:
    rng = np.random.default_rng(0)
    found = shares([tuple(successive(rng, SIZES, 2)) for _ in range(20_000)])
    for first, second in permutations(range(4), 2):
        expected = SIZES[first] / 100 * SIZES[second] / (100 - SIZES[first])
        assert found[first, second] == pytest.approx(expected, abs=0.012)


def test_clients_without_samples_are_drawn_last() -> None:
    rng = np.random.default_rng(0)
    assert all(set(successive(rng, [0, 5, 0, 5], 2)) == {1, 3} for _ in range(50))
    assert sorted(successive(rng, [0, 5, 0, 5], 4)) == [0, 1, 2, 3]
    assert {successive(rng, [0, 0], 1)[0] for _ in range(50)} == {0, 1}


def test_a_draw_depends_on_seed_and_round_alone() -> None:
    losses = dict.fromkeys(range(4), 1.0)
    selector = built(clients=2, candidates=3)
    runs = [[chosen(selector, number, losses, seed=seed) for number in range(20)] for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize(("candidates", "clients"), [(1, 2), (5, 2)])
def test_a_wrong_number_of_candidates_is_refused(candidates: int, clients: int) -> None:
    with pytest.raises(UserError, match=rf"select\.candidates: {candidates} candidates; choose from 2 .* to 4"):
        built(clients=clients, candidates=candidates).begin({}, ROSTER)
    with pytest.raises(UserError, match=r"select\.clients: 5 clients per round, but the federation has 4"):
        built(clients=5).begin({}, ROSTER)


def test_without_a_number_ten_candidates_or_as_many_as_clients() -> None:
    many = {k: Card(k, f"client {k}", ("image",), ("digit",), 5) for k in range(30)}
    for clients, expected in ((3, 10), (12, 12)):
        drive(built(clients=clients).choose(draft, {}, many, Clock(0, 1, 1)), losses_of(dict.fromkeys(many, 1.0)))
        assert len(asked[0]) == expected


def test_last_losses_are_remembered_and_unseen_clients_come_first() -> None:
    selector = built(clients=2, estimate="last")
    assert selector.steps == {}
    memory = selector.begin({}, ROSTER)
    assert memory[LOSSES][LAST].tolist() == [math.inf] * 4
    cohort = whole_cohort(ROSTER, [0, 1, 2])
    reducer = selector.watch(memory, Asked({}, cohort, ROSTER))
    reducer.add(0, Reply(1, {}, {"loss": 9.0, "loss.digit": 0.5, "proximal": 8.0}))
    reducer.add(1, Reply(1, {}, {"loss.digit": 0.7, "loss.parity": 5.0}))
    reducer.add(2, Reply(1, {}, {"steps": 1.0}))
    assert reducer.counted == (0, 1, 2)
    memory = reducer.finish()
    assert memory[LOSSES][LAST].tolist() == [
        0.5,
        0.7,
        0.0,
        math.inf,
    ]  # a reply without a loss is no reason to be chosen
    assert chosen(selector, 1, {}, memory) == [1, 3]
    assert chosen(built(clients=3, estimate="last"), 1, {}, memory) == [0, 1, 3]
    starting = selector.watch(memory, Asked({}, cohort, ROSTER, starting=True))
    starting.add(3, Reply(1, {}, {"loss.digit": 0.1}))
    assert starting.finish() is memory


def judged_by(estimate: str, **changes: Any) -> dict[tuple[int, int], float]:
    """Return by round and client what candidates of a real run reported."""
    found = {}

    def deliver(number: int, client: int, reply: Reply) -> Reply:
        if not reply.tensors:
            found[number, client] = reply.numbers[LOSS]
            assert set(reply.numbers) == {LOSS}
        return reply

    options = {"select__clients": 2, "select__estimate": estimate, "rounds": 2, **changes}
    train(tiny(select__name="pow-d", **options), deliver=deliver)
    return found


def test_candidates_judge_the_received_model_on_their_training_samples() -> None:
    """Of the untrained model, the loss is the sum over tasks of the mean loss: that of a model measured by hand."""
    found = judged_by("whole")
    assert found.keys() == {(number, client) for number in (1, 2) for client in range(4)}
    world = build_world(tiny())
    initial = world.architecture.initial(3)
    for client in range(4):
        held = world.federation.client(client)
        model = world.architecture.assemble(held.card.components)
        model.load_state_dict({name: value for name, value in initial.items() if name in model.state_dict()})
        model.eval()
        with torch.no_grad():
            predictions = model(held.train.batch()).predictions
        expected = sum(
            float(torch.nn.functional.cross_entropy(predictions[task], held.train.batch().targets[task]))
            for task in held.card.tasks
        )
        assert found[1, client] == pytest.approx(expected, rel=1e-4)


def test_a_batch_is_another_one_each_round_and_close_to_the_whole() -> None:
    whole, batch = judged_by("whole"), judged_by("batch", select__batch_size=16)
    assert batch.keys() == whole.keys()
    assert any(batch[key] != whole[key] for key in batch)
    for client in range(4):
        assert batch[1, client] == pytest.approx(whole[1, client], rel=0.3)
    assert judged_by("batch", select__batch_size=10**6)[1, 0] == pytest.approx(whole[1, 0], rel=1e-5)


# ------------------------------------------------------------------------------------------------ in turn


def test_clients_in_turn_wrap_around() -> None:
    selector = SELECTORS.build("round_robin", {"clients": 3})
    assert [chosen(selector, number, {}) for number in (1, 2, 3, 4, 5)] == [
        [0, 1, 2],
        [0, 1, 3],
        [0, 2, 3],
        [1, 2, 3],
        [0, 1, 2],
    ]
    assert selector.begin({}, ROSTER) == {}
    with pytest.raises(UserError, match="5 clients per round"):
        chosen(SELECTORS.build("round_robin", {"clients": 5}), 1, {})


def test_the_default_selector_is_a_value() -> None:
    assert built() == LargestLoss(10)
