"""Shepherd, and the classic methods on a language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from polyfed.engine.loop import Outcome
from polyfed.errors import UserError
from polyfed.experiment.world import World, build_world
from polyfed.method.protocol import Reply
from tests.language import checkpoint, experiment

pytest.importorskip("transformers", reason="language models need the extra polyfed[mllm]")
pytest.importorskip("peft", reason="language models need the extra polyfed[mllm]")

SMALL = {"rounds": 1, "select": {"name": "round_robin", "clients": 2}}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return checkpoint(tmp_path_factory.mktemp("tiny"))


class Wire:
    """Listens to all replies."""

    def __init__(self) -> None:
        self.replies: list[tuple[int, Reply]] = []

    def __call__(self, round_number: int, client: int, reply: Any) -> Any:
        self.replies.append((client, reply))
        return reply


def ran(path: str, method: str, **changes: object) -> tuple[World, Outcome, Wire]:
    named = {key.replace("__", "."): value for key, value in changes.items()}
    world, wire = build_world(experiment(path, {"method": {"name": method}, **SMALL, **named})), Wire()
    return world, world.loop(deliver=wire).run(), wire


def groups(names: Any) -> set[str]:
    return {name.split(".")[0] for name in names}


def moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    return groups(name for name, value in after.items() if not torch.equal(value, before[name]))


@pytest.mark.parametrize(("scope", "own"), [("local", {"connector"}), ("frozen", set())])
def test_connectors_never_travel(path: str, scope: str, own: set[str]) -> None:
    world, outcome, wire = ran(path, "shepherd", method__connector_scope=scope)
    first = world.architecture.initial(0)
    assert len(wire.replies) == 2
    for client, reply in wire.replies:
        assert groups(reply.tensors["parameters"]) == {"lora"}
        assert moved(first, outcome.personal[client]["parameters"]) == own
    assert moved(first, outcome.state.parameters) == {"lora"}
    assert groups(outcome.state.parameters) == {"lora"}


def test_text_adapters_are_averaged_by_samples(path: str) -> None:
    def fewer(round_number: int, client: int, reply: Any) -> Any:
        return wire(round_number, client, replace(reply, examples=reply.examples - 4 * client))

    wire = Wire()
    outcome = build_world(experiment(path, {"method": {"name": "shepherd"}, **SMALL})).loop(deliver=fewer).run()
    sizes = [reply.examples for _, reply in wire.replies]
    assert sizes == [6, 2]
    for name, value in outcome.state.parameters.items():
        one, other = (reply.tensors["parameters"][name] for _, reply in wire.replies)
        expected = (sizes[0] * one + sizes[1] * other) / sum(sizes)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)


def test_with_the_connector_averaged_it_is_fedavg(path: str) -> None:
    _, whole, wire = ran(path, "shepherd", method__connector_scope="aggregate")
    _, fedavg, _ = ran(path, "fedavg")
    assert groups(wire.replies[0][1].tensors["parameters"]) == {"lora", "connector"}
    assert (whole.digest, whole.personal_digest) == (fedavg.digest, fedavg.personal_digest)
    _, kept, _ = ran(path, "shepherd")
    assert kept.digest != fedavg.digest


@pytest.mark.parametrize("method", ["local", "centralized", "fedprox", "fedadam"])
def test_classic_methods_train_connector_and_text_adapter(path: str, method: str) -> None:
    world, outcome, wire = ran(path, method)
    first = world.architecture.initial(0)
    trained = outcome.state.parameters or outcome.personal[0]["parameters"]
    assert groups(trained) == moved(first, trained) == {"connector", "lora"}
    assert bool(wire.replies[0][1].tensors["parameters"]) == (method in ("fedprox", "fedadam"))


def test_fedavg_of_one_client_is_that_client(path: str) -> None:
    _, outcome, wire = ran(path, "fedavg", select__clients=1)
    ((_, reply),) = wire.replies
    assert all(
        torch.equal(value, outcome.state.parameters[name]) for name, value in reply.tensors["parameters"].items()
    )


def test_it_needs_a_text_adapter(path: str) -> None:
    with pytest.raises(UserError, match="shepherd: needs the model 'llava' with adapters: one"):
        ran(path, "shepherd", model__adapters="pilot")


def test_it_needs_a_language_model() -> None:
    from tests.worlds import tiny

    with pytest.raises(UserError, match="needs the model 'llava'"):
        build_world(tiny(method__name="shepherd"))


def test_a_checkpointed_model_trains_the_same(path: str) -> None:
    """Gradient checkpointing computes layers anew, with the weights that their adapters had."""
    for method in ("fedavg", "feddat"):
        _, plain, _ = ran(path, method)
        _, saving, _ = ran(path, method, model__checkpointing=True)
        for name, value in plain.state.parameters.items():
            torch.testing.assert_close(saving.state.parameters[name], value, rtol=1e-4, atol=1e-6)
