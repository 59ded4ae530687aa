"""The weights of gradient blending (methods sheet FedHGB, sections 2.3 and 8.1-8.9, 8.12) and its objectives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyfed.data.samples import Batch
from polyfed.engine.trainer import Pending, Trainer
from polyfed.method.blending import (
    BLEND,
    FUSED,
    Blended,
    Change,
    HeadLosses,
    Losses,
    Negative,
    Safeguards,
    head_weights,
    loss_of,
    mixed,
    raw_weights,
    shares,
)
from polyfed.method.client_blending import BlendedMean, ByBlending, client_weights, noted
from polyfed.method.combine import Mean, MeanOverHolders, diluted
from polyfed.method.head_blending import GAIN, OVERFITTING, gradient_change
from polyfed.method.head_probe import MEMORY, Probe, between, remember
from polyfed.method.objective import supervised
from polyfed.method.protocol import Clock, Measure, Objective, Recipe, Reply
from polyfed.method.training import Training
from polyfed.model.architecture import Architecture
from polyfed.model.losses import Share, total_loss
from polyfed.model.modular import modular
from polyfed.scenario.federation import Card, Client
from tests.engine.cohorts import alone, assert_agree, cohort, fit_of, together
from tests.model.examples import DIGIT, PULSE, TEXT, VECTOR, batch_of

PRINTED = Safeguards(floor=0.0, negative="allow")
BARE = Safeguards(floor=0.0)
DEFAULT = Safeguards()

gains = st.floats(0.01, 1.0)
overfittings = st.floats(0.01, 1.0) | st.floats(-1.0, -0.01)
changes = st.builds(Change, gains, overfittings)
several = st.lists(changes, min_size=1, max_size=6)
rules = st.builds(Safeguards, st.sampled_from([0.0, 0.5, 1.0, 3.0]), st.sampled_from(["clip", "abs", "allow"]))


def by_head(found: Sequence[Change]) -> dict[str, Change]:
    return {f"head {place}": change for place, change in enumerate(found)}


def weights_of(found: Sequence[Change], safeguards: Safeguards = BARE, mix: float = 0.0) -> list[float]:
    held = by_head(found)
    return list(head_weights(list(held), held, safeguards, mix).values())


def clients_of(
    found: Sequence[Change], examples: Sequence[float] | None = None, safeguards: Safeguards = BARE, mix: float = 0.0
) -> list[float]:
    counts = dict(enumerate(examples or [1.0] * len(found)))
    return list(client_weights(counts, dict(enumerate(found)), safeguards, mix).values())


def squared_ogr(weights: Sequence[float], found: Sequence[Change]) -> float:
    """OGR² of a blend of changes whose overfitting is uncorrelated."""
    pairs = list(zip(weights, found, strict=True))
    above = sum((weight * change.overfitting) ** 2 for weight, change in pairs)
    return float(above / sum(weight * change.gain for weight, change in pairs) ** 2)


# -------------------------------------------------------------------------- G and O


def test_gain_and_overfitting_between_two_checkpoints() -> None:
    """Held-out 1.0 -> 0.7 is a gain of 0.3; the gap grows from 0.2 to 0.3."""
    change = Change.between(Losses(0.8, 1.0), Losses(0.4, 0.7))
    assert change == pytest.approx((0.3, 0.1))
    assert change.ogr == pytest.approx(1 / 3)
    assert Change(0.0, 0.5).ogr == math.inf
    assert Change(-0.5, 0.25).ogr == 0.5


# -------------------------------------------------------------------------- golden numbers


def test_golden_weights_of_heads() -> None:
    found = [Change(0.30, 0.20), Change(0.10, 0.40), Change(0.20, 0.20)]
    weights = weights_of(found)
    assert weights == pytest.approx([0.571429, 0.047619, 0.380952], abs=5e-7)
    assert squared_ogr(weights, found) == pytest.approx(0.301887, abs=5e-7)
    assert squared_ogr([1 / 3] * 3, found) == pytest.approx(0.666667, abs=5e-7)


def test_golden_weights_of_clients() -> None:
    found = [Change(0.5, 0.5), Change(0.25, 0.5)]
    assert raw_weights(by_head(found), BARE) == pytest.approx({"head 0": 1.0, "head 1": 0.5})
    assert clients_of(found) == pytest.approx([2 / 3, 1 / 3])


@settings(deadline=None)
@given(several, st.integers(0, 2**32 - 1))
def test_no_blend_has_a_lower_ogr(found: list[Change], seed: int) -> None:
    least = squared_ogr(weights_of(found), found)
    assert least == pytest.approx(1 / sum((change.gain / change.overfitting) ** 2 for change in found))
    for point in np.random.default_rng(seed).dirichlet(np.ones(len(found)), 20):
        assert squared_ogr(list(point), found) >= least * (1 - 1e-9)


# -------------------------------------------------------------------------- properties of the weights


@settings(deadline=None)
@given(changes, st.integers(1, 6), rules, st.sampled_from([0.0, 0.1, 0.9]))
def test_equal_changes_have_equal_weights(change: Change, count: int, safeguards: Safeguards, mix: float) -> None:
    assert weights_of([change] * count, safeguards, mix) == pytest.approx([1 / count] * count)
    assert clients_of([change] * count, range(1, count + 1), safeguards) == pytest.approx([1 / count] * count)


anything = st.floats(allow_nan=False, allow_infinity=False)
zeros_too = st.sampled_from([0.0, -0.0, 1e-320]) | anything


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.builds(Change, zeros_too, zeros_too), min_size=1, max_size=6),
    st.floats(0, 10),
    st.sampled_from(["clip", "abs"]),
    st.floats(0, 0.99),
)
def test_weights_are_shares_whatever_is_measured(
    found: list[Change], floor: float, negative: Negative, mix: float
) -> None:
    """Also for O = 0, G = 0, numbers of any size, and one alone."""
    safeguards = Safeguards(floor, negative)
    for weights in (weights_of(found, safeguards, mix), clients_of(found, [1 / len(found)] * len(found), safeguards)):
        assert all(0 <= weight <= 1 + 1e-12 for weight in weights)
        assert sum(weights) == pytest.approx(1)


@pytest.mark.parametrize("negative", ["clip", "abs", "allow"])
def test_a_report_of_any_size_raises_nothing(negative: Negative) -> None:
    """A client may send whatever fits into a float; its square does not."""
    for odd in (Change(1e308, 1e308), Change(1e308, 0.0), Change(-1e308, 1e-320), Change(1e308, -1e200)):
        weights = clients_of([odd, Change(1.0, 1.0), Change(1.0, 2.0)], [1, 2, 3], Safeguards(0.5, negative))
        assert all(math.isfinite(weight) for weight in weights)


def test_who_lost_has_no_weight_if_another_gained() -> None:
    found = [Change(-0.2, 0.1), Change(0.3, 0.4), Change(0.0, 0.1)]
    assert weights_of(found) == [0.0, 1.0, 0.0]
    assert weights_of(found, mix=0.1) == pytest.approx([0.1 / 3, 0.9 + 0.1 / 3, 0.1 / 3])
    assert clients_of(found) == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("safeguards", [BARE, DEFAULT, PRINTED, Safeguards(0.5, "allow")])
def test_where_nobody_gained_heads_are_equal_and_clients_count_by_examples(safeguards: Safeguards) -> None:
    found = [Change(-0.2, 0.1), Change(-0.3, 0.4), Change(0.0, 0.2)]
    assert weights_of(found, safeguards, mix=0.1) == [1 / 3] * 3
    assert clients_of(found, [5, 1, 2], safeguards) == [5, 1, 2]
    assert weights_of([Change(0.0, 0.0)], safeguards) == [1.0]
    assert clients_of([Change(-1.0, 0.0)], [7], safeguards) == [7]


def test_what_becomes_of_a_loss() -> None:
    found = [Change(0.5, 1.0), Change(-0.1, 1.0)]
    assert weights_of(found, Safeguards(0.0, "clip")) == [1.0, 0.0]
    assert weights_of(found, Safeguards(0.0, "abs")) == pytest.approx([5 / 6, 1 / 6])
    assert weights_of(found, PRINTED) == pytest.approx([1.25, -0.25])


def test_a_sum_that_is_not_positive_turns_no_signs() -> None:
    """Divided by their sum, −0.3, these would favour the second."""
    assert clients_of([Change(0.2, 1.0), Change(-0.5, 1.0)], [3, 1], PRINTED) == [3, 1]


@settings(deadline=None)
@given(several, rules)
def test_the_sign_of_the_overfitting_does_not_matter(found: list[Change], safeguards: Safeguards) -> None:
    turned = [Change(change.gain, -change.overfitting) for change in found]
    assert weights_of(turned, safeguards) == weights_of(found, safeguards)
    assert clients_of(turned, None, safeguards) == clients_of(found, None, safeguards)


@settings(deadline=None)
@given(changes, several, st.floats(1.01, 3.0))
def test_more_overfitting_weighs_less_and_more_gain_weighs_more(
    change: Change, others: list[Change], factor: float
) -> None:
    weight = weights_of([change, *others])[0]
    assert weights_of([Change(change.gain, change.overfitting * factor), *others])[0] < weight
    assert weights_of([Change(change.gain * factor, change.overfitting), *others])[0] > weight


@settings(deadline=None)
@given(several, st.floats(0.01, 100.0), st.sampled_from([0.0, 0.5, 1.0]))
def test_the_unit_of_the_losses_does_not_matter(found: list[Change], unit: float, floor: float) -> None:
    scaled = [Change(unit * change.gain, unit * change.overfitting) for change in found]
    safeguards = Safeguards(floor)
    assert weights_of(scaled, safeguards, 0.1) == pytest.approx(weights_of(found, safeguards, 0.1))
    assert clients_of(scaled, None, safeguards) == pytest.approx(clients_of(found, None, safeguards))


@settings(deadline=None)
@given(several, st.floats(0.1, 10.0))
def test_who_trains_longer_weighs_as_much_less(found: list[Change], longer: float) -> None:
    held = by_head(found)
    first = Change(longer * found[0].gain, longer * found[0].overfitting)
    before, after = raw_weights(held, BARE), raw_weights({**held, "head 0": first}, BARE)
    assert after["head 0"] * longer == pytest.approx(before["head 0"])
    assert {name: after[name] for name in held if name != "head 0"} == {
        name: before[name] for name in held if name != "head 0"
    }


# -------------------------------------------------------------------------- floors


def test_the_floor_is_in_medians_of_those_measured() -> None:
    """Median 0.4, so 0.1 counts as 0.2; of an even number the median is the mean of the middle two."""
    three = by_head([Change(1.0, 0.1), Change(1.0, -0.4), Change(-1.0, 0.6)])
    assert list(raw_weights(three, DEFAULT).values()) == pytest.approx([12.5, 3.125, 0.0])
    four = by_head([Change(1.0, o) for o in (0.1, 0.3, 0.5, 0.9)])
    assert list(raw_weights(four, Safeguards(1.0)).values()) == pytest.approx([3.125, 3.125, 2.0, 0.617284])


def test_without_overfitting_weights_go_by_gain() -> None:
    """So it is where the held-out samples are those trained on."""
    found = [Change(0.3, 0.0), Change(0.1, -0.0), Change(-0.2, 0.0), Change(0.2, 0.0)]
    assert weights_of(found, DEFAULT) == pytest.approx([0.5, 1 / 6, 0.0, 1 / 3])
    assert clients_of(found, None, DEFAULT) == pytest.approx([0.5, 1 / 6, 0.0, 1 / 3])
    assert raw_weights({"one": Change(1.0, 0.0)}, BARE) == pytest.approx({"one": 0.5e12})


@settings(deadline=None)
@given(gains, st.lists(overfittings, min_size=2, max_size=8))
def test_a_high_floor_makes_equal_gains_weigh_the_same(gain: float, found: list[float]) -> None:
    weights = weights_of([Change(gain, overfitting) for overfitting in found], Safeguards(1e6))
    assert weights == pytest.approx([1 / len(found)] * len(found))


@settings(deadline=None)
@given(gains, st.lists(overfittings, min_size=2, max_size=8), st.floats(0, 2), st.floats(0, 2))
def test_a_higher_floor_spreads_the_weight_of_equal_gains(
    gain: float, found: list[float], one: float, other: float
) -> None:
    held = [Change(gain, overfitting) for overfitting in found]
    low, high = (sum(weight**2 for weight in weights_of(held, Safeguards(floor))) for floor in sorted((one, other)))
    assert high <= low * (1 + 1e-9)


# -------------------------------------------------------------------------- who was not measured


def test_a_head_that_was_not_measured_gets_the_mean_of_the_others() -> None:
    """Raw weights 1, 0.5 and their mean 0.75; it is not part of the median either."""
    found = {"audio": Change(0.5, 0.5), "image": Change(0.25, -0.5)}
    heads = ["audio", "image", "text"]
    assert head_weights(heads, found, DEFAULT, 0.0) == pytest.approx(
        {"audio": 1 / 2.25, "image": 0.5 / 2.25, "text": 1 / 3}
    )
    assert head_weights(heads, {}, DEFAULT, 0.1) == dict.fromkeys(heads, 1 / 3)
    assert head_weights(heads, {**found, "old": Change(9.0, 0.1)}, DEFAULT, 0.0).keys() == set(heads)


def test_a_client_that_does_not_report_gets_the_mean_of_the_others() -> None:
    reports = {0: Change(0.5, 0.5), 2: Change(0.25, 0.5)}
    weights = client_weights({0: 10.0, 1: 1.0, 2: 10.0}, reports, DEFAULT, 0.0)
    assert weights == pytest.approx({0: 1 / 2.25, 1: 1 / 3, 2: 0.5 / 2.25})
    assert client_weights({0: 10.0, 1: 1.0}, {}, DEFAULT, 0.5) == {0: 10.0, 1: 1.0}


def test_a_client_without_samples_has_no_weight_and_no_say() -> None:
    reports = {0: Change(0.5, 0.5), 1: Change(9.0, 0.001), 2: Change(0.25, 0.5)}
    weights = client_weights({0: 10.0, 1: 0.0, 2: 10.0}, reports, DEFAULT, 0.0)
    assert weights == pytest.approx({0: 2 / 3, 1: 0.0, 2: 1 / 3})


def test_weights_by_examples_are_mixed_in() -> None:
    weights = clients_of([Change(0.5, 0.5), Change(0.25, 0.5)], [1, 3], mix=0.25)
    assert weights == pytest.approx([0.75 * 2 / 3 + 0.25 / 4, 0.75 / 3 + 0.25 * 3 / 4])


def test_shares_and_mixtures_by_hand() -> None:
    assert shares({"a": 1.0, "b": 3.0}, ["a", "b"]) == {"a": 0.25, "b": 0.75}
    assert shares({"a": 1.0, "b": 3.0}, ["a", "b", "c"]) == pytest.approx({"a": 1 / 6, "b": 0.5, "c": 1 / 3})
    assert [shares(raw, list(raw)) for raw in ({}, {"a": 0.0}, {"a": math.inf}, {"a": math.nan}, {"a": -1.0})] == (
        [None] * 5
    )
    assert mixed({"a": 1.0, "b": 0.0}, {"a": 0.5, "b": 0.5}, 0.5) == {"a": 0.75, "b": 0.25}
    assert raw_weights({}, DEFAULT) == {}


# -------------------------------------------------------------------------- changes told from gradients


def test_a_change_told_from_gradients_by_hand() -> None:
    """v = (1, 0); batches (1, 1) and (3, −1), mean (2, 0): G = (1 + 3) / 2 and O² = (1² + 3²) / 2."""
    held_out = {"a": torch.tensor([1.0, 0.0])}
    batches = [{"a": torch.tensor([1.0, 1.0])}, {"a": torch.tensor([3.0, -1.0])}]
    assert gradient_change(held_out, batches) == pytest.approx((2.0, math.sqrt(5)))


def test_a_parameter_that_a_batch_does_not_reach_has_no_slope_there() -> None:
    """The mean of b is 2; <mean − v, g> is 0·1 + (2 − 1)·4 and 0·1: G = (1 + 4 + 1) / 2 and O² = 16 / 2."""
    held_out = {"a": torch.ones(1), "b": torch.ones(1)}
    batches = [{"a": torch.ones(1), "b": torch.tensor([4.0])}, {"a": torch.ones(1)}]
    assert gradient_change(held_out, batches) == pytest.approx((3.0, math.sqrt(8)))


def test_equal_gradients_overfit_by_nothing() -> None:
    slope = {"a": torch.tensor([2.0, 1.0])}
    assert gradient_change(slope, [slope, slope]) == (5.0, 0.0)


# -------------------------------------------------------------------------- the server's mean


def reply(examples: int, report: Change | None = None, **tensors: float) -> Reply:
    numbers = {} if report is None else {GAIN: report.gain, OVERFITTING: report.overfitting}
    held = {name: torch.tensor([value]) for name, value in tensors.items()}
    return Reply(examples, {"parameters": held}, numbers)


def blended(replies: Sequence[Reply], safeguards: Safeguards = BARE, mix: float = 0.0) -> Mean:
    reducer = ByBlending(safeguards, mix)(lambda client, one: float(one.examples), {}, Clock(0, 1, 1))
    assert isinstance(reducer, BlendedMean)
    for client, one in enumerate(replies):
        reducer.add(client, one)
    assert reducer.counted == tuple(range(len(replies)))
    return reducer.finish()


def floats(mean: Mean) -> dict[str, float]:
    return {name: float(value) for name, value in mean.values.items()}


def test_the_mean_is_weighted_by_blending_over_those_who_hold_a_tensor() -> None:
    """Weights 2/3 and 1/3, whatever the examples: a = (2 · 1 + 4) / 3; b and c have one holder each."""
    replies = [reply(1, Change(0.5, 0.5), a=1.0, b=5.0), reply(9, Change(0.25, 0.5), a=4.0, c=6.0)]
    mean = blended(replies)
    assert floats(mean) == pytest.approx({"a": 2.0, "b": 5.0, "c": 6.0})
    assert mean.weights == pytest.approx({"a": 1.0, "b": 2 / 3, "c": 1 / 3})
    assert mean.total == pytest.approx(1.0)
    current = {name: torch.zeros(1) for name in "abc"}
    assert floats(diluted(mean, current)) == pytest.approx({"a": 2.0, "b": 10 / 3, "c": 2.0})


def test_the_weights_are_noted() -> None:
    mean = blended([reply(1, Change(0.5, 0.5), a=1.0), reply(9, Change(0.25, -0.5), a=4.0), reply(2, a=1.0)])
    assert mean.note is not None
    assert {client: held["weight"] for client, held in mean.note.clients.items()} == pytest.approx(
        {0: 1 / 2.25, 1: 0.5 / 2.25, 2: 1 / 3}
    )
    assert [set(held) for held in mean.note.clients.values()] == [{"weight", GAIN, OVERFITTING}] * 2 + [{"weight"}]
    assert (mean.note.clients[1][GAIN], mean.note.clients[1][OVERFITTING]) == (0.25, -0.5)
    assert mean.note.numbers == pytest.approx({"effective_clients": 1 / (16 / 81 + 4 / 81 + 9 / 81)})


def test_noted_weights_add_up_to_one_also_where_they_are_examples() -> None:
    note = noted({3: 6.0, 4: 2.0}, {})
    assert note.clients == {3: {"weight": 0.75}, 4: {"weight": 0.25}}
    assert note.numbers == {"effective_clients": 1.6}
    assert noted({3: 0.0}, {}).clients == {3: {"weight": 0.0}}
    assert (noted({3: 0.0}, {}).numbers, noted({}, {}).clients) == ({}, {})


def test_a_component_whose_holders_all_have_weight_zero_goes_by_examples() -> None:
    """Diluted, it stays: nobody with a weight moved it."""
    replies = [
        reply(1, Change(0.5, 0.5), a=1.0),
        reply(1, Change(-0.1, 0.5), a=4.0, b=2.0),
        reply(3, Change(-0.2, 0.5), a=4.0, b=6.0),
    ]
    mean = blended(replies)
    assert floats(mean) == {"a": 1.0, "b": 5.0}
    assert mean.weights == {"b": 0.0, "a": 1.0}
    current = {"a": torch.tensor([0.0]), "b": torch.tensor([0.3])}
    assert torch.equal(diluted(mean, current).values["b"], current["b"])


def test_without_any_report_it_is_the_mean_by_examples_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    replies = [Reply(k + 1, {"parameters": {"a": torch.randn(7, generator=generator)}}) for k in range(5)]
    reducer = MeanOverHolders(lambda client, one: float(one.examples))
    for client, one in enumerate(replies):
        reducer.add(client, one)
    assert torch.equal(blended(replies).values["a"], reducer.finish().values["a"])


def test_one_client_comes_back_unchanged() -> None:
    received = reply(3, Change(0.2, 0.1), a=0.1234567)
    assert torch.equal(blended([received]).values["a"], received.tensors["parameters"]["a"])
    assert blended([]).values == {}


def test_a_change_outside_a_component_does_not_reach_it() -> None:
    """Without a floor, who does not hold b has no say in it, neither by its update nor by its report."""
    holders = [reply(1, Change(0.5, 0.5), a=1.0, b=5.0), reply(1, Change(0.25, 0.5), a=4.0, b=2.0)]
    others = [reply(5, Change(0.7, 0.1), a=9.0), reply(5, Change(0.01, 0.9), a=-9.0)]
    one, other = (floats(blended([*holders, last])) for last in others)
    assert one["b"] == pytest.approx(other["b"]) == pytest.approx(4.0)
    assert one["a"] != pytest.approx(other["a"])


def test_a_negative_weight_pushes_away() -> None:
    """The printed formula: weights 1.25 and −0.25, so a = 1.25 · 1 − 0.25 · 3."""
    mean = blended([reply(1, Change(0.5, 1.0), a=1.0), reply(1, Change(-0.1, 1.0), a=3.0)], PRINTED)
    assert floats(mean) == pytest.approx({"a": 0.5})
    assert mean.weights == pytest.approx({"a": 1.0})


def test_a_component_whose_holders_push_more_than_they_pull_goes_by_examples() -> None:
    """Weights 5/2, −5/2 and 1: b's holders have −3/2, c's 0, d's holder has −5/2; a is (2.5 · 1 − 2.5 · 3 + 2)."""
    replies = [
        reply(1, Change(0.5, 1.0), a=1.0, c=1.0),
        reply(1, Change(-0.5, 1.0), a=3.0, b=1.0, c=2.0, d=7.0),
        reply(3, Change(0.2, 1.0), a=2.0, b=3.0),
    ]
    mean = blended(replies, PRINTED)
    assert floats(mean) == pytest.approx({"a": -3.0, "b": 2.5, "c": 1.5, "d": 7.0})
    assert mean.weights == pytest.approx({"a": 1.0, "b": 0.0, "c": 0.0, "d": 0.0})


