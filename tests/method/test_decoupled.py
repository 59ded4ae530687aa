"""Gradients of either loss, sent for BMSFed's selection."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from polyfed.data.schema import Task
from polyfed.engine.trainer import Trainer
from polyfed.errors import UserError
from polyfed.experiment.world import build_world
from polyfed.method.decoupled import enhancement
from polyfed.method.enhancement import PROTOTYPES
from polyfed.method.objective import supervised
from polyfed.method.protocol import Gradient
from polyfed.method.selections import SELECTORS
from polyfed.method.updates import distances
from tests.worlds import tiny, train

CHOICE = {"select__name": "bms", "select__clients": 2, "engine__workers": 1}
BOTH = {"scenario__modalities": {"name": "all"}, "scenario__tasks": {"name": "all"}, "data__tasks": ["digit"]}


def bytes_up(folder: Path) -> dict[tuple[int, str], dict[str, int]]:
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    held = [line for line in lines if line["kind"] == "client"]
    return {(line["client"], line["step"]): line["bytes"]["up"] for line in held if line["round"] == 1}


def test_clients_send_their_encoders_twice_more_and_train_as_before(tmp_path: Path) -> None:
    plain = train(tiny(rounds=1, **CHOICE), tmp_path / "plain")
    decoupled = train(tiny(rounds=1, select__gradients="decoupled", **CHOICE), tmp_path / "decoupled")
    before, after = bytes_up(tmp_path / "plain"), bytes_up(tmp_path / "decoupled")
    for place in before.keys() & after.keys():
        for part, size in before[place].items():
            if part != "envelope":
                assert after[place][part] == size * (3 if part.startswith("encoder.") else 1), (place, part)
    assert plain.state.parameters.keys() == decoupled.state.parameters.keys()


def test_clients_are_compared_by_their_gradients() -> None:
    experiment = tiny(rounds=1, select__gradients="decoupled", **{**CHOICE, **BOTH, "select__clients": 4})
    outcome = train(experiment)
    world = build_world(experiment)
    initial = world.architecture.initial(experiment.seed)
    trainer = Trainer(world.architecture)
    both = [world.federation.cards[0], world.federation.cards[1]]
    found = {}
    for card in both:
        data = world.federation.client(card.id).train
        own = {n: v for n, v in initial.items() if any(n.startswith(f"{part}.") for part in card.components)}
        slopes = trainer.gradient(card, Gradient(supervised, own, data, frozenset(card.modalities)))
        found[card.id] = {name: value for name, value in slopes.items() if name.startswith("encoder.")}
    one, other = (found[card.id] for card in both)
    expected = torch.cat([(one[name] - other[name]).flatten() for name in one]).norm()
    # after the one round, that all clients took part in, gradients are those at the same received parameters
    measured = distances(outcome.state.selection, "multi")[both[0].id, both[1].id]
    assert measured == pytest.approx(float(expected), rel=1e-4)


def test_the_enhancement_loss_reaches_the_encoder_of_its_modality_only() -> None:
    world = build_world(tiny(rounds=1, **CHOICE, **BOTH))
    card = world.federation.cards[0]
    width = world.method.context.widths()
    task = world.federation.tasks["digit"]
    generator = torch.Generator().manual_seed(0)
    prototypes = {
        f"{name}.digit": torch.randn(task.classes, width[name], generator=generator) for name in card.modalities
    }
    silent = {**prototypes, f"{card.modalities[0]}.digit": torch.zeros(task.classes, width[card.modalities[0]])}
    data, initial = world.federation.client(card.id).train, world.architecture.initial(0)
    own = {n: v for n, v in initial.items() if any(n.startswith(f"{part}.") for part in card.components)}
    request = Gradient(enhancement, own, data, frozenset(card.modalities), {PROTOTYPES: prototypes})
    slopes = Trainer(world.architecture).gradient(card, request)
    assert {name.split(".")[0] for name in slopes} == {"encoder"}
    assert {name.split(".")[1] for name in slopes} == set(card.modalities)
    other = Gradient(enhancement, own, data, frozenset(card.modalities), {PROTOTYPES: silent})
    without = Trainer(world.architecture).gradient(card, other)
    for name, value in slopes.items():
        if name.split(".")[1] == card.modalities[0]:
            assert not without[name].any()
        else:
            torch.testing.assert_close(without[name], value)


def test_gradients_of_encoders_cannot_stand_for_everything() -> None:
    with pytest.raises(UserError, match=r"select\.compared: everything"):
        SELECTORS.build("bms", {"clients": 2, "gradients": "decoupled", "compared": "everything"})


def test_clients_that_cannot_be_compared_are_named_before_training() -> None:
    world = build_world(tiny(**CHOICE))
    tasks = {name: Task(name, "regression", (1,)) for name in world.federation.tasks}
    with pytest.raises(UserError, match=r"client 2: class prototypes need a classification task"):
        world.method.context.select.check(world.federation.cards, tasks)
