"""Mini-batches of one client, and of stacked ones held against them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyfed.data.samples import Batch, Samples
from polyfed.data.schema import Modality
from polyfed.engine.minibatches import StackedBatches, batches, epoch_orders, steps_of
from tests.engine.cohorts import dealt, table_of
from tests.model.examples import DIGIT, PICTURE, TEXT, VECTOR

NAMES = frozenset({"text", "vector"})
MODALITIES: list[Modality] = [TEXT, VECTOR]

counts = st.integers(1, 12)
epochs = st.integers(1, 3)
sizes = st.one_of(st.integers(1, 14), st.just(2**62))


def stacked(
    data: list[Samples], epochs: int, size: int, names: frozenset[str] = NAMES
) -> tuple[list[Samples], StackedBatches, list[list[Tensor]]]:
    """Stack clients, those with the most steps first; return them in that order, with each one's own batches."""
    order = sorted(range(len(data)), key=lambda client: -steps_of(len(data[client]), epochs, size))
    orders = [epoch_orders(len(data[client]), epochs, size, ("key", client)) for client in order]
    own = [batches(len(data[client]), epochs, size, ("key", client)) for client in order]
    data = [data[client] for client in order]
    return data, StackedBatches(data, orders, size, names), own


def cut(batch: Batch, client: int, size: int) -> Batch:
    """Return the first ``size`` samples of one client."""
    return batch.each(lambda value: value[client, :size])


def assert_equal(one: Batch, other: Batch) -> None:
    for part, wanted in zip(one[:4], other[:4], strict=True):
        assert part.keys() == wanted.keys()
        for name, value in wanted.items():
            assert part[name].dtype == value.dtype
            assert torch.equal(part[name], value), name
    for batch in (one, other):
        assert all(bool(batch.labelled[task].all()) for task in batch.whole)


@settings(max_examples=60, deadline=None)
@given(st.lists(counts, min_size=1, max_size=5), epochs, sizes, st.sampled_from([NAMES, frozenset({"text"})]))
def test_without_its_padding_a_stack_is_the_clients_own_batches(
    held: list[int], epochs: int, size: int, names: frozenset[str]
) -> None:
    table = table_of(MODALITIES, [DIGIT, PICTURE], sum(held))
    data, together, own = stacked(dealt(table, held), epochs, size, names)
    assert together.steps == [len(parts) for parts in own]
    assert together.steps == [steps_of(len(samples), epochs, size) for samples in data]
    seen = list(together)
    assert len(seen) == together.steps[0]
    for step, found in enumerate(seen):
        taking = [client for client, parts in enumerate(own) if len(parts) > step]
        assert taking == list(range(len(found.sizes)))
        assert found.sizes.tolist() == [len(own[client][step]) for client in taking]
        for client in taking:
            positions = own[client][step]
            assert_equal(cut(found.batch, client, len(positions)), data[client].batch(positions, names))


@settings(max_examples=60, deadline=None)
@given(st.lists(counts, min_size=1, max_size=5), epochs, sizes, st.booleans())
def test_padding_is_absent_unlabelled_and_zero(held: list[int], epochs: int, size: int, gaps: bool) -> None:
    """Whether or not the samples themselves lack something."""
    table = table_of(MODALITIES if gaps else [VECTOR], [DIGIT, PICTURE] if gaps else [], sum(held))
    _, together, _ = stacked(dealt(table, held), epochs, size)
    for found in together:
        width = min(size, max(held))
        beyond = torch.arange(width) >= found.sizes[:, None]
        batch = found.batch
        for values, masks in ((batch.inputs, batch.present), (batch.targets, batch.labelled)):
            assert values.keys() == masks.keys()
            for name, mask in masks.items():
                assert mask.shape == beyond.shape
                assert not mask[beyond].any()
                assert not values[name][~mask].any()