def test_negative_weights_diluted_are_the_sum_of_weighted_changes() -> None:
    """1.25 · (1 − 10) − 0.25 · (3 − 10) for a, and 1.25 · (4 − 10) for b, which the second does not hold."""
    mean = blended([reply(1, Change(0.5, 1.0), a=1.0, b=4.0), reply(1, Change(-0.1, 1.0), a=3.0)], PRINTED)
    current = {name: torch.tensor([10.0]) for name in "ab"}
    assert floats(diluted(mean, current)) == pytest.approx({"a": 0.5, "b": 2.5})


def test_what_negative_weights_alone_would_push_stays_where_it_is_if_diluted() -> None:
    mean = blended([reply(1, Change(0.5, 1.0), a=1.0), reply(1, Change(-0.1, 1.0), a=3.0, b=4.0)], PRINTED)
    assert floats(diluted(mean, {name: torch.tensor([10.0]) for name in "ab"})) == pytest.approx({"a": 0.5, "b": 10.0})


# -------------------------------------------------------------------------- objectives


HEADS = ("text", "vector", FUSED)
ARCHITECTURE = modular(
    {"vector": VECTOR, "text": TEXT},
    {"digit": DIGIT, "pulse": PULSE},
    width=8,
    encoders={"vector": {"name": "mlp", "hidden": [6]}},
    unimodal_heads=True,
)
COMPONENTS = ARCHITECTURE.components(("text", "vector"), ("digit", "pulse"))
RECIPE = Recipe(lr=0.1, momentum=0.9, weight_decay=0.01, epochs=2, batch_size=4)
EQUAL = {head: torch.ones(()) for head in HEADS}


