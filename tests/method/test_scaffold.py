"""SCAFFOLD (methods sheet BMSFed, 6.2)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyfed.data.columns import TensorColumn
from polyfed.data.samples import Batch, Samples, Table
from polyfed.data.schema import Modality, Task
from polyfed.engine.drive import drive
from polyfed.engine.loop import Outcome
from polyfed.engine.screen import screen
from polyfed.engine.trainer import Pending, Trainer
from polyfed.errors import UserError
from polyfed.method.averaging import Averaging, AveragingState, Context
from polyfed.method.classic import fedavg
from polyfed.method.companion import Asked
from polyfed.method.fednova import local_norm
from polyfed.method.protocol import Clock, Fit, Fitted, Fold, Groups, Order, Recipe, Reply
from polyfed.method.scaffold import CHANGE, CONTROL, Controls, corrected, scaffold, steered
from polyfed.method.training import Trained, Training
from polyfed.model.architecture import Outputs
from polyfed.scenario.federation import Card, Client
from tests.worlds import tiny, train

# -------------------------------------------------------------------------- clients with a quadratic loss each

POINT = Modality("point", "vector", (1,))
VALUE = Task("value", "regression", shape=(1,))


class Line(nn.Module):
    """Predicts w x."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 1, bias=False)

    def forward(self, batch: Batch) -> Outputs:
        values: Tensor = batch.inputs["point"]
        return Outputs({}, values, {"value": self.net(values)})


@dataclass(frozen=True)
class Lines:
    """An architecture of one parameter, ``net.weight``, that begins at zero."""

    @property
    def modalities(self) -> Mapping[str, Modality]:
        return {"point": POINT}

    @property
    def tasks(self) -> Mapping[str, Task]:
        return {"value": VALUE}

    def components(self, modalities: Collection[str], tasks: Collection[str]) -> tuple[str, ...]:
        return ("net",)

    def assemble(self, components: Collection[str]) -> nn.Module:
        return Line()

    def initial(self, seed: int) -> dict[str, Tensor]:
        return {"net.weight": torch.zeros(1, 1)}


Quadratic = tuple[float, float, int]
"""Loss (x w − y)², samples: its slope at w is 2 x (x w − y)."""

CLIENTS: Sequence[Quadratic] = ((1.0, -1.0, 4), (2.0, 4.0, 4))
OPTIMUM = 1.4  # of the sum: (−1 + 8) / (1 + 4)


def samples(quadratic: Quadratic) -> Samples:
    x, y, count = quadratic
    table = Table(
        {"point": TensorColumn(torch.full((count, 1), x))}, {"value": TensorColumn(torch.full((count, 1), y))}
    )
    return table.everything()


@dataclass
class Small:
    """A federation of such clients, run by hand."""

    method: Averaging
    quadratics: Sequence[Quadratic] = CLIENTS

    def __post_init__(self) -> None:
        self.trainer = Trainer(Lines())
        self.roster = {
            number: Card(number, f"client {number}", ("point",), ("value",), quadratic[2], ("net",))
            for number, quadratic in enumerate(self.quadratics)
        }
        self.personal: dict[int, Groups] = {number: {} for number in self.roster}
        self.state: AveragingState = self.method.begin(Lines().initial(0), self.roster)

    def step(self, order: Order, client: int, clock: Clock) -> Reply:
        data = samples(self.quadratics[client])
        held = Client.of(self.roster[client], data, data, data)
        work = self.method.steps[order.step](order, self.personal[client], held, clock)
        answer: Any = None
        while True:
            try:
                request = work.send(answer)
            except StopIteration as end:
                reply: Reply
                reply, self.personal[client] = end.value
                return reply
            (answer,) = self.trainer.answer([Pending(held.card, request, clock.key("test", client))])

    def round(self, number: int) -> None:
        clock = Clock(0, number, 10_000)

        def exchange(wanted: Any) -> Any:
            assert isinstance(wanted, Fold)
            for client in sorted(wanted.orders):
                wanted.reducer.add(client, self.step(wanted.orders[client], client, clock))
            return wanted.reducer.finish()

        self.state = drive(self.method.round(self.state, self.roster, clock), exchange)

    @property
    def at(self) -> float:
        return float(self.state.parameters["net.weight"])


