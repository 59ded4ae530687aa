"""What is remembered of clients' updates: vectors, sketches of them, and the distances between them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from polyfed.errors import UserError
from polyfed.method import updates
from polyfed.method.updates import SKETCH, SQUARES, Track, blank, distances, remembered, sketch, squared_distances
from polyfed.scenario.federation import Card

ROSTER = {k: Card(k, f"client {k}", ("image",), ("digit",), 10) for k in (3, 5, 8, 9)}
TRACK = {"all": Track.of({"w": torch.zeros(4)}, ("w",))}


def vectors(count: int, size: int, seed: int = 0) -> list[Tensor]:
    return list(torch.randn(count, size, generator=torch.Generator().manual_seed(seed)))


def test_a_vector_holds_the_parameters_of_a_track_and_zeros_for_those_that_are_missing() -> None:
    sent = {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([5.0]), "c": torch.tensor([7.0])}
    track = Track.of(sent, ("a", "c"))
    update = {"a": torch.tensor([[0.5, -2.0]]), "b": torch.tensor([9.0]), "c": torch.tensor([1.0])}
    assert track.vector(update, 2).tolist() == [0.5, -2.0, 1.0]
    assert track.vector({"a": update["a"]}, 2).tolist() == [0.5, -2.0, 0.0]


def test_squared_distances_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, columns = vectors(5, 101), vectors(8, 101, 1)
    expected = torch.cdist(torch.stack(rows).double(), torch.stack(columns).double()).square()
    torch.testing.assert_close(squared_distances(rows, columns), expected)
    monkeypatch.setattr(updates, "CHUNK", 40)
    torch.testing.assert_close(squared_distances(rows, columns), expected)
    assert not squared_distances(rows[:1], rows[:1]).item() < 0


def test_only_rows_and_columns_of_renewed_clients_change() -> None:
    memory = blank(TRACK, 4)
    assert distances(memory, "all").shape == (4, 4)
    first = dict(zip((3, 5, 9), vectors(3, 4), strict=True))
    memory = remembered(memory, "all", first, ROSTER)
    known = distances(memory, "all")
    assert math.isnan(known[2, 2]) and math.isnan(known[0, 2]) and known[0, 1] > 0
    assert known[0, 1] == pytest.approx(float((first[3] - first[5]).norm()), rel=1e-6)
    copy = memory[SQUARES]["all"].clone()
    later = remembered(memory, "all", {5: torch.ones(4)}, ROSTER)
    assert torch.equal(memory[SQUARES]["all"].nan_to_num(-1), copy.nan_to_num(-1))
    changed = (later[SQUARES]["all"] != copy) & ~copy.isnan()
    assert changed.nonzero().tolist() == [[0, 1], [1, 0], [1, 3], [3, 1]]
    assert torch.equal(later[SQUARES]["all"].nan_to_num(-1), later[SQUARES]["all"].t().nan_to_num(-1))
    assert later["all"]["9"] is memory["all"]["9"]
    assert later["all"]["5"].tolist() == [1.0] * 4
    assert remembered(later, "all", {}, ROSTER) is later


def test_a_remembered_vector_is_a_copy() -> None:
    vector = torch.ones(4)
    memory = remembered(blank(TRACK, 4), "all", {3: vector}, ROSTER)
    vector += 1
    assert memory["all"]["3"].tolist() == [1.0] * 4


# ------------------------------------------------------------------------------------------------ sketches


def test_sketches_keep_distances_within_a_few_per_cent() -> None:
    """Dense vectors, and such as differ in a few columns of a matrix only."""
    dense = vectors(12, 5 * SKETCH + 77)
    sparse = [torch.zeros(512, 160) for _ in range(12)]
    for number, one in enumerate(sparse):
        one[:, 10 * number : 10 * number + 3] = dense[number][: 512 * 3].view(512, 3)
    for exact in (dense, [one.flatten() for one in sparse]):
        sketched = [sketch(one) for one in exact]
        assert all(one.shape == (SKETCH,) for one in sketched)
        ratio = squared_distances(sketched, sketched).sqrt() / squared_distances(exact, exact).sqrt()
        apart = ratio[~torch.eye(12, dtype=torch.bool)]
        assert (apart - 1).abs().max() < 0.04
        assert (apart - 1).abs().max() > 0


def test_sketches_add_up_and_lose_no_number() -> None:
    one, other = vectors(2, 2 * SKETCH + 5)
    torch.testing.assert_close(sketch(one) + sketch(other), sketch(one + other))
    for place in (0, SKETCH - 1, SKETCH, 2 * SKETCH + 4):
        single = torch.zeros(2 * SKETCH + 5)
        single[place] = 3.0
        assert sketch(single).abs().sum() == 3.0


def test_vectors_are_sketched_where_all_of_them_would_take_too_much() -> None:
    update = {"w": torch.ones(SKETCH + 1)}
    track = Track.of(update, ("w",))
    most = updates.EXACT // (SKETCH + 1)
    assert len(track.vector(update, most)) == track.kept(most) == SKETCH + 1
    assert len(track.vector(update, most + 1)) == track.kept(most + 1) == SKETCH
    small = Track.of({"w": torch.zeros(SKETCH)}, ("w",))
    assert small.kept(10**9) == SKETCH
    assert torch.equal(small.vector({"w": torch.ones(SKETCH)}, 10**9), torch.ones(SKETCH))


def test_nothing_to_compare_is_one_clear_error() -> None:
    with pytest.raises(UserError, match="the method shares no parameters"):
        blank({"all": Track.of({}, ())}, 3)
