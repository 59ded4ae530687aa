from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, make_dataclass
from typing import Any

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


def holding(hint: Any, value: Any) -> Any:
    """Return a state whose one field is annotated with the hint and holds the value."""
    return make_dataclass("Holder", [("held", hint)], frozen=True)(value)


@pytest.mark.parametrize(
    ("hint", "value"),
    [(int, 3.5), (str, 7), (bool, 2), (bytes, b"ab"), (tuple, (1,)), (Mapping[int, int], {"1": 1}), ("Unknown", 1)],
)
def test_what_the_annotations_would_change_is_refused(hint: Any, value: Any) -> None:
    with pytest.raises(UserError, match="method state Holder"):
        check_round_trip(holding(hint, value))


@pytest.mark.parametrize(
    ("hint", "value"),
    [(list[float], [1.0]), (set[str], {"a"}), (int | str, "x"), (int | str | None, None), (float, 1)],
)
def test_a_value_comes_back_as_what_it_was(hint: Any, value: Any) -> None:
    state = holding(hint, value)
    check_round_trip(state)
    skeleton, tensors = pack(state)
    assert unpack(type(state), json.loads(json.dumps(skeleton)), tensors) == state


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (frozenset({1, "a"}), "state at /held: a set whose items have no order"),
        ({1: torch.ones(1), "1": torch.zeros(1)}, "state at /held/1: two keys are written alike"),
    ],
)
def test_what_has_no_order_or_no_name_of_its_own_cannot_be_saved(value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pack(holding(Any, value))


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