def context(**recipe: Any) -> Context:
    return Context(
        Recipe(**{"lr": 0.05, "batch_size": 100, "epochs": 5, **recipe}), Lines().components, tasks={"value": VALUE}
    )


def ended(method: Averaging, quadratics: Sequence[Quadratic] = CLIENTS, rounds: int = 60) -> float:
    small = Small(method, quadratics)
    for number in range(1, rounds + 1):
        small.round(number)
    return small.at


@pytest.mark.parametrize(
    "recipe", [{}, {"momentum": 0.5, "lr": 0.02}, {"schedule": "cosine"}], ids=["plain", "momentum", "schedule"]
)
def test_unlike_clients_meet_at_the_optimum_where_fedavg_misses_it(recipe: dict[str, Any]) -> None:
    """Several full-batch steps a round: FedAvg is pulled towards the client of the smaller curvature."""
    assert ended(scaffold(context(**recipe))) == pytest.approx(OPTIMUM, abs=1e-4)
    assert abs(ended(fedavg(context(**recipe))) - OPTIMUM) > 0.1


def test_whose_optimum_it_is_when_clients_have_unequal_samples() -> None:
    """clients: (−1 + 8) / 5; examples: (12 · −1 + 4 · 8) / (12 · 1 + 4 · 4) = 5/7."""
    unequal = ((1.0, -1.0, 12), (2.0, 4.0, 4))
    assert ended(scaffold(context()), unequal, 400) == pytest.approx(1.4, abs=1e-3)
    assert ended(scaffold(context(), control="examples"), unequal, 400) == pytest.approx(5 / 7, abs=1e-3)


def test_the_first_two_steps_by_hand() -> None:
    """One step a round, lr 0.1. Slopes at 0: 2 and −16, so c_k = those, c = −7 and w = 0.7; then both step by c."""
    small = Small(scaffold(context(lr=0.1, epochs=1)))
    small.round(1)
    assert [float(small.personal[k][CONTROL]["net.weight"]) for k in (0, 1)] == pytest.approx([2.0, -16.0])
    assert float(small.state.companion[CONTROL]["net.weight"]) == pytest.approx(-7.0)
    assert small.at == pytest.approx(0.7)
    # Slopes at 0.7 are 3.4 and −10.4; the steps along 3.4 − 7 − 2 = −5.6 and −10.4 − 7 + 16 = −1.4.
    small.round(2)
    assert small.at == pytest.approx(0.7 + 0.1 * (5.6 + 1.4) / 2)
    assert [float(small.personal[k][CONTROL]["net.weight"]) for k in (0, 1)] == pytest.approx([3.4, -10.4])
    assert float(small.state.companion[CONTROL]["net.weight"]) == pytest.approx(-3.5)


# -------------------------------------------------------------------------- one client


def trained(recipe: Recipe, steps: int, server: float, own: float | None, moved: float) -> tuple[Fit, Trained]:
    """Let one client's parameter of 1 become ``moved``."""
    data = samples(CLIENTS[0])
    client = Client.of(Card(0, "client 0", ("point",), ("value",), 4, ("net",)), data, data, data)
    start = {"net.weight": torch.ones(1, 1)}
    held = {"encoder.other": torch.tensor(5.0)} if own is None else {"net.weight": torch.full((1, 1), own)}
    work = steered(
        Training(
            client,
            Clock(0, 1, 1),
            start,
            start,
            data,
            frozenset({"point"}),
            recipe,
            {CONTROL: held},
            {CONTROL: {"net.weight": torch.full((1, 1), server)}},
        )
    )
    request = next(work)
    assert isinstance(request, Fit)
    with pytest.raises(StopIteration) as end:
        work.send(Fitted({"net.weight": torch.full((1, 1), moved)}, steps, {"loss": 1.5}))
    return request, end.value.value


