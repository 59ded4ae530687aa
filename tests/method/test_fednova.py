"""FedNova (methods sheet FedHGB, sections 6 and 8.21)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyfed.engine.checklist import Checklist
from polyfed.engine.optimizers import optimizer
from polyfed.engine.screen import screen
from polyfed.engine.trainer import Trainer
from polyfed.method.averaging import Averaging, Context
from polyfed.method.combine import Mean, MeanOverHolders, diluted
from polyfed.method.fednova import LARGEST_NORM, NORM, NormalisedMean, Normed, fednova, local_norm, normalised_mean
from polyfed.method.objective import Proximal
from polyfed.method.protocol import Clock, Fit, Fitted, Order, Recipe, Reply
from polyfed.method.server import Replace, ServerSGD
from polyfed.method.training import Descend, Training
from polyfed.scenario.federation import Card, Client
from tests.engine.cohorts import Toy, table_of
from tests.model.examples import DIGIT, VECTOR

# -------------------------------------------------------------------------- how much work local training is


@pytest.mark.parametrize(
    ("recipe", "steps", "mu", "expected"),
    [
        (Recipe(momentum=0.9), 7, 0.0, 23.046721),
        (Recipe(lr=0.1), 7, 0.1, 6.793465),
        (Recipe(), 7, 0.0, 7.0),
        (Recipe(schedule="linear"), 4, 0.0, 2.5),  # 1 + 3/4 + 2/4 + 1/4
        (Recipe(schedule="cosine"), 4, 0.0, 2.5),  # 1 + 0.853553 + 0.5 + 0.146447
        (Recipe(momentum=0.5, schedule="linear"), 2, 0.0, 1.75),  # g_0 + (g_0 / 2 + g_1) / 2
        (Recipe(lr=0.5, momentum=0.5), 2, 0.2, 2.4),  # D_1 = g_0; m = g_0 / 2 + g_1 − 0.1 g_0; D_2 = 1.4 g_0 + g_1
    ],
)
def test_golden_norms(recipe: Recipe, steps: int, mu: float, expected: float) -> None:
    assert local_norm(recipe, steps, mu) == pytest.approx(expected, abs=5e-7)


def test_one_step_is_one_and_no_step_nothing_however_it_is_taken() -> None:
    for recipe in (
        Recipe(),
        Recipe(momentum=0.9),
        Recipe(schedule="linear"),
        Recipe(schedule="cosine"),
        Recipe("adam"),
    ):
        assert (local_norm(recipe, 1, 0.3), local_norm(recipe, 0, 0.3)) == (1.0, 0.0)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_of_adaptive_optimisers_only_the_steps_are_known(name: str) -> None:
    assert local_norm(Recipe(name, momentum=0.9, schedule="linear"), 7, 0.5) == 7.0


fractions = st.floats(0.0, 0.95)


@settings(deadline=None)
@given(fractions, st.integers(1, 40))
def test_the_closed_form_for_momentum(momentum: float, steps: int) -> None:
    expected = (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
    assert local_norm(Recipe(momentum=momentum), steps) == pytest.approx(expected)


@settings(deadline=None)
@given(st.floats(1e-3, 1.0), st.floats(1e-2, 1.0), st.integers(1, 40))
def test_the_closed_form_for_the_proximal_term(lr: float, mu: float, steps: int) -> None:
    expected = (1 - (1 - lr * mu) ** steps) / (lr * mu)
    assert local_norm(Recipe(lr=lr), steps, mu) == pytest.approx(expected)


recipes = st.builds(
    Recipe,
    lr=st.floats(0.01, 0.5),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
)


def influence(recipe: Recipe, steps: int, mu: float) -> Tensor:
    """Return a (steps,): run the library's optimiser on one number per step, which only that step's gradient moves."""
    start = torch.full((steps,), 0.3, dtype=torch.float64)
    moving = start.clone()
    rule = optimizer(recipe, [moving])
    for step in range(steps):
        gradient = mu * (moving - start)
        gradient[step] += 1
        rule.step([gradient], recipe.share_of_lr(step, steps))
    return (start - moving) / recipe.lr


@settings(max_examples=150, deadline=None)
@given(recipes, st.integers(1, 25), st.sampled_from([0.0, 0.1, 2.0]))
def test_the_norm_is_that_of_the_librarys_solver(recipe: Recipe, steps: int, mu: float) -> None:
    """Plain, with momentum, proximal, both; each under every schedule."""
    assert local_norm(recipe, steps, mu) == pytest.approx(float(influence(recipe, steps, mu).abs().sum()))


def steady(model: Any, batch: Any, extra: Any) -> Any:
    """A loss with slope 1 everywhere, and a proximal term as ``Proximal`` has it."""
    scale = model.parameters["net.scale"]
    return scale + 0.5 * extra["mu"]["mu"] * (scale - extra["anchor"]["net.scale"]).square(), {}


@pytest.mark.parametrize("mu", [0.0, 0.4])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_slope_of_one_moves_a_parameter_by_lr_times_the_norm(schedule: Any, momentum: float, mu: float) -> None:
    """Trained by the engine; no step's gradient enters with a negative sign here."""
    recipe = Recipe(lr=0.05, momentum=momentum, epochs=2, batch_size=4, schedule=schedule)
    architecture = Toy()
    start = architecture.initial(0)
    extra = {"anchor": start, "mu": {"mu": torch.tensor(mu)}}
    data = table_of([VECTOR], [DIGIT], 10).everything()
    request = Fit(steady, start, data, recipe, frozenset({"vector"}), extra=extra)
    card = Card(0, "client 0", ("vector",), ("digit",), 10, ("net",))
    fitted = Trainer(architecture).fit(card, request, ("key",))
    assert fitted.steps == 6
    moved = float(start["net.scale"] - fitted.parameters["net.scale"])
    assert moved / recipe.lr == pytest.approx(local_norm(recipe, 6, mu), rel=1e-4)


