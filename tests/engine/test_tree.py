from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from polyfed.engine.tree import check_round_trip, pack, unpack
from polyfed.errors import UserError


@dataclass(frozen=True)
class Inner:
    rate: float
    names: frozenset[str]


@dataclass(frozen=True)
class State:
    tensors: Mapping[str, Tensor]
    by_client: Mapping[int, Inner]
    history: tuple[float, ...]
    note: str | None
    flag: bool


STATE = State({"a.b": torch.arange(3.0)}, {4: Inner(0.5, frozenset({"x", "y"}))}, (1.0, 2.5), None, True)


def test_a_state_survives_json_and_tensors() -> None:
    skeleton, tensors = pack(STATE)
    read = unpack(State, json.loads(json.dumps(skeleton)), tensors)
    assert torch.equal(read.tensors["a.b"], torch.arange(3.0))
    assert read.by_client == STATE.by_client
    assert (read.history, read.note, read.flag) == ((1.0, 2.5), None, True)


@dataclass(frozen=True)
class Mixed:
    pair: tuple[int, str]
    nested: Mapping[str, Mapping[str, Tensor]]


def test_tuples_of_different_types_and_names_with_slashes_survive() -> None:
    state = Mixed(
        (3, "x"), {"a/b": {"c": torch.tensor(1)}, "a": {"b/c": torch.tensor(0)}, "~1": {"c": torch.tensor(2)}}
    )
    skeleton, tensors = pack(state)
    read = unpack(Mixed, json.loads(json.dumps(skeleton)), tensors)
    assert read.pair == (3, "x")
    assert [int(value) for held in read.nested.values() for value in held.values()] == [1, 0, 2]
    with pytest.raises(UserError, match=r"state\.pair: expected 2 values, found 1"):
        unpack(Mixed, {**skeleton, "pair": [3]}, tensors)


def test_a_state_that_could_not_be_read_again_is_refused_before_it_is_needed() -> None:
    check_round_trip(STATE)
    with pytest.raises(UserError, match="method state dict"):
        check_round_trip({"parameters": torch.ones(1)})
    with pytest.raises(UserError, match=r"has the key \(1, 2\), which cannot be saved"):
        check_round_trip(State({}, {(1, 2): Inner(0.5, frozenset())}, (), None, True))  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"note": 3.5, "extra": 1}, "state"),
        ({"tensors": [["a.b", {"tensor": "elsewhere"}]]}, r"state\.tensors\['a\.b'\]"),
        ({"tensors": {"a": 1}}, r"state\.tensors"),
        ({"history": 3}, r"state\.history"),
        ({"by_client": [[4, {"rate": 0.5}]]}, r"state\.by_client\[4\]"),
        ({"by_client": [[4, {"rate": {}, "names": []}]]}, r"state\.by_client\[4\]\.rate"),
    ],
)
def test_a_skeleton_that_does_not_fit_is_refused_with_its_place(change: dict[str, object], place: str) -> None:
    skeleton, tensors = pack(STATE)
    with pytest.raises(UserError, match=place):
        unpack(State, {**skeleton, **change}, tensors)


def test_what_cannot_be_saved_is_named() -> None:
    with pytest.raises(UserError, match="state at /x holds a object, which cannot be saved"):
        pack({"x": object()})