def test_a_client_tells_its_mean_gradient_by_hand() -> None:
    """Three plain steps of lr 0.1 from 1 to 0.4: 0.6 / 0.3 = 2, so c_k goes from −1 to −1 − 3 + 2 = −2."""
    request, found = trained(Recipe(lr=0.1), 3, 3.0, -1.0, 0.4)
    assert request.objective is corrected
    assert float(request.extra["correction"]["net.weight"]) == 4.0
    assert float(found.groups[CHANGE]["net.weight"]) == pytest.approx(-1.0)
    assert float(found.personal[CONTROL]["net.weight"]) == pytest.approx(-2.0)
    assert found.numbers == {"loss": 1.5, "steps": 3.0}


def test_momentum_counts_as_more_work() -> None:
    recipe = Recipe(lr=0.1, momentum=0.9)
    _, found = trained(recipe, 3, 0.0, 0.0, 0.4)
    assert float(found.personal[CONTROL]["net.weight"]) == pytest.approx(0.6 / (0.1 * local_norm(recipe, 3)))


def test_without_a_step_nothing_is_learnt_of_the_gradient() -> None:
    _, found = trained(Recipe(), 0, 3.0, -1.0, 1.0)
    assert float(found.groups[CHANGE]["net.weight"]) == 0.0
    assert float(found.personal[CONTROL]["net.weight"]) == -1.0


def test_what_is_not_trained_keeps_its_control_variate() -> None:
    _, found = trained(Recipe(lr=0.1), 3, 0.0, None, 0.4)
    assert {name: float(value) for name, value in found.personal[CONTROL].items()} == pytest.approx(
        {"encoder.other": 5.0, "net.weight": 2.0}
    )


# -------------------------------------------------------------------------- the server


def card(number: int, examples: int, *parts: str) -> Card:
    return Card(number, f"client {number}", (), (), examples, parts)


ROSTER = {0: card(0, 10, "a", "b"), 1: card(1, 30, "a"), 2: card(2, 40, "a", "b"), 3: card(3, 20, "b")}


def renewed(counting: Any, *, starting: bool = False) -> dict[str, float]:
    """Clients 0 and 1 take part; c is 1 everywhere."""
    held = {CONTROL: {"a.w": torch.ones(()), "b.w": torch.ones(()), "c.w": torch.ones(())}}
    reducer = Controls(lambda modalities, tasks: (), counting).watch(held, Asked({}, {}, ROSTER, starting))
    for client, changes in {0: {"a.w": 3.0, "b.w": 6.0}, 1: {"a.w": 6.0}}.items():
        tensors = {CHANGE: {name: torch.tensor(value) for name, value in changes.items()}}
        reducer.add(client, Reply(1, tensors))
    found = reducer.finish()[CONTROL]
    assert all(float(value) == 1.0 for value in held[CONTROL].values())
    return {name: float(value) for name, value in found.items()}


def test_changes_are_shared_by_all_who_hold_a_component() -> None:
    """Three hold each of a and b: a: 1 + (3 + 6) / 3, b: 1 + 6 / 3. By samples: 1 + (30 + 180) / 80, 1 + 60 / 70."""
    assert renewed("clients") == pytest.approx({"a.w": 4.0, "b.w": 3.0, "c.w": 1.0})
    assert renewed("examples") == pytest.approx({"a.w": 3.625, "b.w": 1 + 60 / 70, "c.w": 1.0})


def test_a_start_up_pass_leaves_the_control_variates_alone() -> None:
    assert renewed("clients", starting=True) == {"a.w": 1.0, "b.w": 1.0, "c.w": 1.0}


CARD = Card(0, "client 0", ("point",), ("value",), 4, ("net",))


