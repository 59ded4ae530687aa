"""Gradients of either loss, sent for BMSFed's selection."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from polyfed.data.schema import Task
from polyfed.engine.trainer import Trainer
from polyfed.errors import UserError
from polyfed.experiment.world import build_world
from polyfed.method.balance import BALANCE, RATIOS
from polyfed.method.decoupled import enhancement
from polyfed.method.enhancement import PROTOTYPES
from polyfed.method.objective import supervised
from polyfed.method.protocol import Gradient, Reply
from polyfed.method.select_balanced import BEHIND, MULTI
from polyfed.method.selections import SELECTORS
from polyfed.method.updates import distances
from polyfed.model.architecture import Tensors
from tests.method.portraits import found_with, held_by, ratio_in
from tests.worlds import tiny, train

CHOICE = {"select__name": "bms", "select__clients": 2, "engine__workers": 1}
BOTH = {"scenario__modalities": {"name": "all"}, "scenario__tasks": {"name": "all"}, "data__tasks": ["digit"]}


def bytes_up(folder: Path) -> dict[tuple[int, str], dict[str, int]]:
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    held = [line for line in lines if line["kind"] == "client"]
    return {(line["client"], line["step"]): line["bytes"]["up"] for line in held if line["round"] == 1}


def test_clients_send_their_encoders_twice_more_and_in_the_start_up_pass_nothing_else(tmp_path: Path) -> None:
    choice = {**CHOICE, "select__clients": 4, "select__threshold": None}
    train(tiny(rounds=1, **choice), tmp_path / "plain")
    train(tiny(rounds=1, select__gradients="decoupled", **choice), tmp_path / "decoupled")
    before, after = bytes_up(tmp_path / "plain"), bytes_up(tmp_path / "decoupled")
    assert before.keys() == after.keys() == {(client, step) for client in range(4) for step in ("start", "train")}
    for (client, step), sizes in before.items():
        times = 3 if step == "train" else 2
        kept = {part for part in sizes if step == "train" or part.startswith("encoder.") or part == BALANCE}
        expected = {part: sizes[part] * (times if part.startswith("encoder.") else 1) for part in kept}
        assert {**after[client, step], "envelope": 0} == {**expected, "envelope": 0}, (client, step)


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


# ------------------------------------------------------------------------------------------------ what is remembered

MIXED = {
    "scenario__modalities": {"name": "listed", "sets": [["audio", "image"], ["image"], ["audio", "image"], ["audio"]]},
    "scenario__tasks": {"name": "all"},
    "data__tasks": ["digit"],
    "method__name": "bmsfed",
    "engine__workers": 1,
}


def choosing(clients: int) -> dict[str, Any]:
    return {**MIXED, "select": {"name": "bms", "clients": clients, "threshold": None, "gradients": "decoupled"}}


def expected_gradient(
    world: Any, client: int, parameters: Tensors, prototypes: Tensors | None, modalities: tuple[str, ...]
) -> Tensor:
    """Return the gradient of these encoders as one vector: of the enhancement loss, without prototypes of the other."""
    card, data = world.federation.cards[client], world.federation.client(client).train
    own, active = held_by(world, client, parameters), frozenset(card.modalities)
    asked = Gradient(supervised, own, data, active)
    if prototypes is not None:
        asked = replace(asked, objective=enhancement, extra={PROTOTYPES: prototypes})
    slopes = Trainer(world.architecture).gradient(card, asked)
    names = [name for modality in modalities for name in parameters if name.startswith(f"encoder.{modality}.")]
    return torch.cat([slopes.get(name, torch.zeros_like(parameters[name])).flatten() for name in names])


def of_global(world: Any, client: int, prototypes: Tensors) -> dict[str, Tensor]:
    return {f"{name}.digit": prototypes[f"{name}.digit"] for name in world.federation.cards[client].modalities}


def of_its_own(world: Any, client: int, parameters: Tensors) -> dict[str, Tensor]:
    return {f"{name}.digit": means for name, means in found_with(world, client, parameters).means.items()}


def with_ratio(reply: Reply, ratio: float) -> Reply:
    """Return a reply that tells another ratio of the first modality's accuracy to the second's."""
    if BALANCE not in reply.tensors:
        return reply
    return replace(reply, tensors={**reply.tensors, BALANCE: {RATIOS: torch.tensor([ratio])}})


FAR: Mapping[int, float] = {0: 4.0, 2: 0.25}
"""Ratios of audio to image: of client 0 images are behind, of client 2 sounds."""


def test_encoders_are_compared_by_the_enhancement_loss_of_global_prototypes() -> None:
    """Where the modality was behind before the round, not after it, or is the client's only one; else by zeros."""

    def deliver(number: int, client: int, reply: Reply) -> Reply:
        return with_ratio(reply, FAR.get(client, 1.0) ** (1 if number == 1 else -1))

    before, after = (train(tiny(rounds=rounds, **choosing(4)), deliver=deliver).state for rounds in (1, 2))
    world = build_world(tiny(rounds=2, **choosing(4)))
    assert [before.selection[BEHIND]["image"][client] for client in FAR] == pytest.approx(list(FAR.values()))
    assert [after.selection[BEHIND]["audio"][client] for client in FAR] == pytest.approx(list(FAR.values()))
    scales = {("image", 0): 1, ("image", 1): 1, ("image", 2): 0, ("audio", 0): 0, ("audio", 2): 1, ("audio", 3): 1}
    held = {(name, int(client)) for name in ("audio", "image") for client in after.selection[f"single.{name}"]}
    assert held == scales.keys()
    for (name, client), scale in scales.items():
        prototypes = of_global(world, client, before.companion[PROTOTYPES])
        expected = expected_gradient(world, client, before.parameters, prototypes, (name,))
        own = of_its_own(world, client, before.parameters)
        found = after.selection[f"single.{name}"][str(client)]
        torch.testing.assert_close(found, scale * expected, rtol=1e-4, atol=1e-6)
        # It would have been another one with the client's own prototypes, or of the supervised loss.
        for other in (own, None):
            unlike = expected_gradient(world, client, before.parameters, other, (name,))
            assert (expected - unlike).norm() > 0.05 * expected.norm() > 0
    for client in range(4):
        expected = expected_gradient(world, client, before.parameters, None, ("audio", "image"))
        torch.testing.assert_close(after.selection[MULTI][str(client)], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["bmsfed", "fedavg"])
