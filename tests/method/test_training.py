"""Recipes that vary, matched passes, and schedules of the learning rate."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfed.engine.batching import Rule
from polyfed.engine.minibatches import batches
from polyfed.engine.resident import Resident
from polyfed.engine.trainer import Trainer
from polyfed.method.objective import supervised
from polyfed.method.protocol import Clock, Fit, Fitted, Recipe
from polyfed.method.training import Descend, MatchedPasses, Trained, Training, expected_epochs, passes, recipe_of
from polyfed.model.modular import modular
from polyfed.scenario.federation import Card, Client
from tests.engine.cohorts import alone, answers, assert_agree, cohort, fit_of, table_of, together
from tests.model.examples import DIGIT, PULSE, TEXT, VECTOR

DATA = table_of([VECTOR], [DIGIT], 3).everything()


# -------------------------------------------------------------------------- variable local work

VARIES = Recipe(lr=0.1, momentum=0.5, epochs=5, least_epochs=2)


def epochs(recipe: Recipe, client: int = 0, number: int = 1, seed: int = 0) -> int:
    return recipe_of(recipe, Clock(seed, number, 100), client).epochs


def test_without_a_least_number_of_epochs_the_recipe_stays_as_it_is() -> None:
    recipe = Recipe(epochs=3)
    assert recipe_of(recipe, Clock(0, 1, 1), 0) is recipe


def test_only_the_number_of_epochs_is_drawn() -> None:
    found = recipe_of(VARIES, Clock(0, 1, 1), 0)
    assert found == replace(VARIES, epochs=found.epochs, least_epochs=None)


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(0, 20), st.integers(0, 10**6), st.integers(1, 1000), st.integers(0, 1000))
def test_the_number_of_epochs_is_in_range(least: int, more: int, seed: int, number: int, client: int) -> None:
    recipe = Recipe(epochs=least + more, least_epochs=least)
    found = epochs(recipe, client, number, seed)
    assert least <= found <= least + more
    assert found == epochs(recipe, client, number, seed)


def test_both_ends_are_drawn_and_all_between_them_about_as_often() -> None:
    """Of 400 draws each number is expected 100 times, give or take 8.7."""
    drawn = [epochs(VARIES, client, number) for client in range(20) for number in range(1, 21)]
    assert {count: 60 < drawn.count(count) < 140 for count in set(drawn)} == dict.fromkeys((2, 3, 4, 5), True)


def test_clients_rounds_and_seeds_draw_for_themselves() -> None:
    by_client = [epochs(VARIES, client) for client in range(40)]
    by_round = [epochs(VARIES, 0, number) for number in range(1, 41)]
    by_seed = [epochs(VARIES, 0, 1, seed) for seed in range(40)]
    assert all(len(set(found)) == 4 for found in (by_client, by_round, by_seed))
    assert len({tuple(found) for found in (by_client, by_round, by_seed)}) == 3


# -------------------------------------------------------------------------- matched passes


def training(recipe: Recipe, number: int, total: int) -> Training:
    client = Client.of(Card(0, "everybody", ("vector",), ("digit",), 3), DATA, DATA, DATA)
    start = {"a": torch.zeros(1)}
    return Training(client, Clock(0, number, total), start, start, DATA, frozenset({"vector"}), recipe)


def one_round(local: MatchedPasses, number: int, total: int, each: int) -> tuple[int, Trained]:
    """Return how many epochs are asked for (0: none), and what local training ends with."""
    work = local(training(Recipe(epochs=each), number, total))
    try:
        request = next(work)
    except StopIteration as end:
        return 0, end.value
    assert isinstance(request, Fit)
    with pytest.raises(StopIteration) as ended:
        work.send(Fitted({"a": torch.ones(1)}, 7, {"loss": 2.0}))
    return request.recipe.epochs, ended.value.value


def taken(share: float, rounds: int, each: int) -> list[int]:
    return [one_round(MatchedPasses(share, each), number, rounds, each)[0] for number in range(1, rounds + 1)]


def test_passes_by_hand() -> None:
    """A tenth of two epochs: one pass in the first round, and one every fifth from there on."""
    assert taken(0.1, 12, 2) == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]
    assert taken(0.5, 5, 3) == [2, 1, 2, 1, 2]
    assert taken(1.0, 4, 3) == [3, 3, 3, 3]


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 7), st.integers(1, 50), st.data())
def test_all_passes_add_up_to_those_of_the_federated_run(rounds: int, each: int, clients: int, data: Any) -> None:
    """ceil(rounds · epochs · share), exactly, and never more than a pass away from an even pace."""
    asked = data.draw(st.integers(1, clients))
    found = taken(asked / clients, rounds, each)
    share = Fraction(asked, clients)
    assert [sum(found[:number]) for number in range(1, rounds + 1)] == [
        math.ceil(number * each * share) for number in range(1, rounds + 1)
    ]


def test_a_number_of_passes_is_rounded_up_but_not_for_a_rounding_error() -> None:
    assert [passes(value) for value in (0.0, 1e-12, 0.2, 1.0, 20.000000000000004, 19.999999999999996)] == (
        [0, 0, 1, 1, 20, 20]
    )


def test_a_round_without_passes_changes_nothing_and_took_no_step() -> None:
    asked, trained = one_round(MatchedPasses(0.1, 2), 2, 12, 2)
    assert asked == 0
    assert (float(trained.parameters["a"]), dict(trained.numbers)) == (0.0, {"steps": 0.0})


def test_a_round_with_passes_trains() -> None:
    asked, trained = one_round(MatchedPasses(0.1, 2), 6, 12, 2)
    assert asked == 1
    assert (float(trained.parameters["a"]), dict(trained.numbers)) == (1.0, {"loss": 2.0, "steps": 7.0})


def test_descending_asks_for_one_fit_of_all_there_is() -> None:
    given_ = training(Recipe(epochs=2), 1, 1)
    request = next(Descend()(given_))
    assert request == Fit(supervised, given_.start, DATA, given_.recipe, given_.active)
    anchored = next(Descend(anchored=True)(given_))
    assert isinstance(anchored, Fit)
    assert anchored.extra == {"anchor": given_.received}


# -------------------------------------------------------------------------- schedules


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0.25]),
        ("cosine", [1, 0.853553, 0.5, 0.146447]),
    ],
)
def test_shares_of_the_learning_rate(schedule: Any, expected: list[float]) -> None:
    recipe = Recipe(schedule=schedule)
    assert [recipe.share_of_lr(step, 4) for step in range(4)] == pytest.approx(expected, abs=5e-7)
    assert recipe.share_of_lr(0, 1) == 1.0


@settings(deadline=None)
@given(st.sampled_from(["linear", "cosine"]), st.integers(2, 200))
def test_schedules_fall_from_one_and_stay_above_zero(schedule: Any, steps: int) -> None:
    shares = [Recipe(schedule=schedule).share_of_lr(step, steps) for step in range(steps)]
    assert shares[0] == 1
    assert all(0 < later < earlier for earlier, later in pairwise(shares))
    assert sum(shares) == pytest.approx((steps + 1) / 2)


ARCHITECTURE = modular(
    {"vector": VECTOR, "text": TEXT},
    {"digit": DIGIT, "pulse": PULSE},
    width=8,
    encoders={"vector": {"name": "mlp", "hidden": [6]}},
)
EQUAL = (8, 6, 7, 5)
"""With batches of 4: two steps per epoch each."""

SCHEDULED = [
    Recipe(lr=0.1, epochs=2, batch_size=4),
    Recipe(lr=0.1, momentum=0.9, weight_decay=0.01, epochs=2, batch_size=4),
    Recipe(lr=0.1, momentum=0.9, epochs=3, batch_size=4, clip_norm=0.3),
    Recipe("adam", lr=0.01, epochs=2, batch_size=4),
    Recipe("adamw", lr=0.01, weight_decay=0.1, epochs=2, batch_size=4),
]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("recipe", SCHEDULED, ids=lambda recipe: f"{recipe.optimizer} {recipe.momentum}")
def test_stacked_training_follows_the_schedule_as_training_one_by_one_does(recipe: Recipe, schedule: Any) -> None:
    pending = cohort(ARCHITECTURE, EQUAL, replace(recipe, schedule=schedule))
    found = together(ARCHITECTURE, pending)
    assert_agree(found, alone(ARCHITECTURE, pending))
    constant = together(ARCHITECTURE, cohort(ARCHITECTURE, EQUAL, recipe))
    for one, other in zip(found, constant, strict=True):
        assert one.steps == other.steps == 2 * recipe.epochs
        assert any(not torch.allclose(value, other.parameters[name]) for name, value in one.parameters.items())


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_clients_of_unequal_steps_are_stacked_apart_and_agree(schedule: Any) -> None:
    """Two clients of 2 steps an epoch, two of 1, and one of 3 that has nobody to be stacked with."""
    recipe = Recipe(lr=0.1, momentum=0.9, epochs=2, batch_size=4, schedule=schedule)
    pending = cohort(ARCHITECTURE, (8, 3, 5, 4, 11), recipe)
    trainer = Trainer(ARCHITECTURE, rule=Rule("on"))
    found = answers(trainer, pending)
    assert trainer.paths["stacked"] == 4 and trainer.paths.total() == 5
    assert [one.steps for one in found] == [4, 2, 4, 2, 6]
    assert_agree(found, alone(ARCHITECTURE, pending))


def gradients(model: Resident, batch: Any) -> dict[str, torch.Tensor]:
    loss, _ = supervised(model, batch, {})
    return dict(zip(model.parameters, torch.autograd.grad(loss, list(model.parameters.values())), strict=True))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_linear_schedule_by_a_loop_of_our_own(momentum: float) -> None:
    """Step j of n: w −= lr (1 − j / n) u, with u = momentum u + gradient."""
    recipe = Recipe(lr=0.1, momentum=momentum, epochs=2, batch_size=4, schedule="linear")
    (pending,) = cohort(ARCHITECTURE, (10,), recipe)
    request = fit_of(pending)
    (found,) = alone(ARCHITECTURE, [pending])
    model = Trainer(ARCHITECTURE).model(pending.card.components)
    at = dict(request.start)
    buffer = {name: torch.zeros_like(value) for name, value in at.items()}
    parts = batches(10, 2, 4, pending.key)
    for step, positions in enumerate(parts):
        model.load(at)
        for name, slope in gradients(model, request.data.batch(positions)).items():
            buffer[name] = momentum * buffer[name] + slope
            at[name] = at[name] - 0.1 * (1 - step / len(parts)) * buffer[name]
    assert found.steps == len(parts) == 6
    for name, value in at.items():
        torch.testing.assert_close(found.parameters[name], value, rtol=1e-4, atol=1e-6)


@given(st.integers(1, 30), st.integers(1, 5), st.integers(0, 5), st.floats(0.05, 1))
def test_passes_match_on_average_where_epochs_are_drawn(rounds: int, least: int, more: int, share: float) -> None:
    recipe = Recipe(epochs=least + more, least_epochs=least)
    local = MatchedPasses(share, expected_epochs(recipe))
    asked = [one_round(local, number, rounds, least)[0] for number in range(1, rounds + 1)]
    assert sum(asked) == math.ceil(rounds * (2 * least + more) / 2 * share - 1e-9)


def test_the_rate_rises_before_it_falls() -> None:
    recipe = Recipe(schedule="linear", warmup=0.25)
    assert [recipe.share_of_lr(step, 8) for step in range(8)] == pytest.approx(
        [1 / 2, 1, 1, *(k / 6 for k in range(5, 0, -1))]
    )
    assert [Recipe(warmup=0.3).share_of_lr(step, 4) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]
    assert Recipe(warmup=0.3).scheduled and not Recipe().scheduled
    assert Recipe(schedule="cosine", warmup=0.03).share_of_lr(0, 10) == 1.0  # never 0, not even at first


def test_a_fit_may_be_nothing_but_warming_up() -> None:
    assert Recipe(schedule="cosine", warmup=0.9).share_of_lr(0, 1) == 1.0
