from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from polyfed.engine import trainer as trainer_module
from polyfed.engine.trainer import Pending, Trainer, batches
from polyfed.experiment.world import World, build_world
from polyfed.method.objective import supervised
from polyfed.method.protocol import Fit, Fitted, Measure, Recipe
from tests.worlds import tiny

BOTH = frozenset({"audio", "image"})


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(tiny())


def fit_request(world: World, **changes: object) -> Fit:
    client = world.federation.client(2)
    options = {"recipe": Recipe(lr=0.1, batch_size=16), "active": BOTH, **changes}
    start = world.architecture.initial(0)
    return Fit(supervised, start, client.train, **options)  # type: ignore[arg-type]


def fitted(world: World, **changes: object) -> tuple[Fit, Fitted]:
    request = fit_request(world, **changes)
    trainer = Trainer(world.architecture)
    (answer,) = trainer.answer([Pending(world.federation.cards[2], request, ("key",))])
    assert isinstance(answer, Fitted)
    return request, answer


def moved(request: Fit, answer: Fitted) -> set[str]:
    """Name the components that changed."""
    return {
        ".".join(name.split(".")[:2])
        for name, value in answer.parameters.items()
        if not torch.equal(value, request.start[name])
    }


def test_a_fit_moves_the_clients_components_and_returns_every_name(world: World) -> None:
    request, answer = fitted(world)
    assert answer.parameters.keys() == request.start.keys()
    assert moved(request, answer) == set(world.federation.cards[2].components)


def test_an_inactive_modality_is_neither_used_nor_moved(world: World) -> None:
    request, answer = fitted(world, active=frozenset({"image"}), recipe=Recipe(lr=0.1, weight_decay=0.5, momentum=0.9))
    assert moved(request, answer) == {"encoder.image", "fusion.image", "head.digit", "head.parity"}


def test_only_named_components_train(world: World) -> None:
    request, answer = fitted(world, trains=frozenset({"head.digit"}))
    assert moved(request, answer) == {"head.digit"}


def test_the_start_is_not_changed(world: World) -> None:
    request = fit_request(world)
    before = {name: value.clone() for name, value in request.start.items()}
    Trainer(world.architecture).answer([Pending(world.federation.cards[2], request, ("key",))])
    assert all(torch.equal(request.start[name], value) for name, value in before.items())


