"""FedAttn (methods sheet FedHGB, sections 6 and 8.22)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyfed.method.averaging import Context
from polyfed.method.combine import Mean, diluted
from polyfed.method.fedattn import Attentive, AttentiveMean, Granularity, Norm, attention, fedattn
from polyfed.method.protocol import Clock, Recipe, Reply

CLOCK = Clock(0, 1, 10)
RULES = [Attentive(1.0, norm, granularity) for norm, granularity in product(get_args(Norm), get_args(Granularity))]
SHAPES: dict[str, tuple[int, ...]] = {
    "net.0.weight": (),
    "net.1.weight": (3,),
    "net.1.bias": (2,),
    "net.2.weight": (3, 2),
    "net.3.weight": (2, 3, 2),
    "net.4.weight": (2, 1, 3, 2),
    "net.5.weight": (2, 1, 2, 2, 3),
    "net.5.bias": (2, 2),
    "net.6.weight": (0, 3),
}


def drawn(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def moved(
    rule: Attentive,
    current: Mapping[str, Tensor],
    held: Sequence[Mapping[str, Tensor]],
    examples: Sequence[int] | None = None,
    clock: Clock = CLOCK,
) -> Mean:
    reducer = rule(lambda client, reply: float(reply.examples), current, clock)
    assert isinstance(reducer, AttentiveMean)
    for client, tensors in enumerate(held):
        reducer.add(client, Reply((examples or [1] * len(held))[client], {"parameters": tensors}))
    assert reducer.counted == tuple(range(len(held)))
    return reducer.finish()


def scalars(**values: float) -> dict[str, Tensor]:
    return {name.replace("_", "."): torch.tensor([value]) for name, value in values.items()}


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)


# -------------------------------------------------------------------------- attention


def test_who_is_farther_counts_more() -> None:
    assert attention([0.0, math.log(2)]) == pytest.approx([1 / 3, 2 / 3])
    assert attention([5.0, 5.0, 5.0]) == pytest.approx([1 / 3] * 3)
    assert attention([1e6, 0.0]) == [1.0, 0.0]


@settings(deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=8))
def test_attention_is_a_share_and_grows_with_the_distance(distances: list[float]) -> None:
    weights = attention(distances)
    assert sum(weights) == pytest.approx(1)
    by_distance = [weight for _, weight in sorted(zip(distances, weights, strict=True))]
    assert by_distance == sorted(by_distance)


def test_golden_update() -> None:
    """Distances 0 and ln 2: two thirds of the second's change, once and 1.2 times."""
    current, held = scalars(a=5.0), [scalars(a=5.0), scalars(a=5.0 - math.log(2))]
    assert float(moved(Attentive(1.0), current, held).values["a"]) == pytest.approx(5 - 2 / 3 * math.log(2))
    mean = moved(Attentive(), current, held)
    assert float(mean.values["a"]) == pytest.approx(5 - 1.2 * 2 / 3 * math.log(2))
    assert mean.note is not None
    assert mean.note.numbers == pytest.approx({"largest_attention": 2 / 3})


def test_clients_equally_far_are_averaged_whatever_their_examples() -> None:
    mean = moved(Attentive(1.0), scalars(a=5.0), [scalars(a=3.0), scalars(a=7.0)], [1, 1000])
    assert float(mean.values["a"]) == pytest.approx(5.0)
    corners = [{"a": torch.tensor([x, y])} for x, y in ((1.0, 1.0), (1.0, -1.0), (-1.0, 1.0))]
    mean = moved(Attentive(1.0), {"a": torch.zeros(2)}, corners)
    assert_close(mean.values, {"a": torch.tensor([1 / 3, 1 / 3])})