@settings(max_examples=60, deadline=None)
@given(st.lists(counts, min_size=1, max_size=5), epochs, sizes)
def test_every_sample_is_there_once_in_each_epoch(held: list[int], epochs: int, size: int) -> None:
    table = table_of([VECTOR], [], sum(held))
    data, together, _ = stacked(dealt(table, held), epochs, size, frozenset({"vector"}))
    rows: list[list[list[float]]] = [[] for _ in data]
    for found in together:
        for client, count in enumerate(found.sizes.tolist()):
            rows[client] += found.batch.inputs["vector"][client, :count].tolist()
    for samples, seen in zip(data, rows, strict=True):
        wanted = sorted(samples.batch().inputs["vector"].tolist())
        for epoch in range(epochs):
            assert sorted(seen[epoch * len(samples) : (epoch + 1) * len(samples)]) == wanted


def test_a_client_drops_out_when_its_steps_are_over() -> None:
    """5, 3 and 1 samples in batches of 2 are 3, 2 and 1 steps."""
    table = table_of([VECTOR], [DIGIT], 9)
    _, together, _ = stacked(dealt(table, [1, 5, 3]), 1, 2, frozenset({"vector"}))
    assert together.steps == [3, 2, 1]
    assert [found.sizes.tolist() for found in together] == [[2, 2, 1], [2, 1], [1]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(counts, st.booleans()), min_size=1, max_size=5), sizes)
def test_clients_whose_samples_lack_something_stand_beside_others(held: list[tuple[int, bool]], size: int) -> None:
    table = table_of([VECTOR], [], sum(count for count, _ in held))
    whole = dealt(table, [count for count, _ in held])
    skewed = [
        samples.masked({"vector": torch.arange(len(samples)) % 3 != 1}) if lacking else samples
        for samples, (_, lacking) in zip(whole, held, strict=True)
    ]
    data, together, own = stacked(skewed, 2, size, frozenset({"vector"}))
    for step, found in enumerate(together):
        for client, count in enumerate(found.sizes.tolist()):
            assert_equal(cut(found.batch, client, count), data[client].batch(own[client][step]))


def test_samples_without_any_active_modality_are_labelled_all_the_same() -> None:
    table = table_of(MODALITIES, [DIGIT], 5)
    _, together, own = stacked(dealt(table, [3, 2]), 1, 2, frozenset())
    for step, found in enumerate(together):
        assert found.batch.inputs == found.batch.present == {}
        assert found.batch.labelled["digit"].shape == (sum(len(parts) > step for parts in own), 2)


# -------------------------------------------------------------------------- one client


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), epochs, sizes)
def test_batches_are_the_epochs_cut_into_pieces(count: int, epochs: int, size: int) -> None:
    found = batches(count, epochs, size, ("key",))
    assert len(found) == steps_of(count, epochs, size)
    if not count:
        return
    assert torch.equal(torch.cat(found), torch.cat(epoch_orders(count, epochs, size, ("key",))))
    in_epoch = len(found) // epochs
    for epoch in range(epochs):
        parts = found[epoch * in_epoch : (epoch + 1) * in_epoch]
        assert sorted(torch.cat(parts).tolist()) == list(range(count))
        assert all(len(part) == min(size, count) for part in parts[:-1])
        assert 0 < len(parts[-1]) <= size


def test_orders_follow_the_key_and_are_new_in_each_epoch() -> None:
    found = [tuple(order.tolist()) for key in ("a", "b") for order in epoch_orders(30, 3, 4, (key,))]
    assert len(set(found)) == 6
    assert [tuple(order.tolist()) for order in epoch_orders(30, 3, 4, ("a",))] == found[:3]


def test_one_batch_of_all_samples_needs_no_order() -> None:
    assert [order.tolist() for order in epoch_orders(4, 3, 4, ("a",))] == [[0, 1, 2, 3]] * 3


@pytest.mark.parametrize("epochs", [1, 3])
def test_no_samples_are_no_batches(epochs: int) -> None:
    assert batches(0, epochs, 4, ("a",)) == []
    assert steps_of(0, epochs, 4) == 0