def conversed(local: Normed, steps: int, recipe: Recipe) -> tuple[Fit, Mapping[str, float]]:
    """Answer the fit of one client, and return it with the numbers of the reply."""
    data = table_of([VECTOR], [DIGIT], 3).everything()
    client = Client.of(Card(0, "client 0", ("vector",), ("digit",), 3), data, data, data)
    start = {"a": torch.zeros(2)}
    work = local(Training(client, Clock(0, 1, 1), start, start, data, frozenset({"vector"}), recipe))
    request = next(work)
    assert isinstance(request, Fit)
    with pytest.raises(StopIteration) as end:
        work.send(Fitted(start, steps, {"loss": 1.5}))
    return request, end.value.value.numbers


def test_a_client_reports_the_norm_of_the_steps_it_took() -> None:
    recipe = Recipe(lr=0.1, momentum=0.9)
    request, numbers = conversed(Normed(Descend(Proximal(0.5), anchored=True), 0.5), 7, recipe)
    assert numbers == {"loss": 1.5, "steps": 7.0, NORM: local_norm(recipe, 7, 0.5)}
    assert (request.objective, set(request.extra)) == (Proximal(0.5), {"anchor"})
    assert conversed(Normed(Descend()), 0, recipe)[1][NORM] == 0.0


# -------------------------------------------------------------------------- the server's mean


def reply(examples: int, norm: float, **tensors: float) -> Reply:
    held = {name: torch.tensor([value], dtype=torch.float64) for name, value in tensors.items()}
    return Reply(examples, {"parameters": held}, {NORM: norm})


def by_examples(client: int, received: Reply) -> float:
    return float(received.examples)


def normalised(current: Mapping[str, float], replies: Sequence[Reply]) -> Mean:
    held = {name: torch.tensor([value], dtype=torch.float64) for name, value in current.items()}
    reducer = normalised_mean(by_examples, held, Clock(0, 1, 1))
    assert isinstance(reducer, NormalisedMean)
    for client, received in enumerate(replies):
        reducer.add(client, received)
    assert reducer.counted == tuple(range(len(replies)))
    return reducer.finish()


def floats(mean: Mean) -> dict[str, float]:
    return {name: float(value) for name, value in mean.values.items()}


