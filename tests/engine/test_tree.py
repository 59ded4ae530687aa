from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from polyfed.engine.tree import pack, unpack
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
