"""``engine.unimodal``: what the global model tells from each modality alone."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from polyfed.data.columns import TensorColumn
from polyfed.data.samples import Batch, Samples, Table
from polyfed.data.schema import Modality, Task
from polyfed.engine.trainer import Trainer
from polyfed.engine.unimodal import UnimodalEvaluation, evaluate_unimodal, training
from polyfed.experiment.world import build_world
from polyfed.model.architecture import Architecture, Outputs
from polyfed.model.modular import modular
from polyfed.rng import torch_generator
from polyfed.scenario.federation import Card, Cards, Client, Federation
from tests.worlds import tiny, train

ON: dict[str, Any] = {"engine__unimodal": True}


def lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def found_alone(folder: Path) -> dict[int, dict[str, Any]]:
    """The uni-modal evaluations by round."""
    return {line["round"]: line for line in lines(folder) if line["kind"] == "unimodal_evaluation"}


# ------------------------------------------------------------------------------------------------ by hand


class PlainModel(nn.Module):
    """A number per modality is its own feature; the head tells the class 0, 1 or 2 that is nearest to their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.ParameterDict({"scale": torch.ones(())})

    def forward(self, batch: Batch) -> Outputs:
        """Predict the digit."""
        features = {name: values * self.net["scale"] for name, values in batch.inputs.items()}
        fused = torch.stack(list(features.values())).sum(0)
        return Outputs(features, fused, {"digit": -(fused - torch.arange(3)).square(), "weight": fused})


@dataclass(frozen=True)
class Plain:
    """An architecture of one component."""

    modalities: Mapping[str, Modality]
    tasks: Mapping[str, Task]

    def components(self, modalities: Collection[str], tasks: Collection[str]) -> tuple[str, ...]:
        """One."""
        return ("net",)

    def assemble(self, components: Collection[str]) -> nn.Module:
        """Build it."""
        return PlainModel()

    def initial(self, seed: int) -> dict[str, Tensor]:
        """Return first values."""
        return {"net.scale": torch.ones(())}


DIGIT = Task("digit", "classification", classes=3)
WEIGHT = Task("weight", "regression", (1,))
Row = tuple[float | None, float | None, int | None]
"""Left, right and digit; None: the sample has none."""


def samples(*rows: Row) -> Samples:
    """Samples with two numbers as modalities, a digit and a weight."""
    left, right, digit = zip(*rows, strict=True)
    columns = {"left": left, "right": right}
    return Table(
        {name: TensorColumn(torch.tensor([[value or 0.0] for value in held])) for name, held in columns.items()},
        {
            "digit": TensorColumn(torch.tensor([value or 0 for value in digit])),
            "weight": TensorColumn(torch.zeros(len(rows), 1)),
        },
        present={name: torch.tensor([value is not None for value in held]) for name, held in columns.items()},
        labelled={"digit": torch.tensor([value is not None for value in digit])},
    ).everything()


def federation_of(test: Samples, *trains: Samples) -> Federation:
    """A federation of clients with these training samples and no other."""
    nothing = test.span(0, 0)
    cards = Cards(
        [held.modalities for held in trains],
        [held.tasks for held in trains],
        np.array([len(held) for held in trains]),
        {},
    )

    def load(card: Card) -> Client:
        return Client.of(card, trains[card.id], nothing, nothing)

    modalities = {name: Modality(name, "vector", (1,)) for name in ("left", "right")}
    return Federation(modalities, {"digit": DIGIT, "weight": WEIGHT}, cards, load, None, test)


def evaluated(federation: Federation, architecture: Architecture) -> UnimodalEvaluation:
    found = evaluate_unimodal(federation, Trainer(architecture), lambda card: architecture.initial(0))
    assert found is not None
    return found


def test_three_rules_by_hand() -> None:
    everything = samples(
        # client 0: left only; class 2 has no training sample with left
        (0.0, None, 0),
        (2.0, None, 0),
        # client 1
        (4.0, None, 0),  # class 0 on the left: the mean 2 over both clients
        (10.0, -1.0, 1),
        (None, -3.0, 2),
        (99.0, 99.0, None),  # not labelled
        # the server's test
        (2.4, None, 0),
        (7.0, -1.5, 1),
        (6.0, None, 0),  # equally far from both classes
        (9.0, None, 2),  # of a class nobody has: masked, never nearest
        (1.9, None, 1),
        (None, -2.2, 2),
        (50.0, 50.0, None),
    )
    trains = everything.span(0, 2).only(["left"], ["digit", "weight"]), everything.span(2, 6)
    federation = federation_of(everything.span(6, 13), *trains)
    found = evaluated(federation, Plain(federation.modalities, federation.tasks))
    assert found.record(7) == {
        "kind": "unimodal_evaluation",
        "round": 7,
        "examples": {"digit": {"left": 5, "right": 2}},
        "accuracy": {
            "digit": {
                "left": {"zeroed_head": 1 / 5, "ncm_train": 3 / 5, "ncm_test": 2 / 5},
                "right": {"zeroed_head": 0.0, "ncm_train": 1.0, "ncm_test": 1.0},
            }
        },
    }


def test_without_training_samples_of_a_task_and_modality_there_are_no_prototypes() -> None:
    everything = samples((1.0, None, 0), (None, 1.0, None), (1.0, 1.0, 0))
    federation = federation_of(everything.span(2, 3), everything.span(0, 2))
    found = evaluated(federation, Plain(federation.modalities, federation.tasks))
    accuracy = found.record(0)["accuracy"]["digit"]
    assert sorted(accuracy["left"]) == ["ncm_test", "ncm_train", "zeroed_head"]
    assert sorted(accuracy["right"]) == ["ncm_test", "zeroed_head"]


