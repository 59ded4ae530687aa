"""Modality drop (methods sheet BMSFed, 6.9)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from polyfed.data.columns import TensorColumn
from polyfed.data.samples import Samples, Table
from polyfed.data.schema import Task
from polyfed.errors import UserError
from polyfed.experiment.world import build_world
from polyfed.method.averaging import AveragingState, Context
from polyfed.method.modality_drop import Drop, half, mean_over_trainers, modality_drop, too_far_ahead
from polyfed.method.objective import supervised
from polyfed.method.protocol import Clock, Embed, Fit, Fitted, Recipe, Reply
from polyfed.method.training import Trained, Training
from polyfed.scenario.federation import Card, Client
from tests.model.examples import PULSE
from tests.worlds import tiny, train

SIDE = Task("side", "classification", classes=2)
START = {f"encoder.{name}.weight": torch.zeros(2) for name in "av"}


@pytest.mark.parametrize(
    ("accuracies", "dropped"),
    [
        ({"a": 0.9, "v": 0.3}, {"a"}),
        ({"a": 0.2, "v": 0.9}, {"v"}),
        ({"a": 0.6, "v": 0.3}, set()),  # twice as accurate is not more than twice
        ({"a": 0.9, "b": 0.8, "c": 0.3}, {"a", "b"}),
        ({"a": 0.9, "b": 0.5, "c": 0.3}, {"a"}),
        ({"a": 0.9}, set()),
        ({}, set()),
    ],
)
def test_who_is_dropped_by_hand(accuracies: Mapping[str, float], dropped: set[str]) -> None:
    assert too_far_ahead(accuracies, 2.0) == dropped


def components(modalities: Any, tasks: Any) -> tuple[str, ...]:
    return (*(f"encoder.{name}" for name in sorted(modalities)), *(f"head.{task}" for task in tasks))


def training_of(active: str = "av", *, present: Any = None, tasks: tuple[str, ...] = ("side",)) -> Training:
    """Twelve samples, every other one of class 1."""
    inputs = {name: TensorColumn(torch.zeros(12, 1)) for name in "av"}
    table = Table(inputs, {"side": TensorColumn(torch.arange(12) % 2)}, present=present or {})
    data = table.everything()
    client = Client.of(Card(0, "client 0", ("a", "v"), tasks, 12), data, data, data)
    return Training(client, Clock(5, 1, 9), START, START, data, frozenset(active), Recipe())


def conversed(training: Training, threshold: float = 1.5) -> tuple[Embed | None, Fit, Trained]:
    """Hold one client's training: a tells the classes apart, v has the same features for all."""
    work = Drop(threshold, {"side": SIDE, "pulse": PULSE}, components)(training)
    request = next(work)
    measured = None
    if isinstance(request, Embed):
        measured = request
        labels = request.data.target("side").float()[:, None]
        request = work.send({"a": labels + 1, "v": torch.ones_like(labels)})
    assert isinstance(request, Fit)
    with pytest.raises(StopIteration) as end:
        work.send(Fitted(START, 4, {"loss": 1.0}))
    return measured, request, end.value.value


def test_the_modality_that_is_ahead_is_not_trained() -> None:
    """a is always right, (6 + 1) / (6 + 1); v takes the lowest of equally near classes."""
    measured, request, trained = conversed(training_of())
    assert measured is not None
    assert (len(measured.data), measured.active) == (6, {"a", "v"})
    assert (request.objective, request.active, len(request.data)) == (supervised, {"v"}, 12)
    assert trained.numbers == {"loss": 1.0, "steps": 4.0, "untrained.encoder.a": 1.0}


def test_both_are_trained_where_neither_is_far_ahead() -> None:
    _, request, trained = conversed(training_of(), threshold=10.0)
    assert request.active == {"a", "v"}
    assert trained.numbers == {"loss": 1.0, "steps": 4.0}


@pytest.mark.parametrize(
    "training", [training_of("a"), training_of(tasks=("pulse",))], ids=["one modality", "no class"]
)
def test_where_nothing_can_be_compared_it_trains_as_usual(training: Training) -> None:
    measured, request, _ = conversed(training)
    assert measured is None
    assert request.active == training.active