@pytest.mark.parametrize(
    ("current", "change", "refused"), [(0.0, 9e5, False), (0.0, 1.1e6, True), (2e4, 1.9e6, False), (2e4, 2.1e6, True)]
)
def test_a_change_beyond_all_bounds_is_refused(current: float, change: float, refused: bool) -> None:
    method = scaffold(context())
    state = method.begin(Lines().initial(0), {0: CARD})
    state = replace(state, companion={CONTROL: {"net.weight": torch.full((1, 1), current)}})
    order = method.orders(state, {0: CARD}, {0: frozenset({"point"})})[0]
    assert set(order.expects) == {"parameters", CHANGE}
    tensors = {"parameters": Lines().initial(0), CHANGE: {"net.weight": torch.full((1, 1), change)}}
    found = screen(Reply(4, tensors), order, CARD, largest_growth=100.0)
    assert (found is not None) == refused
    assert screen(Reply(4, {"parameters": Lines().initial(0)}), order, CARD, largest_growth=100.0) is not None


# -------------------------------------------------------------------------- whole runs


@cache
def final(method: str = "scaffold", **changes: Any) -> Outcome:
    return train(tiny(method__name=method, train__batch_size=32, **changes))


def parameters(outcome: Outcome) -> Mapping[str, Tensor]:
    assert isinstance(outcome.state, AveragingState)
    return outcome.state.parameters


def test_the_first_round_is_fedavgs_bit_for_bit() -> None:
    for recipe in ({}, {"train__momentum": 0.9, "train__weight_decay": 0.01, "train__clip_norm": 1.0}):
        one, other = parameters(final(rounds=1, **recipe)), parameters(final("fedavg", rounds=1, **recipe))
        assert all(torch.equal(one[name], other[name]) for name in other)
    two, other = parameters(final(rounds=2)), parameters(final("fedavg", rounds=2))
    assert not all(torch.equal(two[name], other[name]) for name in other)


@pytest.mark.parametrize("select", ["all", "random"])
def test_the_servers_is_the_mean_of_the_clients(select: str) -> None:
    """Whoever took part: those who did not, or not yet, count with what they have."""
    chosen = {"name": "random", "clients": 2} if select == "random" else {"name": "all"}
    outcome = train(tiny(method__name="scaffold", select=chosen))
    roster = {2: {"audio", "image"}, 0: {"image"}, 1: {"audio"}, 3: {"image"}}
    assert isinstance(outcome.state, AveragingState)
    found = 0
    for name, value in outcome.state.companion[CONTROL].items():
        if name.startswith("encoder."):
            holders = [client for client, held in roster.items() if name.split(".")[1] in held]
            own = [outcome.personal.get(k, {}).get(CONTROL, {}).get(name, torch.zeros_like(value)) for k in holders]
            torch.testing.assert_close(value, torch.stack(own).mean(0), rtol=1e-4, atol=1e-6)
            found += bool(value.abs().sum() > 0)
    assert found


def test_it_goes_together_with_a_selection_that_has_a_start_up_pass() -> None:
    outcome = train(tiny(method__name="scaffold", select={"name": "divfl", "clients": 2}, rounds=2))
    assert not outcome.progress.refused


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_other_optimisers_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"scaffold: train\.optimizer is {name}, but control variates are gradients"):
        scaffold(context(optimizer=name))


def test_large_gradients_are_no_reason_to_refuse_a_first_reply() -> None:
    """Regression targets of a thousand make gradients that are far above 100 times the norm of c, which is zero."""
    order = scaffold(context()).orders(
        scaffold(context()).begin(Lines().initial(0), {0: CARD}), {0: CARD}, {0: frozenset({"point"})}
    )[0]
    tensors = {"parameters": Lines().initial(0), CHANGE: {"net.weight": torch.full((1, 1), 8200.0)}}
    assert screen(Reply(4, tensors), order, CARD, largest_growth=100.0) is None
