from __future__ import annotations

import weakref
from collections.abc import Collection, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyfed.method.combine import WAITING, WAITING_BYTES, Mean, MeanOverHolders, Weigh, diluted
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

SHAPES: dict[str, tuple[int, ...]] = {"weight": (4, 3, 3, 2), "bias": (4,), "scale": (), "nothing": (0, 3)}


def mixed(seed: int, examples: int, names: Collection[str] = tuple(SHAPES), scale: float = 1.0) -> Reply:
    """A reply of several tensors; some weights lie channels-last, as those of resident models do."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: scale * torch.randn(SHAPES[name], generator=generator) for name in sorted(SHAPES)}
    if seed % 3:
        tensors["weight"] = tensors["weight"].to(memory_format=torch.channels_last)
    return Reply(examples, {"parameters": {name: tensors[name] for name in names}})


def reduced(replies: Sequence[Reply], weigh: Weigh = by_examples) -> Mean:
    reducer = MeanOverHolders(weigh)
    for client, received in enumerate(replies):
        reducer.add(client, received)
    assert reducer.counted == tuple(range(len(replies)))
    return reducer.finish()


def in_double_precision(replies: Sequence[Reply]) -> dict[str, tuple[Tensor, float]]:
    """Return the weighted mean of every name, and its weight, from sums in float64."""
    sums: dict[str, tuple[Tensor, float]] = {}
    for received in replies:
        for name, value in received.tensors["parameters"].items():
            if received.examples:
                total, weight = sums.get(name, (torch.zeros(value.shape, dtype=torch.float64), 0.0))
                sums[name] = total + received.examples * value.double(), weight + received.examples
    return {name: (total / weight, weight) for name, (total, weight) in sums.items()}


@settings(max_examples=60, deadline=None)
@given(floats, st.lists(st.integers(1, 1000), min_size=1, max_size=80))
def test_equal_replies_come_back_bit_for_bit(value: float, examples: list[int]) -> None:
    mean = reduced([reply(count, a=value) for count in examples])
    assert torch.equal(mean.values["a"], torch.tensor([value]))
    assert mean.weights == {"a": sum(examples)}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=80), st.integers(0, 100))
def test_equal_replies_of_any_shape_and_weight_come_back_bit_for_bit(weights: list[float], seed: int) -> None:
    """However many there are, and whatever they weigh: whoever did not move is not moved."""
    mean = reduced([mixed(seed, 1)] * len(weights), lambda client, received: weights[client])
    for name, value in mixed(seed, 1).tensors["parameters"].items():
        assert torch.equal(mean.values[name], value), name


names = st.lists(st.sampled_from(sorted(SHAPES)), unique=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1000), names), min_size=1, max_size=70))
def test_means_over_other_holders_and_weights_agree_with_sums_in_double_precision(
    held: list[tuple[int, list[str]]],
) -> None:
    """Some weigh nothing; names, shapes and layouts are mixed; more replies than are taken in at once."""
    replies = [mixed(seed, examples, holds) for seed, (examples, holds) in enumerate(held)]
    mean, expected = reduced(replies), in_double_precision(replies)
    assert mean.values.keys() == mean.weights.keys() == expected.keys()
    assert mean.total == sum(examples for examples, _ in held)
    for name, (value, weight) in expected.items():
        assert mean.weights[name] == pytest.approx(weight)
        assert mean.values[name].shape == SHAPES[name]
        torch.testing.assert_close(mean.values[name].double(), value, rtol=1e-4, atol=1e-5)


def test_a_mean_far_from_zero_is_as_exact_as_its_values() -> None:
    """A running mean adds changes, which are small; a sum of these would lose the last digits."""
    replies = [Reply(1, {"parameters": {"a": torch.tensor([1e6 + number / 4])}}) for number in range(64)]
    assert float(reduced(replies).values["a"]) == pytest.approx(1e6 + 63 / 8, rel=1e-7)


@pytest.mark.parametrize("size", [10, 2**18 + 1])
def test_bits_do_not_depend_on_what_other_reducers_do(size: int) -> None:
    """Nor on whether replies are dropped or overwritten once they were taken in by ``finish``."""
    generator = torch.Generator().manual_seed(0)
    replies = [Reply(k + 1, {"parameters": {"a": torch.randn(size, generator=generator)}}) for k in range(5)]
    expected = reduced(replies).values["a"]
    one, other = MeanOverHolders(by_examples), MeanOverHolders(by_examples)
    for client, received in enumerate(replies):
        one.add(client, received)
        other.add(client, replace(received, tensors={"parameters": {"a": received.tensors["parameters"]["a"] * 2}}))
        if client == 2:
            other.finish()
    assert torch.equal(one.finish().values["a"], expected)


def waiting(reducer: MeanOverHolders) -> int:
    """Count the replies that are kept alive."""
    return sum(one() is not None for one in KEPT)


KEPT: list[weakref.ref[Tensor]] = []


@pytest.mark.parametrize(
    ("size", "most"),
    [
        (8, WAITING - 1),  # small replies wait for each other,
        (WAITING_BYTES // 16, 4),  # larger ones as long as they are a mebibyte together,
        (WAITING_BYTES // 4 + 1, 0),  # and one of more than that is taken in as it comes
    ],
)
def test_no_more_replies_are_kept_than_a_mebibyte_holds(size: int, most: int) -> None:
    KEPT.clear()
    reducer, kept = MeanOverHolders(by_examples), []
    for client in range(2 * WAITING):
        value = torch.full((size,), float(client))
        KEPT.append(weakref.ref(value))
        reducer.add(client, Reply(1, {"parameters": {"a": value}}))
        del value
        kept.append(waiting(reducer))
    assert max(kept) == most
    assert float(reducer.finish().values["a"][0]) == WAITING - 0.5
    assert waiting(reducer) == 0


def test_large_replies_are_averaged_one_by_one_as_a_running_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(WAITING_BYTES // 4 + 1, generator=generator) for _ in range(3)]
    mean = reduced([Reply(k + 1, {"parameters": {"a": value}}) for k, value in enumerate(values)])
    expected = values[0].lerp(values[1], 2 / 3).lerp(values[2], 3 / 6)
    assert torch.equal(mean.values["a"], expected)


def test_a_large_reply_among_small_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    replies = [
        Reply(k + 1, {"parameters": {"a": torch.randn(3, generator=generator)}})
        if k != 3
        else Reply(
            k + 1, {"parameters": {"a": torch.ones(3), "b": torch.randn(WAITING_BYTES // 4, generator=generator)}}
        )
        for k in range(7)
    ]
    mean, expected = reduced(replies), in_double_precision(replies)
    for name, (value, _) in expected.items():
        torch.testing.assert_close(mean.values[name].double(), value, rtol=1e-4, atol=1e-6)
    assert torch.equal(mean.values["b"], replies[3].tensors["parameters"]["b"])


def test_what_is_taken_in_is_copied() -> None:
    """The means share no memory with any reply, not even with that of the only holder."""
    received = mixed(0, 3)
    before = {name: value.clone() for name, value in received.tensors["parameters"].items()}
    mean = reduced([received])
    for value in received.tensors["parameters"].values():
        value.zero_()
    assert all(torch.equal(mean.values[name], value) for name, value in before.items())


@settings(max_examples=60, deadline=None)
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