def test_three_steps_count_a_third_each() -> None:
    """τ = (1, 3) and equal shares: the server moves by Δ_1 + Δ_2 / 3 = 1 + 4."""
    mean = normalised({"a": 10.0}, [reply(5, 1.0, a=11.0), reply(5, 3.0, a=22.0)])
    assert floats(mean) == pytest.approx({"a": 15.0})
    assert (mean.weights, mean.total) == ({"a": 10.0}, 10.0)


def test_every_tensor_is_normalised_over_those_who_hold_it() -> None:
    """a: τ = (1 · 2 + 3 · 4) / 4 = 3.5 times (1 · 6 / 2 + 3 · 8 / 4) / 4 = 2.25; b has one holder."""
    mean = normalised({"a": 0.0, "b": 1.0}, [reply(1, 2.0, a=6.0), reply(3, 4.0, a=8.0, b=5.0)])
    assert floats(mean) == pytest.approx({"a": 7.875, "b": 5.0})
    current = {name: torch.tensor([value], dtype=torch.float64) for name, value in (("a", 0.0), ("b", 1.0))}
    assert floats(diluted(mean, current)) == pytest.approx({"a": 7.875, "b": 4.0})


values = st.floats(-10, 10)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 100), values), min_size=1, max_size=8), st.floats(0.1, 100), values)
def test_equal_work_is_fedavg_up_to_rounding(held: list[tuple[int, float]], norm: float, current: float) -> None:
    replies = [reply(examples, norm, a=value) for examples, value in held]
    plain = MeanOverHolders(by_examples)
    for client, received in enumerate(replies):
        plain.add(client, received)
    expected = floats(plain.finish())
    assert floats(normalised({"a": current}, replies)) == pytest.approx(expected, abs=1e-9)


def test_a_client_without_a_step_counts_nothing() -> None:
    """Not for τ either: its samples would lower it."""
    others = [reply(5, 1.0, a=11.0), reply(5, 3.0, a=22.0)]
    mean = normalised({"a": 10.0}, [*others, reply(90, 0.0, a=10.0)])
    assert floats(mean) == pytest.approx({"a": 15.0})
    assert mean.total == 10.0
    assert normalised({"a": 10.0}, [reply(3, 0.0, a=10.0)]).values == {}


@pytest.mark.parametrize("norm", [5e-324, 1e-300, 1e-40, 1e-9])
def test_a_client_that_claims_next_to_no_work_cannot_blow_its_change_up(norm: float) -> None:
    held = {"a": torch.tensor([10.0])}
    reducer = NormalisedMean(by_examples, held)
    reducer.add(0, Reply(5, {"parameters": {"a": torch.tensor([11.0])}}, {NORM: 2.0}))
    reducer.add(1, Reply(5, {"parameters": {"a": torch.tensor([99.0])}}, {NORM: norm}))
    assert floats(reducer.finish()) == {"a": 11.0}


def test_replies_and_the_servers_parameters_are_not_changed() -> None:
    current, received = {"a": torch.ones(3)}, Reply(2, {"parameters": {"a": torch.full((3,), 5.0)}}, {NORM: 4.0})
    reducer = NormalisedMean(by_examples, current)
    reducer.add(0, received)
    reducer.finish()
    assert torch.equal(current["a"], torch.ones(3))
    assert torch.equal(received.tensors["parameters"]["a"], torch.full((3,), 5.0))


# -------------------------------------------------------------------------- two quadratics

CURVATURE, OPTIMUM, STEPS = (1.0, 3.0), (-1.0, 2.0), (1, 6)
MINIMISER = 1.25  # of (x + 1)² / 2 + 3 (x − 2)² / 2: (−1 + 6) / 4


def fixed_point(lr: float, reduce: Callable[[float, list[Reply]], Mean]) -> float:
    """Repeat rounds of gradient descent, of one client one step and of the other six, until nothing moves."""
    at = 0.0
    for _ in range(10_000):
        replies = []
        for curvature, optimum, steps in zip(CURVATURE, OPTIMUM, STEPS, strict=True):
            local = at
            for _ in range(steps):
                local -= lr * curvature * (local - optimum)
            replies.append(reply(1, local_norm(Recipe(lr=lr), steps), a=local))
        before, at = at, floats(reduce(at, replies))["a"]
        if abs(at - before) < 1e-9:
            return at
    raise AssertionError("no fixed point")


