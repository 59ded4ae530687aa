"""Whether clients' updates of a component point the same way: the numbers, and what a run records of them."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyfed.engine.agreement import Agreement, Updates
from polyfed.experiment.world import build_world
from polyfed.method.protocol import Order, Reply
from polyfed.method.quantized import packed, unpacked
from polyfed.scenario.federation import Card
from tests.engine.test_experts_in_federations import lines, of_experts
from tests.worlds import tiny, train

COMPONENTS = ("encoder.image", "head.digit")
SENT = {"encoder.image.weight": torch.tensor([1.0, 2.0]), "head.digit.bias": torch.tensor([0.5])}
ORDER = Order("train", frozenset(), {"parameters": SENT})


def card(number: int) -> Card:
    return Card(number, f"client {number}", ("image",), ("digit",), 10, COMPONENTS)


def reply(weight: tuple[float, float], bias: float = 0.5, **numbers: float) -> Reply:
    values = {"encoder.image.weight": torch.tensor(weight), "head.digit.bias": torch.tensor([bias])}
    return Reply(10, {"parameters": values}, numbers)


def added(*replies: Reply) -> Updates:
    updates = Updates()
    for number, one in enumerate(replies):
        updates.add(one, ORDER, card(number))
    return updates


def test_the_mean_over_pairs_by_hand() -> None:
    """Updates (3, 0), (0, 2) and (−1, 0): cosines 0, −1 and 0. Of the head, only two clients moved it: cosine 1."""
    line = added(reply((4.0, 2.0), 1.5), reply((1.0, 4.0), 0.6), reply((0.0, 2.0))).record(7, 0, "train")
    assert line == {
        "kind": "agreement",
        "round": 7,
        "exchange": 0,
        "step": "train",
        "cosine": {"encoder.image": pytest.approx(-1 / 3, abs=1e-12), "head.digit": 1.0},
        "clients": {"encoder.image": 3, "head.digit": 2},
    }


def test_lengths_are_returned_by_component() -> None:
    assert Updates().add(reply((4.0, 6.0)), ORDER, card(0)) == {"encoder.image": 5.0, "head.digit": 0.0}


def test_what_one_client_alone_moved_has_no_agreement() -> None:
    line = added(reply((4.0, 2.0), 1.5), reply((1.0, 3.0))).record(1, 0, "train")
    assert line is not None and set(line["cosine"]) == {"encoder.image"}
    assert added(reply((4.0, 2.0)), reply((1.0, 2.0))).record(1, 0, "train") is None
    assert added().record(1, 0, "train") is None


def test_components_that_a_client_says_it_did_not_train_do_not_count() -> None:
    updates = added(reply((4.0, 2.0)), reply((4.0, 2.0)), reply((1.0, 3.0), **{"untrained.encoder.image": 1.0}))
    assert updates.agreement.clients == {"encoder.image": 2}
    assert updates.agreement.cosines() == {"encoder.image": 1.0}


def test_values_are_those_that_packed_messages_stand_for() -> None:
    sent = {"encoder.image.weight": torch.tensor([[127.0, 10.0], [127.0, 20.0]])}
    updates = Updates(unpacked)
    for number, moved in enumerate((3.0, -3.0)):
        values = {"encoder.image.weight": sent["encoder.image.weight"] + torch.tensor([[0.0, 0.0], [0.0, moved]])}
        order = Order("train", frozenset(), packed({"parameters": sent}))
        lengths = updates.add(Reply(10, packed({"parameters": values})), order, card(number))
        assert lengths == {"encoder.image": pytest.approx(3.0, abs=1e-4)}
    assert updates.agreement.cosines() == {"encoder.image": pytest.approx(-1.0)}


VECTORS = st.lists(
    st.lists(st.floats(-10, 10, width=32), min_size=5, max_size=5).filter(lambda v: max(map(abs, v)) > 1e-3),
    min_size=2,
    max_size=7,
)


@settings(max_examples=60, deadline=None)
@given(VECTORS)
def test_the_sum_gives_what_all_pairs_give(vectors: list[list[float]]) -> None:
    values = [torch.tensor(vector, dtype=torch.float64) for vector in vectors]
    agreement = Agreement()
    for value in values:
        parts = {"weight": value[:3].clone(), "bias": value[3:].clone()}
        agreement.add("head", parts, float(value.norm()))
    pairs = [float(one @ other / (one.norm() * other.norm())) for one, other in combinations(values, 2)]
    assert agreement.cosines()["head"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-9)
    assert -1 <= agreement.cosines()["head"] <= 1


def test_updates_of_any_size_have_a_direction() -> None:
    def of(size: float) -> Tensor:
        return torch.full((3,), size, dtype=torch.float32).double()

    agreement = Agreement()
    for size in (1e-38, 3e38):
        agreement.add("head", {"weight": of(size)}, float(of(size).norm()))
    assert agreement.cosines() == {"head": pytest.approx(1.0)}


# ------------------------------------------------------------------------------------------------ runs


def recorded(folder: Path, **changes: Any) -> list[dict[str, Any]]:
    train(tiny(**{"rounds": 2, "engine__diagnostics": True, **changes}), folder)
    return lines(folder, "agreement")


def test_a_run_records_every_component_that_two_clients_train(tmp_path: Path) -> None:
    found = recorded(tmp_path)
    assert [line["round"] for line in found] == [1, 2]
    holders = {"encoder.image": 3, "fusion.image": 3, "encoder.audio": 2, "fusion.audio": 2}
    holders |= {"head.digit": 3, "head.parity": 3}
    for line in found:
        assert line["step"] == "train" and line["clients"] == holders
        assert line["cosine"].keys() == holders.keys()
        assert all(-1 <= value <= 1 for value in line["cosine"].values())


def test_a_run_agrees_with_all_pairs_of_replies(tmp_path: Path) -> None:
    """With the first values known and one round, updates are what the clients send minus these."""
    experiment = tiny(rounds=1, engine__diagnostics=True)
    moved: dict[int, Tensor] = {}

    def watch(number: int, client: int, came: Reply) -> Reply:
        values = came.tensors["parameters"]
        if "head.digit.weight" in values:
            moved[client] = torch.cat([(values[name] - first[name]).double().flatten() for name in names])
        return came

    first = build_world(experiment).architecture.initial(experiment.seed)
    names = [name for name in first if name.startswith("head.digit.")]
    assert "head.digit.weight" in names
    train(experiment, tmp_path, deliver=watch)
    (line,) = lines(tmp_path, "agreement")
    pairs = [float(torch.cosine_similarity(one, other, dim=0)) for one, other in combinations(moved.values(), 2)]
    assert len(pairs) == 3
    assert line["cosine"]["head.digit"] == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


def test_records_do_not_depend_on_the_workers(tmp_path: Path) -> None:
    kinds = ("agreement", "expert_use", "client")
    found = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        train(
            of_experts("disentafl", engine__workers=workers, engine__batching="off", engine__diagnostics=True), folder
        )
        found.append([{**line, "seconds": 0} for kind in kinds for line in lines(folder, kind)])
    assert found[0] == found[1]
    assert {line["kind"] for line in found[0]} == set(kinds)


@pytest.mark.parametrize("method", ["local", "centralized"])
def test_where_nothing_is_shared_nothing_is_recorded(method: str, tmp_path: Path) -> None:
    assert recorded(tmp_path, rounds=1, method__name=method) == []


def test_without_diagnostics_nothing_is_recorded(tmp_path: Path) -> None:
    train(of_experts(), tmp_path)
    assert not lines(tmp_path, "agreement") and not lines(tmp_path, "expert_use")


def test_parameters_in_8_bits_are_seen_as_numbers(tmp_path: Path) -> None:
    experiment = of_experts("disentafl", method__quantize_bits=8, engine__diagnostics=True)
    train(experiment, tmp_path)
    (line,) = lines(tmp_path, "agreement")
    cards = build_world(experiment).loop(None).federation.cards.values()
    held = Counter(component for one in cards for component in one.components if not component.startswith("gate."))
    assert line["clients"] == {component: count for component, count in held.items() if count > 1}
    moved = {line["client"]: line["divergence"] for line in lines(tmp_path, "client")}
    assert all(set(moved[one.id]) == {name for name in one.components if name[:5] != "gate."} for one in cards)
    assert all(length > 0 for lengths in moved.values() for length in lengths.values())


def test_what_only_prepares_a_round_is_left_out(tmp_path: Path) -> None:
    found = recorded(tmp_path, rounds=1, select={"name": "bms", "clients": 3})
    assert len(found) == 1
    assert any(line.get("aside") for line in lines(tmp_path, "client"))