def test_steps_are_epochs_times_batches(world: World) -> None:
    count = len(world.federation.client(2).train)
    _, answer = fitted(world, recipe=Recipe(epochs=3, batch_size=16))
    assert answer.steps == 3 * -(-count // 16)


def test_batches_cover_every_sample_once_an_epoch_and_follow_the_key() -> None:
    found = batches(10, 2, 4, ("a",))
    assert [len(part) for part in found] == [4, 4, 2, 4, 4, 2]
    assert sorted(torch.cat(found[:3]).tolist()) == list(range(10))
    assert torch.equal(torch.cat(found), torch.cat(batches(10, 2, 4, ("a",))))
    assert not torch.equal(torch.cat(found), torch.cat(batches(10, 2, 4, ("b",))))
    assert not torch.equal(torch.cat(found[:3]), torch.cat(found[3:]))


def test_a_fit_with_one_step_of_the_whole_batch_is_one_step_of_gradient_descent(world: World) -> None:
    request, answer = fitted(world, recipe=Recipe(lr=0.5, batch_size=10_000))
    model = Trainer(world.architecture).model(world.federation.cards[2].components)
    model.load(request.start)
    loss, _ = supervised(model, request.data.batch(), {})
    slopes = torch.autograd.grad(loss, list(model.parameters.values()))
    for (name, value), slope in zip(model.parameters.items(), slopes, strict=True):
        torch.testing.assert_close(answer.parameters[name], value.detach() - 0.5 * slope, rtol=1e-4, atol=1e-6)


def test_measuring_gives_the_mean_loss_and_trains_nothing(world: World) -> None:
    client = world.federation.client(2)
    start = world.architecture.initial(0)
    trainer = Trainer(world.architecture)
    request = Measure(supervised, start, client.train, BOTH)
    (measured,) = trainer.answer([Pending(client.card, request, ("key",))])
    model = trainer.model(client.card.components)
    with torch.no_grad():
        expected, _ = supervised(model, client.train.batch(), {})
    assert isinstance(measured, dict)
    assert measured["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_a_missing_start_value_is_named(world: World) -> None:
    start = world.architecture.initial(0)
    del start["head.digit.weight"]
    request = Measure(supervised, start, world.federation.client(2).train, BOTH)
    with pytest.raises(LookupError, match=r"head\.digit\.weight"):
        Trainer(world.architecture).answer([Pending(world.federation.cards[2], request, ("key",))])


def test_measured_task_losses_do_not_depend_on_how_samples_are_cut_into_batches(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the samples are unlabelled: batches hold different numbers of labelled ones."""
    client = world.federation.client(2)
    labelled = {name: torch.arange(len(client.train)) % 7 < 2 for name in client.train.labelled}
    data = replace(client.train, labelled=labelled)
    start = world.architecture.initial(0)
    found = []
    for size in (1, 5, 64, 10_000):
        monkeypatch.setattr(trainer_module, "MEASURE_BATCH", size)
        request = Measure(supervised, start, data, BOTH)
        (measured,) = Trainer(world.architecture).answer([Pending(client.card, request, ("key",))])
        assert isinstance(measured, dict)
        found.append(measured)
    for name in ("loss.digit", "loss.parity"):
        assert [one[name] for one in found] == pytest.approx([found[-1][name]] * 4, rel=1e-5)


def test_nothing_to_train_is_no_error(world: World) -> None:
    request, answer = fitted(world, trains=frozenset())
    assert answer.steps == 0
    assert moved(request, answer) == set()


def test_frozen_parameters_belong_to_the_model_and_are_not_part_of_a_fit(world: World) -> None:
    class Frozen:
        """The same model with a frozen encoder."""

        def __getattr__(self, name: str) -> Any:
            return getattr(world.architecture, name)

        def assemble(self, components: Any) -> torch.nn.Module:
            module = world.architecture.assemble(components)
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(not name.startswith("encoder.image"))
            return module

    start = {name: v for name, v in world.architecture.initial(0).items() if not name.startswith("encoder.image")}
    client = world.federation.client(2)
    trainer = Trainer(Frozen())
    before = {name: value.clone() for name, value in trainer.model(client.card.components).module.named_parameters()}
    (answer,) = trainer.answer([Pending(client.card, Fit(supervised, start, client.train, Recipe(), BOTH), ("key",))])
    assert isinstance(answer, Fitted)
    assert answer.parameters.keys() == start.keys()
    after = dict(trainer.model(client.card.components).module.named_parameters())
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("encoder.image"))


def test_samples_without_an_active_modality_are_not_trained_on(world: World) -> None:
    client = world.federation.client(2)
    mask = torch.arange(len(client.train)) < 3
    skewed = client.train.masked({"audio": mask})
    assert len(skewed.holding({"audio"})) == 3
    assert len(skewed.holding({"audio", "image"})) == len(client.train)
    assert len(skewed.holding(())) == 0


def test_a_parameter_without_a_gradient_does_not_move_whatever_weight_decay_and_momentum_say(world: World) -> None:
    def of_the_digit_alone(model: Any, batch: Any, extra: Any) -> Any:
        prediction = model(batch).predictions["digit"]
        return prediction.square().mean(), {}

    recipe = Recipe(lr=0.1, weight_decay=0.5, momentum=0.9, batch_size=16)
    request = replace(fit_request(world), objective=of_the_digit_alone, recipe=recipe)
    (answer,) = Trainer(world.architecture).answer([Pending(world.federation.cards[2], request, ("key",))])
    assert isinstance(answer, Fitted)
    assert "head.parity" not in moved(request, answer)
    assert "head.digit" in moved(request, answer)