def test_layers_have_their_own_attention_and_the_largest_is_noted() -> None:
    held = [scalars(a=0.0, b=0.0, c=0.0), scalars(a=math.log(2), b=math.log(3), c=0.0)]
    mean = moved(Attentive(1.0), scalars(a=0.0, b=0.0, c=0.0), held)
    assert {name: float(value) for name, value in mean.values.items()} == pytest.approx(
        {"a": 2 / 3 * math.log(2), "b": 3 / 4 * math.log(3), "c": 0.0}
    )
    assert mean.note is not None
    assert mean.note.numbers == pytest.approx({"largest_attention": 0.75})


# -------------------------------------------------------------------------- any tensor, any rule


@pytest.mark.parametrize("rule", RULES)
def test_a_step_of_zero_changes_nothing(rule: Attentive) -> None:
    mean = moved(replace(rule, epsilon=0.0), drawn(0), [drawn(1), drawn(2)])
    assert all(torch.equal(mean.values[name], value) for name, value in drawn(0).items())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("count", [1, 3])
def test_identical_clients_move_the_server_by_epsilon_times_their_change(rule: Attentive, count: int) -> None:
    mean = moved(replace(rule, epsilon=1.2), drawn(0), [drawn(1)] * count)
    assert_close(mean.values, {name: value + 1.2 * (drawn(1)[name] - value) for name, value in drawn(0).items()})
    assert mean.note is not None
    assert mean.note.numbers == pytest.approx({"largest_attention": 1 / count})


@pytest.mark.parametrize("rule", RULES)
def test_one_client_and_a_whole_step_is_that_client(rule: Attentive) -> None:
    assert_close(moved(rule, drawn(0), [drawn(1)]).values, drawn(1))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(RULES), st.integers(0, 1000), st.integers(2, 5))
def test_a_whole_step_ends_among_the_clients(rule: Attentive, seed: int, count: int) -> None:
    """Every entry lies between the clients' smallest and largest."""
    held = [drawn(seed + 1 + client) for client in range(count)]
    mean = moved(rule, drawn(seed), held)
    assert mean.values.keys() == SHAPES.keys()
    for name, value in mean.values.items():
        several = torch.stack([tensors[name] for tensors in held])
        assert value.shape == SHAPES[name] and value.dtype == torch.float32
        assert bool((value >= several.amin(0) - 1e-5).all()) and bool((value <= several.amax(0) + 1e-5).all())


def test_the_norms_by_hand() -> None:
    """diag(3, 4): 5 and 4. What is not a matrix has one norm only."""
    change = torch.diag(torch.tensor([3.0, 4.0]))
    flat, spectral = Attentive(), Attentive(norm="spectral")
    assert (flat.distance(change), spectral.distance(change)) == pytest.approx((5.0, 4.0))
    for shape in ((), (2,), (2, 1, 2), (1, 2, 1, 2), (1, 1, 2, 1, 2)):
        value = torch.full(shape, 2.0)
        assert flat.distance(value) == spectral.distance(value) == pytest.approx(2 * math.sqrt(value.numel()))


def test_modules_are_judged_as_one() -> None:
    """Weight off by 0.3 and bias by 0.4, so 0.5 together."""
    current = scalars(m_weight=0.0, m_bias=0.0, n_weight=0.0)
    far = scalars(m_weight=0.3, m_bias=0.4, n_weight=0.0)
    together = moved(Attentive(1.0, granularity="module"), current, [current, far]).values
    apart = moved(Attentive(1.0, granularity="tensor"), current, [current, far]).values

    def share(distance: float) -> float:
        return math.exp(distance) / (1 + math.exp(distance))

    assert {name: float(value) for name, value in together.items()} == pytest.approx(
        {"m.weight": 0.3 * share(0.5), "m.bias": 0.4 * share(0.5), "n.weight": 0.0}
    )
    assert {name: float(value) for name, value in apart.items()} == pytest.approx(
        {"m.weight": 0.3 * share(0.3), "m.bias": 0.4 * share(0.4), "n.weight": 0.0}
    )


def test_the_layer_of_a_tensor() -> None:
    assert Attentive().layer("encoder.image.0.weight") == "encoder.image.0.weight"
    by_module = Attentive(granularity="module")
    assert by_module.layer("encoder.image.0.weight") == by_module.layer("encoder.image.0.bias") == "encoder.image.0"