def test_small_clients_are_joined_and_nobody_is_left_out() -> None:
    everything = samples(*[(float(number), None, number % 3) for number in range(700)])
    sizes = [3, 250, 0, 10, 400, 37]
    ends = np.cumsum(sizes).tolist()
    trains = [everything.span(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    parts = list(training(federation_of(everything.span(0, 1), *trains)))
    assert [len(part) for part in parts] == [263, 400, 37]
    assert torch.equal(torch.cat([part.rows for part in parts]), torch.arange(700))


def test_random_labels_leak_only_where_prototypes_come_from_the_test() -> None:
    """Labels have nothing to do with the samples: any accuracy above one of six classes is a leak."""
    count, classes = 1200, 6
    generator = torch_generator(0, "random labels")
    modality, task = Modality("noise", "vector", (64,)), Task("digit", "classification", classes=classes)
    table = Table(
        {"noise": TensorColumn(torch.randn(count, 64, generator=generator))},
        {"digit": TensorColumn(torch.randint(classes, (count,), generator=generator))},
    ).everything()
    cards = Cards([("noise",)], [("digit",)], np.array([count // 2]), {})
    nothing = table.span(0, 0)
    client = Client.of(cards[0], table.span(0, count // 2), nothing, nothing)
    federation = Federation(
        {"noise": modality}, {"digit": task}, cards, lambda card: client, None, table.span(count // 2, count)
    )
    architecture = modular(federation.modalities, federation.tasks, width=64)
    accuracy = evaluated(federation, architecture).record(0)["accuracy"]["digit"]["noise"]
    assert accuracy["ncm_train"] == pytest.approx(1 / classes, abs=0.05)
    assert accuracy["zeroed_head"] == pytest.approx(1 / classes, abs=0.05)
    assert accuracy["ncm_test"] > 0.25


# ------------------------------------------------------------------------------------------------ whole runs


def test_fedavg_is_judged_as_by_hand(tmp_path: Path) -> None:
    """All training samples at once, by a model without an engine around it."""
    experiment = tiny(**ON, train__lr=0.2)
    outcome = train(experiment, tmp_path)
    world = build_world(experiment)
    found = found_alone(tmp_path)
    assert sorted(found) == [0, 1, 2, 3]
    architecture, federation = world.architecture, world.federation
    module = architecture.assemble(architecture.components(architecture.modalities, architecture.tasks))
    module.load_state_dict({name: outcome.state.parameters[name] for name in module.state_dict()})
    module.eval()
    test = federation.server_test
    assert test is not None
    for modality in ("audio", "image"):
        for task in ("digit", "parity"):
            held = [
                client.train.batch(modalities=[modality])
                for client in federation.clients()
                if modality in client.card.modalities and task in client.card.tasks
            ]
            with torch.no_grad():
                features = torch.cat([module(batch).features[modality] for batch in held])
                outputs = module(test.batch(modalities=[modality]))
            labels, expected = torch.cat([batch.targets[task] for batch in held]), test.target(task)
            assert found[3]["examples"][task][modality] == len(test)
            prototypes = torch.stack([features[labels == label].mean(0) for label in labels.unique()])
            leaked = torch.stack([outputs.features[modality][expected == label].mean(0) for label in labels.unique()])
            told = {
                "ncm_train": torch.cdist(outputs.features[modality], prototypes).argmin(1),
                "ncm_test": torch.cdist(outputs.features[modality], leaked).argmin(1),
                "zeroed_head": outputs.predictions[task].argmax(1),
            }
            assert found[3]["accuracy"][task][modality] == {
                rule: pytest.approx(float((classes == expected).double().mean()), abs=1e-3)
                for rule, classes in told.items()
            }


def test_a_method_without_a_global_model_has_none(tmp_path: Path) -> None:
    train(tiny(**ON, method__name="local"), tmp_path)
    assert found_alone(tmp_path) == {}


def test_it_is_off_unless_asked_for_and_goes_without_the_servers_test(tmp_path: Path) -> None:
    train(tiny(rounds=1), tmp_path / "off")
    assert found_alone(tmp_path / "off") == {}
    train(tiny(**ON, rounds=1), tmp_path / "on")
    assert sorted(found_alone(tmp_path / "on")) == [0, 1]
    assert "server_evaluation" not in {line["kind"] for line in lines(tmp_path / "on")}


@pytest.mark.parametrize("method", ["fedavg", "fedhgb", "centralized"])
def test_no_training_bit_and_no_other_record_changes(method: str, tmp_path: Path) -> None:
    """Fusion drops entries at random: not even a generator may have moved."""
    changes: dict[str, Any] = {"method__name": method, "model__fusion": {"name": "concat", "dropout": 0.5}}
    without = train(tiny(**changes), tmp_path / "without")
    outcome = train(tiny(**ON, **changes, engine__server_test=True), tmp_path / "with")
    assert (outcome.digest, outcome.personal_digest) == (without.digest, without.personal_digest)
    assert outcome.progress.bytes == without.progress.bytes
    assert sorted(found_alone(tmp_path / "with")) == [0, 1, 2, 3]
    watched = ("server_evaluation", "unimodal_evaluation")
    others = [line for line in lines(tmp_path / "with") if line["kind"] not in watched]
    assert others == lines(tmp_path / "without")


def test_workers_and_stopping_change_nothing(tmp_path: Path) -> None:
    whole = train(tiny(**ON, engine__workers=1), tmp_path / "whole")
    train(tiny(**ON, engine__workers=2, rounds=1), tmp_path / "parts")
    resumed = train(tiny(**ON, engine__workers=2), tmp_path / "parts", resume=True)
    assert resumed.digest == whole.digest
    assert found_alone(tmp_path / "parts") == found_alone(tmp_path / "whole")