def averaged(at: float, replies: list[Reply]) -> Mean:
    plain = MeanOverHolders(by_examples)
    for client, received in enumerate(replies):
        plain.add(client, received)
    return plain.finish()


def test_unequal_work_does_not_move_the_fixed_point_as_lr_goes_to_zero() -> None:
    errors = [
        abs(fixed_point(lr, lambda at, replies: normalised({"a": at}, replies)) - MINIMISER) for lr in (0.04, 0.01)
    ]
    assert errors[1] < errors[0] / 3
    assert errors[1] < 0.05
    assert abs(fixed_point(0.01, averaged) - MINIMISER) > 0.4  # FedAvg: towards (−1 + 6 · 6) / 19 = 1.84


# -------------------------------------------------------------------------- the method and its contract

CARD = Card(0, "client 0", ("vector",), ("digit",), 20, ("net",))
CONTEXT = Context(Recipe(), lambda modalities, tasks: ("net",))


def order_of(method: Averaging) -> Order:
    state = method.begin(Toy().initial(0), {0: CARD})
    return method.orders(state, {0: CARD}, {0: frozenset({"vector"})})[0]


ORDER = order_of(fednova(CONTEXT))


def checked(numbers: Mapping[str, Any]) -> str | None:
    """Return what the screen says of a reply with these numbers; the checklist must agree."""
    answer = Reply(20, {"parameters": Toy().initial(1)}, dict(numbers))
    refusal = screen(answer, ORDER, CARD, largest_growth=100.0)
    assert Checklist(ORDER, CARD, 100.0).passes(answer, CARD) == (refusal is None)
    return None if refusal is None else f"{refusal.component} {refusal.reason}"


@pytest.mark.parametrize("norm", [0.0, 0, 1, 7.5, LARGEST_NORM])
def test_a_norm_that_may_be_is_let_through(norm: float) -> None:
    assert checked({"steps": 3.0, NORM: norm}) is None


@pytest.mark.parametrize(
    ("numbers", "refused"),
    [
        ({}, "numbers.local_norm is missing"),
        ({NORM: -1e-9}, "numbers.local_norm -1e-09 is not between 0 and 1e+06"),
        ({NORM: 2e9}, "numbers.local_norm 2e+09 is not between 0 and 1e+06"),
        ({NORM: math.nan}, "numbers.local_norm nan is not a finite number"),
        ({NORM: math.inf}, "numbers.local_norm inf is not a finite number"),
        ({NORM: "7"}, "numbers.local_norm '7' is not a finite number"),
        ({NORM: 10**400}, "numbers.local_norm"),
    ],
)
def test_a_hostile_norm_is_refused_by_name(numbers: Mapping[str, Any], refused: str) -> None:
    found = checked({"steps": 3.0, **numbers})
    assert found is not None and found.startswith(refused)


def test_what_the_method_is_made_of() -> None:
    plain, proximal = fednova(CONTEXT), fednova(CONTEXT, mu=0.1, missing="dilute")
    assert (plain.local, plain.server, plain.missing) == (Normed(Descend()), Replace(), "renormalise")
    assert proximal.local == Normed(Descend(Proximal(0.1), anchored=True), 0.1)
    assert proximal.missing == "dilute"
    assert ORDER.needs == {NORM: (0.0, LARGEST_NORM)}


def test_momentum_on_the_server_keeps_half_of_the_last_change() -> None:
    """u_1 = 4, u_2 = 0.5 · 4 + 1 = 3: from 0 to 4 to 7."""
    server = fednova(CONTEXT, gmf=0.5).server
    assert server == ServerSGD(1.0, 0.5)
    current, memory = server.update({"a": torch.zeros(1)}, {"a": torch.tensor([4.0])}, {})
    assert float(current["a"]) == 4.0
    current, _ = server.update(current, {"a": torch.tensor([5.0])}, memory)
    assert float(current["a"]) == 7.0


def test_fednova_says_what_it_does_with_adam() -> None:
    context = Context(Recipe(optimizer="adam"), lambda modalities, tasks: ())
    with pytest.warns(UserWarning, match="of the local optimiser adam only the number of steps"):
        fednova(context)