# -------------------------------------------------------------------------- who takes part


def test_clients_without_a_component_are_left_out_of_its_attention() -> None:
    """b is the second's alone, and goes where the second is; a is 1/3 and 2/3."""
    held = [scalars(a=0.0), scalars(a=math.log(2), b=9.0)]
    mean = moved(Attentive(1.0), scalars(a=0.0, b=1.0), held)
    assert {name: float(value) for name, value in mean.values.items()} == pytest.approx(
        {"a": 2 / 3 * math.log(2), "b": 9.0}
    )
    assert (mean.weights, mean.total) == ({"a": 2.0, "b": 1.0}, 2.0)
    assert float(diluted(mean, scalars(a=0.0, b=1.0)).values["b"]) == pytest.approx(5.0)


@pytest.mark.parametrize("rule", RULES)
def test_what_a_client_sends_of_one_component_does_not_change_another(rule: Attentive) -> None:
    current, first = scalars(x_weight=0.0, y_weight=0.0), scalars(x_weight=1.0, y_weight=2.0)
    one, other = (moved(rule, current, [first, scalars(y_weight=value)]).values["x.weight"] for value in (0.5, 50.0))
    assert torch.equal(one, other)


def test_a_client_without_samples_is_counted_and_left_out() -> None:
    mean = moved(Attentive(1.0), scalars(a=0.0), [scalars(a=1.0), scalars(a=100.0)], [4, 0])
    assert float(mean.values["a"]) == pytest.approx(1.0)
    assert mean.total == 1.0


def test_nobody_with_samples_is_an_empty_mean() -> None:
    for mean in (moved(Attentive(), drawn(0), []), moved(Attentive(noise=0.1), drawn(0), [drawn(1)], [0])):
        assert (mean.values, mean.weights, mean.total) == ({}, {}, 0.0)


def test_replies_and_the_servers_parameters_are_not_changed() -> None:
    current, held = drawn(0), [drawn(1), drawn(2)]
    moved(Attentive(noise=0.1), current, held)
    for seed, tensors in enumerate([current, *held]):
        assert all(torch.equal(value, tensors[name]) for name, value in drawn(seed).items())


# -------------------------------------------------------------------------- noise


def test_noise_is_determined_by_the_clock() -> None:
    rule = Attentive(noise=0.1)
    held = [drawn(1), drawn(2)]
    once, again, later, other = (
        moved(rule, drawn(0), held, clock=clock).values for clock in (CLOCK, CLOCK, Clock(0, 2, 10), Clock(1, 1, 10))
    )
    for name, value in once.items():
        assert torch.equal(value, again[name])
        if value.numel():
            assert not torch.equal(value, later[name]) and not torch.equal(value, other[name])


def test_without_noise_the_clock_does_not_matter() -> None:
    held = [drawn(1), drawn(2)]
    one, other = (moved(Attentive(), drawn(0), held, clock=clock).values for clock in (CLOCK, Clock(9, 9, 10)))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_noise_has_the_standard_deviation_that_was_asked_for() -> None:
    """Of 10,000 draws: the standard error of the deviation is 0.7 %, of the mean 1 % of it."""
    current = {"a": torch.zeros(10_000)}
    noise = moved(Attentive(noise=0.2), current, [current]).values["a"]
    assert float(noise.std()) == pytest.approx(0.2, rel=0.04)
    assert abs(float(noise.mean())) < 0.01


# -------------------------------------------------------------------------- the method


def test_what_the_method_is_made_of() -> None:
    context = Context(Recipe(), lambda modalities, tasks: ())
    assert fedattn(context).combine == Attentive(1.2, "frobenius", "tensor", 0.0)
    chosen = fedattn(context, epsilon=0.5, norm="spectral", granularity="module", noise=0.001, missing="dilute")
    assert (chosen.combine, chosen.missing) == (Attentive(0.5, "spectral", "module", 0.001), "dilute")
