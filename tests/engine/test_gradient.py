"""The gradient request: against autograd by hand, in any number of batches, and without a trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from polyfed.data.samples import Batch, Samples
from polyfed.engine import trainer as trainer_module
from polyfed.engine.trainer import Pending, Trainer
from polyfed.experiment.world import World, build_world
from polyfed.method.objective import Proximal, supervised
from polyfed.method.protocol import Fit, Fitted, Gradient, Groups, Measure, Model, Objective, Recipe, Request
from polyfed.model.losses import Logged
from tests.worlds import tiny

BOTH = frozenset({"audio", "image"})
CLIENT = 2  # it holds both modalities and both tasks


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(tiny())


def slopes_of(
    world: World, objective: Objective = supervised, trainer: Trainer | None = None, **changes: Any
) -> dict[str, Tensor]:
    client = world.federation.client(CLIENT)
    options = {"data": client.train, "active": BOTH, **changes}
    request = Gradient(objective, world.architecture.initial(0), **options)
    (answer,) = (trainer or Trainer(world.architecture)).answer([Pending(client.card, request, ("key",))])
    assert isinstance(answer, dict)
    return {name: value for name, value in answer.items() if isinstance(value, Tensor)}


def by_hand(world: World, data: Samples, objective: Objective = supervised) -> dict[str, Tensor]:
    """The gradient over all samples at once, in evaluation mode."""
    model = Trainer(world.architecture).model(world.federation.cards[CLIENT].components)
    model.load(world.architecture.initial(0))
    model.module.eval()
    loss, _ = objective(model, data.batch(), {})
    slopes = torch.autograd.grad(loss, list(model.parameters.values()), allow_unused=True)
    return {name: slope for name, slope in zip(model.parameters, slopes, strict=True) if slope is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-7)


def test_a_gradient_is_that_of_autograd(world: World) -> None:
    data = world.federation.client(CLIENT).train.span(0, 200)
    expected = by_hand(world, data)
    assert_same(slopes_of(world, data=data), expected)
    assert all(float(value.abs().sum()) > 0 for value in expected.values())


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_batches_count_by_their_samples(world: World, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    data = world.federation.client(CLIENT).train.span(0, 50)
    expected = by_hand(world, data)
    monkeypatch.setattr(trainer_module, "MEASURE_BATCH", size)
    assert_same(slopes_of(world, data=data), expected)


def of_the_digit(model: Model, batch: Batch, extra: Groups) -> tuple[Tensor, Logged]:
    return model(batch).predictions["digit"].square().mean(), {}


def test_parameters_that_the_loss_misses_are_left_out(world: World) -> None:
    found = slopes_of(world, of_the_digit)
    names = {".".join(name.split(".")[:2]) for name in found}
    assert names == set(world.federation.cards[CLIENT].components) - {"head.parity"}


def test_inactive_modalities_are_left_out(world: World) -> None:
    names = {".".join(name.split(".")[:2]) for name in slopes_of(world, active=frozenset({"image"}))}
    assert names == {"encoder.image", "fusion.image", "head.digit", "head.parity"}


def test_extra_tensors_reach_the_objective(world: World) -> None:
    """(mu/2)·‖w − a‖² adds mu·(w − a)."""
    start = world.architecture.initial(0)
    anchor = {name: value + 2.0 for name, value in start.items()}
    plain, pulled = slopes_of(world), slopes_of(world, Proximal(0.5), extra={"anchor": anchor})
    for name, value in plain.items():
        torch.testing.assert_close(pulled[name], value + 0.5 * (start[name] - anchor[name]), rtol=1e-4, atol=1e-5)


def test_the_model_is_in_evaluation_mode() -> None:
    """Without dropout: the gradient is that by hand, and the same after training as before."""
    world = build_world(tiny(model__fusion={"name": "concat", "dropout": 0.5}))
    trainer, client = Trainer(world.architecture), world.federation.client(CLIENT)
    first = slopes_of(world, trainer=trainer)
    fit = Fit(supervised, world.architecture.initial(0), client.train, Recipe(), BOTH)
    trainer.answer([Pending(client.card, fit, ("key",))])
    again = slopes_of(world, trainer=trainer)
    assert_same(first, by_hand(world, client.train))
    assert all(torch.equal(again[name], value) for name, value in first.items())


@pytest.mark.parametrize("trains", [None, frozenset({"head.digit"})])
def test_training_and_measuring_go_on_as_if_nothing_had_been_asked(world: World, trains: frozenset[str] | None) -> None:
    client, start = world.federation.client(CLIENT), world.architecture.initial(0)
    fit = Fit(supervised, start, client.train, Recipe(lr=0.1, momentum=0.9, weight_decay=0.01), BOTH, trains)
    measure = Measure(supervised, start, client.validation, BOTH)

    def trained(*asked: Any) -> tuple[Fitted, Any]:
        trainer = Trainer(world.architecture)
        for request in (*asked, fit, measure):
            (answer,) = trainer.answer([Pending(client.card, request, ("key",))])
            if request is fit:
                fitted = answer
        assert isinstance(fitted, Fitted)
        return fitted, answer

    gradient = Gradient(supervised, start, client.train, BOTH)
    (plain, measured), (after, measured_after) = trained(), trained(gradient)
    assert all(torch.equal(after.parameters[name], value) for name, value in plain.parameters.items())
    assert after.numbers == plain.numbers
    assert measured_after == measured


def test_the_point_at_which_it_is_taken_is_not_changed(world: World) -> None:
    client, start = world.federation.client(CLIENT), world.architecture.initial(0)
    before = {name: value.clone() for name, value in start.items()}
    request = Gradient(supervised, start, client.train, BOTH)
    Trainer(world.architecture).answer([Pending(client.card, request, ("key",))])
    assert all(torch.equal(start[name], value) for name, value in before.items())


def test_gradients_and_fits_are_answered_each_in_its_place(world: World) -> None:
    client, start = world.federation.client(CLIENT), world.architecture.initial(0)
    requests: list[Request] = [
        Gradient(supervised, start, client.train, BOTH),
        Fit(supervised, start, client.train, Recipe(), BOTH),
        Measure(supervised, start, client.train, BOTH),
    ]
    answers = Trainer(world.architecture).answer([Pending(client.card, one, ("key",)) for one in requests])
    assert isinstance(answers[1], Fitted)
    assert isinstance(answers[0], dict)
    assert isinstance(answers[2], dict)
    assert "head.digit.weight" in answers[0]
    assert "loss" in answers[2]