def some_samples(rows: int = 6) -> Batch:
    return batch_of([VECTOR, TEXT], [DIGIT, PULSE], rows)


def slopes(objective: Objective, batch: Batch, blend: Mapping[str, Tensor] = EQUAL) -> tuple[Tensor, Any, list[Any]]:
    """Return loss, what is logged, and the gradients by parameter."""
    model = Trainer(ARCHITECTURE).model(COMPONENTS)
    model.load(ARCHITECTURE.initial(0))
    loss, logged = objective(model, batch, {BLEND: blend})
    found = torch.autograd.grad(loss, list(model.parameters.values()), allow_unused=True)
    return loss.detach(), logged, list(found)


def assert_same(found: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        assert one is None or other is None or torch.equal(one, other)


def test_the_fused_head_alone_is_the_supervised_loss_bit_for_bit() -> None:
    expected, logged, gradients = slopes(supervised, some_samples())
    loss, also, found = slopes(Blended((FUSED,)), some_samples())
    assert torch.equal(loss, expected)
    assert also == logged
    assert_same(found, gradients)
    assert sum(gradient is None for gradient in gradients) > 0  # those of the uni-modal heads


def test_training_the_fused_head_alone_is_supervised_training_bit_for_bit() -> None:
    counts = (9, 4)
    expected = alone(ARCHITECTURE, cohort(ARCHITECTURE, counts, RECIPE))
    blend = {BLEND: {FUSED: torch.ones(())}}
    found = alone(
        ARCHITECTURE, cohort(ARCHITECTURE, counts, RECIPE, objective=Blended((FUSED,)), extra=lambda client: blend)
    )
    for one, other in zip(found, expected, strict=True):
        assert (one.steps, one.numbers) == (other.steps, other.numbers)
        assert_same(list(one.parameters.values()), list(other.parameters.values()))


def test_the_loss_is_the_weighted_sum_of_the_heads() -> None:
    weights = {"text": 0.2, "vector": 0.3, FUSED: 0.5}
    alone_ = {head: float(slopes(Blended((head,)), some_samples())[0]) for head in HEADS}
    blend = {head: torch.tensor(weight) for head, weight in weights.items()}
    loss, logged, _ = slopes(Blended(HEADS), some_samples(), blend)
    assert float(loss) == pytest.approx(sum(weights[head] * value for head, value in alone_.items()))
    assert logged == slopes(supervised, some_samples())[1]  # of the fused head alone
    assert len(set(alone_.values())) == len(HEADS)


def test_weights_that_add_up_to_two_double_the_gradient() -> None:
    once = {"text": torch.tensor(0.25), "vector": torch.tensor(0.25), FUSED: torch.tensor(0.5)}
    twice = {head: 2 * weight for head, weight in once.items()}
    loss, _, gradients = slopes(Blended(HEADS), some_samples(), once)
    doubled, _, found = slopes(Blended(HEADS), some_samples(), twice)
    assert torch.equal(doubled, 2 * loss)
    assert_same(found, [None if gradient is None else 2 * gradient for gradient in gradients])


def without(batch: Batch, modality: str, absent: Sequence[int]) -> Batch:
    """Return the batch with a modality absent in some rows."""
    mask = torch.ones(len(batch.present[modality]), dtype=torch.bool)
    mask[list(absent)] = False
    blank = batch.inputs[modality] * mask.view(-1, *[1] * (batch.inputs[modality].dim() - 1))
    inputs, present = {**batch.inputs, modality: blank}, {**batch.present, modality: mask}
    return batch._replace(inputs=inputs, present=present, whole=frozenset(batch.targets))


def rows_of(batch: Batch, rows: Sequence[int]) -> Batch:
    return batch.each(lambda value: value[list(rows)])


def counts(objective: Objective, batch: Batch) -> dict[str, int]:
    """Return how many samples count in what is logged."""
    model = Trainer(ARCHITECTURE).model(COMPONENTS)
    logged = objective(model, batch, {})[1]
    return {name: int(share.samples) for name, share in logged.items() if isinstance(share, Share)}


def test_samples_that_lack_a_modality_do_not_count_in_its_heads_loss() -> None:
    whole = some_samples()
    partly = without(whole, "text", [1, 4])
    loss, _, gradients = slopes(Blended(("text",)), partly)
    expected, _, also = slopes(Blended(("text",)), rows_of(whole, [0, 2, 3, 5]))
    assert float(loss) == pytest.approx(float(expected))
    for one, other in zip(gradients, also, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)
    assert counts(HeadLosses(("text",)), partly) == {"loss.text.digit": 4, "loss.text.pulse": 4}
    turned = partly._replace(targets={**partly.targets, "pulse": partly.targets["pulse"].clone()})
    turned.targets["pulse"][[1, 4]] = 1e6
    assert torch.equal(slopes(Blended(("text",)), turned)[0], loss)
    assert not torch.equal(slopes(Blended((FUSED,)), turned)[0], slopes(Blended((FUSED,)), partly)[0])


def test_unlabelled_samples_do_not_count_either() -> None:
    batch = without(some_samples(), "text", [0])
    labelled = {**batch.labelled, "digit": torch.tensor([True, True, False, False, True, True])}
    batch = batch._replace(labelled=labelled, whole=frozenset({"pulse"}))
    assert counts(HeadLosses(("text",)), batch) == {"loss.text.digit": 3, "loss.text.pulse": 5}


def test_a_modality_that_no_sample_has_costs_nothing() -> None:
    batch = without(some_samples(), "text", range(6))
    loss, _, gradients = slopes(Blended(("text",)), batch)
    assert float(loss) == 0
    assert set(counts(HeadLosses(("text",)), batch).values()) == {0}
    assert all(gradient is None or not gradient.any() for gradient in gradients)


def test_a_modality_known_to_be_everywhere_needs_no_mask() -> None:
    masked = some_samples()
    known = masked._replace(whole=frozenset(masked.targets), everywhere=frozenset(masked.inputs))
    assert float(slopes(Blended(HEADS), known)[0]) == pytest.approx(float(slopes(Blended(HEADS), masked)[0]))


def stackable(architecture: Architecture, counts: Sequence[int]) -> list[Pending]:
    """Clients with weights of their own; some samples lack a modality or a target."""
    return cohort(
        architecture,
        counts,
        RECIPE,
        objective=Blended(HEADS),
        extra=lambda client: {
            BLEND: {head: torch.tensor(0.1 + 0.2 * ((client + place) % 3)) for place, head in enumerate(HEADS)}
        },
    )


def test_stacked_clients_agree_with_clients_one_by_one() -> None:
    pending = stackable(ARCHITECTURE, (13, 5, 1, 8))
    found = together(ARCHITECTURE, pending)
    assert_agree(found, alone(ARCHITECTURE, pending))
    start = fit_of(pending[0]).start
    assert all(not torch.equal(found[0].parameters[name], value) for name, value in start.items())


def test_losses_of_heads_are_measured_without_a_loss_of_their_own() -> None:
    pending = cohort(ARCHITECTURE, (10,), RECIPE)[0]
    request, card = fit_of(pending), pending.card
    trainer = Trainer(ARCHITECTURE)
    numbers = trainer.measure(card, Measure(HeadLosses(HEADS), request.start, request.data, request.active))
    model = trainer.model(card.components)
    model.load(request.start)
    batch = request.data.batch()
    with torch.no_grad():
        outputs = model(batch)
    assert numbers["loss"] == 0
    assert loss_of(numbers, FUSED, card.tasks) == pytest.approx(float(total_loss(model.tasks, outputs, batch)[0]))
    for head in ("text", "vector"):
        labelled = {task: mask & batch.present[head] for task, mask in batch.labelled.items()}
        seen = outputs._replace(predictions=dict(outputs.unimodal[head]))
        loss, logged = total_loss(model.tasks, seen, batch._replace(labelled=labelled, whole=frozenset()))
        assert loss_of(numbers, head, card.tasks) == pytest.approx(float(loss))
        assert all(isinstance(value, Share) for value in logged.values())


def test_the_loss_of_a_head_is_the_sum_over_the_tasks_that_were_measured() -> None:
    numbers = {"loss.digit": 1.0, "loss.pulse": 0.5, "loss.text.digit": 2.0, "loss": 0.0}
    assert loss_of(numbers, FUSED, ("digit", "pulse")) == 1.5
    assert loss_of(numbers, "text", ("digit", "pulse")) == 2.0
    assert loss_of(numbers, "vector", ("digit", "pulse")) is None
    assert loss_of(numbers, "text", ("pulse",)) is None


def test_changes_and_losses_of_a_head_are_remembered_side_by_side() -> None:
    """Both are kept where a client merges models and judges heads over its last training."""
    change, losses = Change(0.3, -0.1), Losses(0.5, 0.75)
    personal = {MEMORY: {**remember("text", change), **remember("text", losses), **remember(FUSED, losses)}}
    data = fit_of(cohort(ARCHITECTURE, (10,), RECIPE)[0]).data
    client = Client.of(Card(0, "client 0", ("text", "vector"), ("digit", "pulse"), 10), data, data, data)
    training = Training(client, Clock(0, 1, 1), {}, {}, data, frozenset({"text", "vector"}), RECIPE, personal)
    probe = Probe.of(training, HEADS, 256)
    assert probe.remembered(Change) == {"text": change}
    assert probe.remembered(Losses) == {"text": losses, FUSED: losses}
    now = {"text": Losses(0.25, 0.5), "vector": Losses(1.0, 1.0)}
    assert between(probe.remembered(Losses), now) == {"text": Change(0.25, 0.0)}
