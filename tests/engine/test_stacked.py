"""Stacked training against training one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyfed.engine.batching import Rule
from polyfed.engine.minibatches import StackedBatches, epoch_orders
from polyfed.engine.stacked import fit_stacked
from polyfed.engine.trainer import Pending, Trainer
from polyfed.method.objective import Proximal, supervised
from polyfed.method.protocol import Fitted, Recipe
from polyfed.model.architecture import Architecture
from polyfed.model.modular import modular
from tests.engine.cohorts import Toy, alone, answers, assert_agree, cohort, fit_of, together
from tests.model.examples import AUDIO, DIGIT, IMAGE, PICTURE, PULSE, TEXT, VECTOR

COUNTS = (13, 5, 1, 8, 4)
"""With batches of 4: 4, 2, 1, 2 and 1 steps per epoch."""

RECIPE = Recipe(lr=0.1, momentum=0.9, weight_decay=0.01, epochs=2, batch_size=4)


def small(**options: Any) -> Architecture:
    """Two modalities, two tasks of different kinds, no convolution."""
    held, tasks = {"vector": VECTOR, "text": TEXT}, {"digit": DIGIT, "pulse": PULSE}
    return modular(held, tasks, width=8, encoders={"vector": {"name": "mlp", "hidden": [6]}}, **options)


def moved(pending: Pending, fitted: Fitted) -> set[str]:
    start = fit_of(pending).start
    return {name for name, value in fitted.parameters.items() if not torch.equal(value, start[name])}


# -------------------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(lr=0.1, batch_size=4),
        Recipe(lr=0.1, batch_size=100),
        RECIPE,
        Recipe(lr=0.1, momentum=0.5, epochs=3, batch_size=1),
        Recipe("adam", lr=0.01, epochs=2, batch_size=4),
        Recipe("adam", lr=0.01, weight_decay=0.1, epochs=2, batch_size=4),
        Recipe("adamw", lr=0.01, weight_decay=0.1, epochs=2, batch_size=4),
        replace(RECIPE, clip_norm=0.3),
        Recipe("adamw", lr=0.01, weight_decay=0.1, epochs=2, batch_size=4, clip_norm=0.3),
    ],
    ids=lambda recipe: (
        f"{recipe.optimizer} {recipe.momentum} {recipe.weight_decay} {recipe.batch_size} {recipe.clip_norm}"
    ),
)
def test_stacked_training_agrees_with_training_one_by_one(recipe: Recipe) -> None:
    architecture = small()
    pending = cohort(architecture, COUNTS, recipe)
    found = together(architecture, pending)
    assert [one.steps for one in found] == [recipe.epochs * -(-count // recipe.batch_size) for count in COUNTS]
    assert_agree(found, alone(architecture, pending))


@pytest.mark.parametrize("counts", [(1, 1), (1, 1, 1, 9), (2, 3, 2), (4, 4, 8)])
def test_few_samples(counts: tuple[int, ...]) -> None:
    architecture = small()
    pending = cohort(architecture, counts, RECIPE)
    assert_agree(together(architecture, pending), alone(architecture, pending))


def test_a_client_without_samples_stays_behind_and_the_others_are_stacked() -> None:
    architecture = small()
    pending = cohort(architecture, (5, 0, 3), RECIPE)
    trainer = Trainer(architecture, rule=Rule("on"))
    found = answers(trainer, pending)
    assert dict(trainer.paths) == {"one by one: a client without samples": 1, "stacked": 2}
    assert (found[1].steps, moved(pending[1], found[1])) == (0, set())


# -------------------------------------------------------------------------- models and tasks


CONVOLUTION = modular(
    {"image": IMAGE},
    {"digit": DIGIT, "picture": PICTURE},
    width=8,
    encoders={"image": {"name": "cnn", "channels": [4, 8]}},
    heads={"picture": {"name": "linear"}},
)
ATTENTION = modular(
    {"audio": AUDIO, "image": IMAGE},
    {"digit": DIGIT},
    width=8,
    encoders={name: {"name": "transformer", "patch": [5, 4]} for name in ("audio", "image")},
    fusion={"name": "attention", "heads": 2},
)


@pytest.mark.parametrize("architecture", [CONVOLUTION, ATTENTION], ids=["convolution", "attention"])
def test_any_architecture_can_be_stacked_if_asked_to(architecture: Architecture) -> None:
    pending = cohort(architecture, (6, 3, 1), replace(RECIPE, lr=0.02))
    assert_agree(together(architecture, pending), alone(architecture, pending))


def test_starts_that_differ_stay_apart() -> None:
    """As personal parameters do."""
    architecture = small()
    starts = [architecture.initial(seed) for seed in range(len(COUNTS))]
    pending = cohort(architecture, COUNTS, RECIPE, start=lambda client: starts[client])
    assert_agree(together(architecture, pending), alone(architecture, pending))


def test_some_parameters_shared_and_some_not() -> None:
    architecture = small()
    first = architecture.initial(0)

    def start(client: int) -> dict[str, Tensor]:
        own = architecture.initial(client)
        return {name: own[name] if name.startswith("head.digit") else value for name, value in first.items()}

    pending = cohort(architecture, COUNTS, RECIPE, start=start)
    assert_agree(together(architecture, pending), alone(architecture, pending))


@pytest.mark.parametrize("different", [False, True])
def test_only_named_components_train(different: bool) -> None:
    architecture = small()
    trains = frozenset({"encoder.text", "head.pulse"})
    starts = [architecture.initial(client if different else 0) for client in range(len(COUNTS))]
    pending = cohort(architecture, COUNTS, RECIPE, trains=trains, start=lambda client: starts[client])
    found = together(architecture, pending)
    assert_agree(found, alone(architecture, pending))
    for one, fitted in zip(pending, found, strict=True):
        assert {".".join(name.split(".")[:2]) for name in moved(one, fitted)} <= trains


def test_nothing_to_train_is_no_error() -> None:
    architecture = small()
    pending = cohort(architecture, COUNTS, RECIPE, trains=frozenset())
    found = answers(Trainer(architecture, rule=Rule("on")), pending)
    assert [(one.steps, moved(asked, one)) for asked, one in zip(pending, found, strict=True)] == [(0, set())] * 5


def test_frozen_parameters_stay_in_the_model() -> None:
    class Half(nn.Linear):
        def __init__(self) -> None:
            super().__init__(5, 10)
            self.bias.requires_grad_(False)

    architecture = Toy(Half)
    start = {name: value for name, value in architecture.initial(0).items() if name != "net.linear.bias"}
    pending = cohort(architecture, COUNTS, RECIPE, start=lambda client: start)
    found = together(architecture, pending)
    assert found[0].parameters.keys() == start.keys()
    assert_agree(found, alone(architecture, pending))


# -------------------------------------------------------------------------- constants of objectives


def test_the_proximal_objective_with_one_anchor_for_all() -> None:
    architecture = small()
    anchor = architecture.initial(9)
    pending = cohort(architecture, COUNTS, RECIPE, objective=Proximal(0.5), extra=lambda client: {"anchor": anchor})
    found = together(architecture, pending)
    assert found[0].numbers["proximal"] > 0
    assert_agree(found, alone(architecture, pending))


def test_the_proximal_objective_with_an_anchor_each() -> None:
    architecture = small()
    anchors = [{"anchor": architecture.initial(client)} for client in range(len(COUNTS))]
    pending = cohort(architecture, COUNTS, RECIPE, objective=Proximal(0.5), extra=lambda client: anchors[client])
    assert_agree(together(architecture, pending), alone(architecture, pending))


def test_constants_partly_shared() -> None:
    def weighted(model: Any, batch: Any, extra: Any) -> Any:
        loss, logged = supervised(model, batch, extra)
        return loss * extra["weight"]["own"] + extra["weight"]["shared"].sum(), logged

    architecture = small()
    shared = torch.ones(3)
    pending = cohort(
        architecture,
        COUNTS,
        RECIPE,
        objective=weighted,
        extra=lambda client: {"weight": {"own": torch.tensor(0.5 + client), "shared": shared}},
    )
    assert_agree(together(architecture, pending), alone(architecture, pending))


def test_clients_whose_constants_have_other_shapes_are_not_stacked_together() -> None:
    def shifted(model: Any, batch: Any, extra: Any) -> Any:
        loss, logged = supervised(model, batch, extra)
        return loss + extra["shift"]["values"].sum() * model.parameters["net.scale"], logged

    pending = cohort(
        Toy(),
        (4, 4, 4, 4),
        RECIPE,
        objective=shifted,
        extra=lambda client: {"shift": {"values": torch.ones(1 + client // 2)}},
    )
    assert_agree(together(Toy(), pending), alone(Toy(), pending))


# -------------------------------------------------------------------------- parameters that losses do not reach


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_parameter_that_no_loss_reaches_does_not_move(optimizer: str) -> None:
    recipe = replace(RECIPE, optimizer=optimizer, lr=0.01, weight_decay=0.5)
    pending = cohort(Toy(), COUNTS, recipe)
    found = together(Toy(), pending)
    for one, fitted in zip(pending, found, strict=True):
        assert moved(one, fitted) == {"net.linear.weight", "net.linear.bias", "net.scale"}
    assert_agree(found, alone(Toy(), pending))


class Sometimes:
    """An objective that reaches two more parameters in some of its calls."""

    def __init__(self, reached: Callable[[int], bool], always: bool) -> None:
        self.calls = 0
        self._reached, self._always = reached, always

    def __call__(self, model: Any, batch: Any, extra: Any) -> Any:
        loss, logged = supervised(model, batch, extra)
        if self._always:
            loss = loss + model.parameters["net.right"].square().sum()
        if self._reached(self.calls):
            loss = loss + model.parameters["net.left"].square().sum()
        self.calls += 1
        return loss, logged


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_a_parameter_that_some_losses_reach(first: bool, always: bool, optimizer: str) -> None:
    """Reached first: its gradient counts as zero later on. Not reached first: it moves when it is reached."""
    recipe = replace(RECIPE, optimizer=optimizer, momentum=0.9 if optimizer == "sgd" else 0.0, lr=0.02)
    pending = sorted(cohort(Toy(), COUNTS, recipe), key=lambda one: -one.card.examples)

    def objective() -> Sometimes:
        return Sometimes(lambda call: (call % 2 == 0) == first, always)

    trainer = Trainer(Toy())
    expected = [trainer.fit(one.card, replace(fit_of(one), objective=objective()), one.key) for one in pending]
    together = objective()
    requests = [replace(fit_of(one), objective=together) for one in pending]
    orders = [epoch_orders(len(request.data), 2, 4, one.key) for request, one in zip(requests, pending, strict=True)]
    data = StackedBatches([request.data for request in requests], orders, 4, frozenset({"vector"}))
    model = trainer.model(("net",))
    found = fit_stacked(model, list(model.parameters), requests, data, torch.device("cpu"))
    assert_agree(found, expected)


@pytest.mark.parametrize("reached", ["all", "some"])
def test_clipping_is_not_confused_by_gradients_that_autograd_gives_to_two_parameters(reached: str) -> None:
    """The gradients of a sum are one tensor; that of .sum() is one number, expanded."""

    def of_a_sum(model: Any, batch: Any, extra: Any) -> Any:
        loss, logged = supervised(model, batch, extra)
        both = model.parameters["net.left"] + model.parameters["net.right"]
        loss = loss + both.square().sum() + model.parameters["net.linear.bias"].sum()
        return (loss if reached == "all" else loss - supervised(model, batch, extra)[0]), logged

    recipe = Recipe(lr=0.1, clip_norm=0.5, batch_size=4)
    pending = cohort(Toy(), (4, 3), recipe, objective=of_a_sum)
    found = together(Toy(), pending)
    assert_agree(found, alone(Toy(), pending))
    for one in found:
        changes = {name: one.parameters[name] - value for name, value in fit_of(pending[0]).start.items()}
        norm = float(torch.stack([change.norm() for change in changes.values()]).norm())
        assert norm == pytest.approx(recipe.lr * 0.5, rel=1e-3)


# -------------------------------------------------------------------------- chunks


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_a_memory_limit_cuts_the_stack_and_changes_nothing_but_rounding(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture = small()
    pending = cohort(architecture, COUNTS, RECIPE)
    whole = together(architecture, pending)
    monkeypatch.setattr(Rule, "clients", lambda *arguments: at_once)
    assert_agree(together(architecture, pending), whole)


@pytest.mark.parametrize("memory", [1, 2**29])
def test_starts_constants_and_samples_are_not_changed(memory: int) -> None:
    """Not even by a stack of one client, whose start needs no copying to be stacked."""
    architecture = small()
    start, anchor = architecture.initial(0), architecture.initial(1)
    pending = cohort(
        architecture,
        COUNTS,
        RECIPE,
        objective=Proximal(0.5),
        start=lambda client: start,
        extra=lambda client: {"anchor": anchor},
    )
    found = together(architecture, pending, memory)
    assert moved(pending[0], found[0])
    for seed, held in enumerate((start, anchor)):
        assert all(torch.equal(value, held[name]) for name, value in architecture.initial(seed).items())


def test_results_of_clients_share_no_memory_with_each_other_or_the_start() -> None:
    architecture = small()
    pending = cohort(architecture, COUNTS, RECIPE)
    found = together(architecture, pending)
    before = {name: value.clone() for name, value in found[1].parameters.items()}
    for value in found[0].parameters.values():
        value.zero_()
    assert all(torch.equal(found[1].parameters[name], value) for name, value in before.items())
    assert float(fit_of(pending[0]).start["head.digit.weight"].abs().sum()) > 0


def test_the_order_of_clients_is_that_of_the_requests() -> None:
    architecture = small()
    pending = cohort(architecture, COUNTS, RECIPE)
    found = together(architecture, pending)
    turned = together(architecture, pending[::-1])
    for one, other in zip(found, turned[::-1], strict=True):
        assert one.steps == other.steps
        for name, value in one.parameters.items():
            torch.testing.assert_close(value, other.parameters[name], rtol=1e-4, atol=1e-5)