def test_at_first_they_are_compared_by_prototypes_of_their_own(method: str) -> None:
    """In the start-up pass, where modalities are behind by the ratios in the same replies; it trains nothing."""
    replies: dict[int, list[Reply]] = {}

    def deliver(number: int, client: int, reply: Reply) -> Reply:
        told = with_ratio(reply, FAR.get(client, 1.0))
        replies.setdefault(client, []).append(told)
        return told

    changes = {**choosing(1), "method__name": method, "rounds": 1}
    memory = train(tiny(**changes), deliver=deliver).state.selection
    world = build_world(tiny(**changes))
    initial = world.architecture.initial(world.experiment.seed)
    waiting = [client for client, told in replies.items() if len(told) == 1]
    assert len(waiting) == 3
    for client in waiting:
        (reply,) = replies[client]
        owned = world.federation.cards[client].modalities
        assert "parameters" not in reply.tensors
        for name in owned:
            expected = expected_gradient(world, client, initial, of_its_own(world, client, initial), (name,))
            ahead = len(owned) == 2 and (ratio_in(reply) > 1) == (name == "audio")
            found = memory[f"single.{name}"][str(client)]
            torch.testing.assert_close(found, (0 if ahead else 1) * expected, rtol=1e-4, atol=1e-6)
            assert expected.norm() > 0


def test_gradients_of_encoders_cannot_stand_for_everything() -> None:
    with pytest.raises(UserError, match=r"select\.compared: everything"):
        SELECTORS.build("bms", {"clients": 2, "gradients": "decoupled", "compared": "everything"})


def test_clients_that_cannot_be_compared_are_named_before_training() -> None:
    world = build_world(tiny(**CHOICE))
    tasks = {name: Task(name, "regression", (1,)) for name in world.federation.tasks}
    with pytest.raises(UserError, match=r"select\.name: bms: .* but client 2 has no classification task"):
        world.method.context.select.check(world.federation.cards, tasks)


def test_nobody_trains_before_the_first_round(tmp_path: Path) -> None:
    train(tiny(rounds=1, select__gradients="decoupled", **CHOICE), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    starts = [line for line in lines if line["kind"] == "client" and line["step"] == "start"]
    assert starts and all(line["numbers"]["steps"] == 0 for line in starts)
    assert not any(part.startswith("head.") for line in starts for part in line["bytes"]["up"])