def test_a_modality_without_a_sample_is_neither_weak_nor_ahead() -> None:
    for name in "av":
        absent = {name: torch.zeros(12, dtype=torch.bool)}
        assert conversed(training_of(present=absent))[1].active == {"a", "v"}


def test_samples_that_have_none_of_what_is_trained_stay_out() -> None:
    here = {"v": torch.arange(12) % 3 > 0}
    assert len(conversed(training_of(present=here))[1].data) == 8


def test_half_of_the_samples_are_drawn_anew_each_round() -> None:
    def rows(round_number: int, seed: int = 5) -> Tensor:
        training = training_of()
        moved = Training(
            training.client, Clock(seed, round_number, 9), START, START, training.data, training.active, Recipe()
        )
        data: Samples = half(moved).client.train
        return data.rows

    assert len(set(rows(1).tolist())) == 6
    assert torch.equal(rows(1), rows(1))
    assert not torch.equal(rows(1), rows(2))
    assert not torch.equal(rows(1), rows(1, seed=6))


def test_what_was_not_trained_does_not_count() -> None:
    """encoder.a is the second client's; the head is everybody's: (1 · 4 + 3 · 8) / 4."""
    reducer = mean_over_trainers(lambda client, reply: float(reply.examples), {}, Clock(0, 1, 1))
    tensors = [
        {"encoder.a.weight": torch.tensor([a]), "head.side.bias": torch.tensor([h])}
        for a, h in ((0.0, 4.0), (6.0, 8.0))
    ]
    reducer.add(0, Reply(1, {"parameters": tensors[0]}, {"untrained.encoder.a": 1.0}))
    reducer.add(1, Reply(3, {"parameters": tensors[1]}, {"loss": 1.0}))
    found = reducer.finish()
    assert {name: float(value) for name, value in found.values.items()} == {
        "encoder.a.weight": 6.0,
        "head.side.bias": 7.0,
    }
    assert found.weights == {"encoder.a.weight": 3.0, "head.side.bias": 4.0}
    assert reducer.counted == (0, 1)


def test_a_component_that_nobody_trained_stays_as_it_was() -> None:
    reducer = mean_over_trainers(lambda client, reply: 1.0, {}, Clock(0, 1, 1))
    reducer.add(0, Reply(1, {"parameters": {"encoder.a.weight": torch.ones(1)}}, {"untrained.encoder.a": 1.0}))
    assert reducer.finish().values == {}


def test_with_a_huge_threshold_it_is_fedavg_bit_for_bit() -> None:
    """Measuring changes nothing that is drawn for training."""
    assert train(tiny(method__name="modality-drop", method__threshold=1e9)).digest == train(tiny()).digest


def test_with_both_modalities_everywhere_the_one_ahead_is_left_to_the_server() -> None:
    """A threshold of 1 drops one everywhere: what no client trained keeps its first values."""
    experiment = tiny(
        method__name="modality-drop", method__threshold=1.0, rounds=1, scenario__modalities={"name": "all"}
    )
    world = build_world(experiment)
    said: dict[int, set[str]] = {}

    def heard(number: int, client: int, reply: Reply) -> Reply:
        said[client] = {name for name in reply.numbers if name.startswith("untrained.encoder")}
        return reply

    outcome = world.loop(deliver=heard).run()
    state = outcome.state
    assert isinstance(state, AveragingState)
    first = world.architecture.initial(3)
    assert all(len(names) == 1 for names in said.values())
    for modality in ("audio", "image"):
        trained = any(f"untrained.encoder.{modality}" not in names for names in said.values())
        name = next(name for name in first if name.startswith(f"encoder.{modality}.") and first[name].dim() > 1)
        assert torch.equal(state.parameters[name], first[name]) != trained


def test_a_federation_without_a_classification_task_is_refused() -> None:
    with pytest.raises(UserError, match="modality-drop: class prototypes need a classification task"):
        modality_drop(Context(Recipe(), components, tasks={"pulse": PULSE}))
