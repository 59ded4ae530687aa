"""Server optimisers against numbers computed by hand (methods sheet FedHGB, section 8, item 23)."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from polyfed.method.averaging import Context
from polyfed.method.classic import fedadam
from polyfed.method.protocol import Clock, Recipe, Reply
from polyfed.method.server import Adaptive, Replace, ServerOptimizer, ServerSGD
from polyfed.scenario.federation import Card


def step(rule: ServerOptimizer, current: float, average: float, memory: dict[str, dict[str, Tensor]]) -> float:
    one = {"w": torch.tensor(current, dtype=torch.float64)}
    moved, new = rule.update(one, {"w": torch.tensor(average, dtype=torch.float64)}, memory)
    memory.update({group: dict(held) for group, held in new.items()})
    return float(moved["w"])


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Adaptive("adam", lr=0.01, tau=1e-3), 0.00990050),
        (Adaptive("yogi", lr=0.01, tau=1e-3), 0.00990050),
        (Adaptive("adagrad", lr=0.01, beta1=0.0, tau=1e-3), 0.00999000),
    ],
)
def test_the_first_adaptive_step_for_a_change_of_one(rule: Adaptive, expected: float) -> None:
    assert step(rule, 0.0, 1.0, {}) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(("name", "second"), [("adam", 0.01000099), ("yogi", 0.010001)])
def test_second_moments_after_the_first_step(name: str, second: float) -> None:
    memory: dict[str, dict[str, Tensor]] = {}
    step(Adaptive(name, tau=1e-3), 0.0, 1.0, memory)  # type: ignore[arg-type]
    assert float(memory["second"]["w"]) == pytest.approx(second, abs=1e-9)


@pytest.mark.parametrize("name", ["adam", "yogi", "adagrad"])
def test_no_change_leaves_the_parameters_where_they_are(name: str) -> None:
    memory: dict[str, dict[str, Tensor]] = {}
    for _ in range(3):
        assert step(Adaptive(name), 2.0, 2.0, memory) == 2.0  # type: ignore[arg-type]


def test_yogi_shrinks_the_second_moment_less_than_adam_when_changes_get_small() -> None:
    kept = {}
    for name in ("adam", "yogi"):
        memory: dict[str, dict[str, Tensor]] = {}
        for change in (1.0, 0.0, 0.0):
            step(Adaptive(name), 0.0, change, memory)  # type: ignore[arg-type]
        kept[name] = float(memory["second"]["w"])
    assert kept["yogi"] > kept["adam"]


def test_server_momentum_by_hand() -> None:
    """Changes 1, 1 with b = 0.9: buffers 1 and 1.9, positions 1 and 2.9."""
    memory: dict[str, dict[str, Tensor]] = {}
    rule = ServerSGD(lr=1.0, momentum=0.9)
    first = step(rule, 0.0, 1.0, memory)
    assert first == 1.0
    assert step(rule, first, first + 1.0, memory) == pytest.approx(2.9)


def test_plain_server_sgd_with_rate_one_is_fedavg() -> None:
    current, average = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([0.5, 4.0])}
    plain, _ = ServerSGD(lr=1.0, momentum=0.0).update(current, average, {})
    assert torch.equal(plain["w"], Replace().update(current, average, {})[0]["w"])


@pytest.mark.parametrize("rule", [Replace(), ServerSGD(), Adaptive("adam"), Adaptive("yogi"), Adaptive("adagrad")])
def test_a_tensor_nobody_trained_stays_and_so_does_its_memory(rule: ServerOptimizer) -> None:
    current = {"a": torch.ones(2), "b": torch.ones(2)}
    _, memory = rule.update(current, {"a": torch.zeros(2), "b": torch.zeros(2)}, {})
    moved, after = rule.update(current, {"a": torch.zeros(2)}, memory)
    assert torch.equal(moved["b"], current["b"])
    for group, held in after.items():
        assert torch.equal(held["b"], memory[group]["b"])
    assert torch.equal(current["a"], torch.ones(2))


def test_openfedllm_starts_from_the_whole_change_and_squares_the_momentum() -> None:
    rule = Adaptive("adam", lr=0.1, beta1=0.9, beta2=0.99, tau=0.1, variant="openfedllm")
    moved, memory = rule.update({"w": torch.tensor(1.0)}, {"w": torch.tensor(3.0)}, {})
    assert memory["first"]["w"] == pytest.approx(2.0)
    assert memory["second"]["w"] == pytest.approx(0.99 * 0.01 + 0.01 * 4)
    assert moved["w"] == pytest.approx(1 + 0.1 * 2 / ((0.99 * 0.01 + 0.01 * 4) ** 0.5 + 0.1))
    now = float(moved["w"])
    _, memory = rule.update(moved, {"w": torch.tensor(now + 1.0)}, memory)
    assert memory["first"]["w"] == pytest.approx(0.9 * 2 + 0.1)
    assert memory["second"]["w"] == pytest.approx(0.99 * (0.99 * 0.01 + 0.01 * 4) + 0.01 * 1.9**2)


@pytest.mark.parametrize(("weighting", "expected"), [("samples", 0.1 * 1.75), ("uniform", 0.1 * 1.5)])
def test_fedadam_weighs_by_samples_or_all_alike(weighting: Literal["samples", "uniform"], expected: float) -> None:
    method = fedadam(Context(Recipe(), lambda modalities, tasks: ("head",)), beta1=0.9, weighting=weighting)
    card = Card(0, "", (), (), 4, ("head",))
    state = method.begin({"head.w": torch.zeros(())}, {0: card, 1: card})
    reducer = method.combine(lambda client, reply: method.weigh(card, reply), state.parameters, Clock(0, 1, 1))
    for client, (examples, value) in enumerate([(1, 1.0), (3, 2.0)]):
        reducer.add(client, Reply(examples, {"parameters": {"head.w": torch.tensor(value)}}))
    _, memory = method.server.update(state.parameters, reducer.finish().values, {})
    assert memory["first"]["head.w"] == pytest.approx(expected)
