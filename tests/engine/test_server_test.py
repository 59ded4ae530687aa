"""``engine.server_test``: the global model on all test samples, with all modalities the data has of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from polyfed.experiment.world import World, build_world
from tests.worlds import tiny, train

TEST: dict[str, Any] = {"engine__server_test": True}


def lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def found_by_server(folder: Path) -> dict[int, dict[str, Any]]:
    """The server's evaluations by round."""
    return {line["round"]: line for line in lines(folder) if line["kind"] == "server_evaluation"}


def accuracies(world: World, parameters: Mapping[str, Tensor]) -> dict[str, float]:
    """By hand: the model of all components on all clients' test samples, nothing taken from them."""
    federation, architecture = world.federation.members or world.federation, world.architecture
    rows = torch.cat([client.test.rows for client in federation.clients()])
    client = federation.client(next(iter(federation.cards)))
    samples = client.test.table.everything().take(rows)
    module = architecture.assemble(architecture.components(architecture.modalities, architecture.tasks))
    module.load_state_dict({name: parameters[name] for name in module.state_dict()})
    module.eval()
    batch = samples.batch()
    assert set(batch.inputs) == {"audio", "image"}
    with torch.no_grad():
        outputs = module(batch)
    return {
        task: float((outputs.predictions[task].argmax(1) == batch.targets[task]).float().mean())
        for task in federation.tasks
    }


def test_fedavg_is_judged_as_by_hand(tmp_path: Path) -> None:
    """Clients hold one or two modalities and tasks each: nobody's own test is that of the server."""
    experiment = tiny(**TEST, train__lr=0.2)
    outcome = train(experiment, tmp_path)
    world = build_world(experiment)
    found = found_by_server(tmp_path)
    assert sorted(found) == [0, 1, 2, 3]
    for number, parameters in ((0, world.architecture.initial(3)), (3, outcome.state.parameters)):
        expected = accuracies(world, parameters)
        measured = {task: metrics["accuracy"] for task, metrics in found[number]["metrics"].items()}
        assert measured == pytest.approx(expected, abs=1e-6)
    assert found[0]["metrics"] != found[3]["metrics"]


def test_all_test_samples_count_with_all_they_have() -> None:
    federation = build_world(tiny()).federation
    assert federation.server_test is not None
    rows = torch.cat([client.test.rows for client in federation.clients()])
    assert torch.equal(federation.server_test.rows, rows)
    assert federation.server_test.modalities == ("audio", "image")
    assert all(mask.all() for mask in federation.server_test.present.values())
    assert all(mask.all() for mask in federation.server_test.labelled.values())


def test_the_record_tells_round_examples_and_metrics(tmp_path: Path) -> None:
    train(tiny(**TEST, engine__evaluate_every=2), tmp_path)
    found = found_by_server(tmp_path)
    assert sorted(found) == [0, 2, 3]
    total = sum(len(client.test) for client in build_world(tiny()).federation.clients())
    for line in found.values():
        assert line.keys() == {"kind", "round", "examples", "metrics"}
        assert line["examples"] == {"digit": total, "parity": total}
        assert all(0 <= metrics["accuracy"] <= 1 for metrics in line["metrics"].values())


def test_a_method_without_a_global_model_has_none(tmp_path: Path) -> None:
    train(tiny(**TEST, method__name="local"), tmp_path)
    assert found_by_server(tmp_path) == {}


def test_the_centralized_model_is_judged_as_by_hand(tmp_path: Path) -> None:
    experiment = tiny(**TEST, method__name="centralized", train__lr=0.2)
    outcome = train(experiment, tmp_path)
    found = found_by_server(tmp_path)
    assert sorted(found) == [0, 1, 2, 3]
    expected = accuracies(build_world(experiment), outcome.personal[0]["parameters"])
    measured = {task: metrics["accuracy"] for task, metrics in found[3]["metrics"].items()}
    assert measured == pytest.approx(expected, abs=1e-6)


def test_it_is_off_unless_asked_for(tmp_path: Path) -> None:
    train(tiny(), tmp_path)
    assert found_by_server(tmp_path) == {}


@pytest.mark.parametrize("method", ["fedavg", "fedhgb", "centralized", "local"])
def test_no_training_bit_and_no_other_record_changes(method: str, tmp_path: Path) -> None:
    without = train(tiny(method__name=method), tmp_path / "without")
    outcome = train(tiny(**TEST, method__name=method), tmp_path / "with")
    assert (outcome.digest, outcome.personal_digest) == (without.digest, without.personal_digest)
    assert outcome.progress.best_round == without.progress.best_round
    assert outcome.progress.bytes == without.progress.bytes
    others = [line for line in lines(tmp_path / "with") if line["kind"] != "server_evaluation"]
    assert others == lines(tmp_path / "without")


def test_stopping_and_resuming_gives_the_same_records(tmp_path: Path) -> None:
    whole = train(tiny(**TEST), tmp_path / "whole")
    train(tiny(**TEST, rounds=1), tmp_path / "parts")
    resumed = train(tiny(**TEST), tmp_path / "parts", resume=True)
    assert resumed.digest == whole.digest
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")


def test_it_is_judged_by_the_heads_that_predict_tasks(tmp_path: Path) -> None:
    """Uni-modal heads beside them change nothing where they are not trained."""
    train(tiny(**TEST), tmp_path / "plain")
    train(tiny(**TEST, model__unimodal_heads=True), tmp_path / "headed")
    assert found_by_server(tmp_path / "headed") == found_by_server(tmp_path / "plain")
