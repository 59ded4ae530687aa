from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyfed.method.combine import MeanOverHolders, diluted
from polyfed.method.protocol import Reply


def reply(examples: int, **tensors: float) -> Reply:
    return Reply(examples, {"parameters": {name: torch.tensor([value]) for name, value in tensors.items()}})


def by_examples(client: int, received: Reply) -> float:
    return float(received.examples)


def test_the_mean_is_weighted_by_examples_over_those_who_hold_a_tensor() -> None:
    """(1·2 + 3·6) / 4 = 5 for a; b is held by the second client only."""
    reducer = MeanOverHolders(by_examples)
    reducer.add(0, reply(1, a=2.0))
    reducer.add(4, reply(3, a=6.0, b=7.0))
    mean = reducer.finish()
    assert {name: float(value) for name, value in mean.values.items()} == {"a": 5.0, "b": 7.0}
    assert (mean.weights, mean.total) == ({"a": 4.0, "b": 3.0}, 4.0)
    assert reducer.counted == (0, 4)


def test_dilution_counts_those_who_do_not_hold_a_tensor_as_unchanged() -> None:
    """b: (1·1 + 3·7) / 4 = 5.5 with the current value 1 standing in for the first client."""
    reducer = MeanOverHolders(by_examples)
    reducer.add(0, reply(1, a=2.0))
    reducer.add(1, reply(3, a=6.0, b=7.0))
    mean = diluted(reducer.finish(), {"a": torch.tensor([0.0]), "b": torch.tensor([1.0])})
    assert {name: float(value) for name, value in mean.values.items()} == {"a": 5.0, "b": 5.5}


def test_a_reply_of_weight_zero_is_counted_and_changes_nothing() -> None:
    reducer = MeanOverHolders(by_examples)
    reducer.add(0, reply(0, a=100.0))
    reducer.add(1, reply(2, a=3.0))
    assert float(reducer.finish().values["a"]) == 3.0
    assert reducer.counted == (0, 1)


def test_nothing_added_is_an_empty_mean() -> None:
    assert MeanOverHolders(by_examples).finish().values == {}


floats = st.floats(-1e3, 1e3, width=32)


@given(floats, st.lists(st.integers(1, 1000), min_size=1, max_size=6))
def test_equal_replies_come_back_bit_for_bit(value: float, examples: list[int]) -> None:
    reducer = MeanOverHolders(by_examples)
    for client, count in enumerate(examples):
        reducer.add(client, reply(count, a=value))
    assert torch.equal(reducer.finish().values["a"], torch.tensor([value]))


@given(st.lists(st.tuples(floats, st.integers(1, 1000)), min_size=1, max_size=8))
def test_the_mean_agrees_with_a_sum_in_double_precision(pairs: list[tuple[float, int]]) -> None:
    reducer = MeanOverHolders(by_examples)
    for client, (value, count) in enumerate(pairs):
        reducer.add(client, reply(count, a=value))
    expected = sum(value * count for value, count in pairs) / sum(count for _, count in pairs)
    assert float(reducer.finish().values["a"]) == pytest.approx(expected, rel=1e-4, abs=1e-2)


def test_replies_are_not_changed() -> None:
    first, second = reply(1, a=2.0), reply(1, a=4.0)
    reducer = MeanOverHolders(by_examples)
    reducer.add(0, first)
    reducer.add(1, second)
    reducer.finish()
    assert float(first.tensors["parameters"]["a"]) == 2.0
    assert float(second.tensors["parameters"]["a"]) == 4.0
