"""The ``experts`` model in whole runs: methods, evaluations and ways of training meet it as they meet any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from polyfed.engine.batching import Rule
from polyfed.engine.trainer import Trainer
from polyfed.experiment.config import Experiment
from polyfed.experiment.world import build_world
from polyfed.method.protocol import Embed, Recipe
from polyfed.model.architecture import component_of
from tests.engine.cohorts import alone, answers, cohort
from tests.model.examples import IMAGE, TEXT
from tests.model.expert_examples import TASKS, VARIANTS, small
from tests.worlds import tiny, train

MODEL = {
    "name": "experts",
    "width": 8,
    "heads": 2,
    "ratio": 2,
    "stems": {"image": {"patch": 4}, "audio": {"patch": 12}},
}


def of_experts(method: str = "multi-fedavg", **changes: Any) -> Experiment:
    return tiny(**{"model": MODEL, "method__name": method, "rounds": 1, "engine__workers": 1, **changes})


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


@pytest.mark.parametrize(("grid", "gate"), VARIANTS)
def test_stacked_training_agrees_with_training_one_by_one(grid: str, gate: str) -> None:
    """Samples without a modality or target, and clients with fewer batches, included."""
    model = small({"image": IMAGE, "text": TEXT}, TASKS, expert_grid=grid, gate=gate)
    recipe = Recipe(lr=0.05, momentum=0.5, epochs=1, batch_size=4)
    pending = cohort(model, (9, 4, 6), recipe)
    trainer = Trainer(model, rule=Rule("on"))
    stacked = answers(trainer, pending)
    assert dict(trainer.paths) == {"stacked": 3}
    first = model.initial(0)
    for one, other in zip(stacked, alone(model, pending), strict=True):
        torch.testing.assert_close(one.parameters, other.parameters, rtol=1e-4, atol=1e-5)
        assert all(not torch.equal(one.parameters[name], first[name]) for name in first if name[-9:] != ".key.bias")


@pytest.mark.parametrize("method", ["fedavg", "multi-fedavg", "local", "centralized"])
def test_methods_train_every_component_that_a_client_holds(method: str) -> None:
    experiment = of_experts(method)
    outcome = train(experiment)
    world = build_world(experiment)
    first = world.architecture.initial(experiment.seed)
    for card in world.federation.cards.values():
        own = outcome.personal.get(card.id, {}).get("parameters", {})
        values = {**world.method.deploy(outcome.state, card), **own}
        moved = {component_of(name, card.components) for name in values if not torch.equal(values[name], first[name])}
        assert moved == set(card.components)


def test_a_federation_learns() -> None:
    """Digits are told by image, sound or both; parities too."""
    found = train(of_experts(rounds=4, train={"optimizer": "adamw", "lr": 0.005, "batch_size": 32}))
    told = [line["metrics"]["digit"]["accuracy"] for line in found.progress.latest if "digit" in line["metrics"]]
    assert told
    assert sum(told) / len(told) > 0.3


def test_the_global_model_is_judged_also_by_each_modality(tmp_path: Path) -> None:
    train(of_experts(engine__unimodal=True, engine__server_test=True), tmp_path)
    accuracy = lines(tmp_path, "unimodal_evaluation")[-1]["accuracy"]
    assert {task: set(by_modality) for task, by_modality in accuracy.items()} == {
        "digit": {"image", "audio"},
        "parity": {"image", "audio"},
    }
    assert all(0 <= share <= 1 for found in accuracy.values() for rules in found.values() for share in rules.values())
    assert lines(tmp_path, "server_evaluation")


def test_the_bits_do_not_depend_on_the_workers() -> None:
    one, two = (train(of_experts(engine__workers=workers, engine__batching="off")) for workers in (1, 2))
    assert one.digest == two.digest


def test_features_can_be_asked_for() -> None:
    world = build_world(of_experts())
    client = next(client for client in world.federation.clients() if len(client.card.modalities) == 2)
    trainer = Trainer(world.architecture)
    request = Embed(world.architecture.initial(0), client.train, frozenset(client.card.modalities))
    found = trainer.embed(client.card, request)
    assert {name: values.shape for name, values in found.items()} == {
        name: (len(client.train), 8) for name in client.card.modalities
    }
