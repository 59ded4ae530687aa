"""Parameters in 8 bits on the wire. P8 and P12 are properties of the method's specification."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from polyfed.data.schema import Modality, Task
from polyfed.engine import evaluate, wire
from polyfed.engine.checklist import Checklist
from polyfed.engine.loop import Outcome
from polyfed.engine.screen import Refusal
from polyfed.engine.screen import screen as screened
from polyfed.engine.steps import Alone, Assignment
from polyfed.experiment.world import build_world
from polyfed.method.averaging import Averaging, named_by
from polyfed.method.protocol import Ask, Clock, Fold, Order, Reply, ask, expected
from polyfed.method.quantized import (
    Quantized,
    dequantize,
    packed,
    packed_exchange,
    packed_expects,
    quantizable,
    quantize,
    rounded,
    unpacked,
    unpacked_reply,
)
from polyfed.model.architecture import component_of
from polyfed.model.catalog import MODELS
from polyfed.scenario.federation import Card
from tests.engine.test_experts_in_federations import MODEL
from tests.worlds import tiny, train

PARAMETERS: Mapping[str, Tensor] = {
    "layer.weight": torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [1e-3, 0.0, -254e-3]]),
    "layer.bias": torch.tensor([127.0, -3.4, 0.4]),
    "norm.weight": torch.tensor([1.0, 2.0, 3.0]),
    "norm.bias": torch.tensor([0.1, 0.2, 0.3]),
    "gate.logits": torch.tensor([0.5, 0.5]),
}


def test_values_are_the_nearest_multiples_of_their_rows_scale() -> None:
    whole, scales = quantize(PARAMETERS["layer.weight"])
    assert whole.dtype == torch.int8
    assert whole.tolist() == [[64, -127, 32], [0, 0, 0], [0, 0, -127]]  # 63.5 is rounded to the even 64
    torch.testing.assert_close(scales, torch.tensor([2 / 127, 1.0, 2e-3]))
    whole, scales = quantize(PARAMETERS["layer.bias"])
    assert (whole.tolist(), scales.shape, float(scales)) == ([127, -3, 0], (), 1.0)
    cube = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    whole, scales = quantize(cube)
    assert (whole.shape, scales.shape) == (cube.shape, (4,))
    error = (dequantize(whole, scales) - cube).abs().amax((1, 2))
    assert (error <= cube.abs().amax((1, 2)) / 254 * 1.001).all()


def test_what_is_quantised_already_stays() -> None:
    once = unpacked(packed({"parameters": PARAMETERS}))
    twice = unpacked(packed(once))
    torch.testing.assert_close(dict(twice["parameters"]), dict(once["parameters"]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_keeps_saying_so(value: float) -> None:
    _, scales = quantize(torch.tensor([[1.0, value], [1.0, 1.0]]))
    assert scales.isfinite().tolist() == [False, True]


def test_rows_too_small_for_a_scale_become_zeros() -> None:
    whole, scales = quantize(torch.full((1, 2), 1e-45))
    assert (dequantize(whole, scales).abs() <= 1e-45).all()


def test_normalisations_and_other_vectors_stay_as_they_are() -> None:
    shapes = {name: tuple(value.shape) for name, value in PARAMETERS.items()}
    assert quantizable(shapes) == ["layer.weight", "layer.bias"]
    groups = packed({"parameters": PARAMETERS, "others": {"layer.weight": torch.ones(2, 2)}})
    assert {group: list(held) for group, held in groups.items()} == {
        "parameters": ["norm.weight", "norm.bias", "gate.logits"],
        "others": ["layer.weight"],
        "quantized": ["layer.weight", "layer.bias"],
        "scales": ["layer.weight", "layer.bias"],
    }
    back = unpacked(groups)
    assert back["parameters"].keys() == PARAMETERS.keys()
    assert back["others"] is groups["others"]
    assert all(back["parameters"][name] is PARAMETERS[name] for name in groups["parameters"])
    alone = {"parameters": {"norm.weight": torch.ones(3)}}
    assert packed(alone) is alone
    assert unpacked(alone) is alone


# ------------------------------------------------------------------------------------------------ bytes


def test_a_message_takes_a_byte_per_value_and_four_per_scale() -> None:
    """P8: at the default width, at most 27 % of the bytes of float32."""
    model = MODELS.build(
        "experts",
        {"gate": "uniform", "layers": 1},
        {"image": Modality("image", "image", (1, 28, 28))},
        {"digit": Task("digit", "classification", classes=10)},
    )
    components = model.components(["image"], ["digit"])
    values = model.initial(0)
    linear = [name for name, value in values.items() if value.dim() > 1]
    biases = [n for n in values if n.endswith("bias") and n.removesuffix("bias") + "weight" in linear]
    rest = values.keys() - linear - set(biases)
    assert {values[name].shape for name in rest} == {(192,)}  # of normalisations
    scales = sum(len(values[name]) for name in linear) + len(biases)
    counted = sum(values[name].numel() for name in [*linear, *biases])
    expected_bytes = counted + 4 * scales + 4 * sum(values[name].numel() for name in rest)
    order = Order("train", frozenset({"image"}), packed({"parameters": values}))
    down = wire.order_bytes(order, components)
    up = wire.reply_bytes(Reply(1, packed({"parameters": values})), components)
    for sizes in (down, up):
        assert sizes.keys() - {"envelope"} <= set(components)
        assert sum(sizes.values()) - sizes["envelope"] == expected_bytes
    assert expected_bytes / (4 * sum(value.numel() for value in values.values())) < 0.27
    travelled = wire.decode_reply(wire.encode_reply(Reply(1, packed({"parameters": values}))))
    assert all(
        torch.equal(unpacked(travelled.tensors)["parameters"][n], v)
        for n, v in unpacked(packed({"parameters": values}))["parameters"].items()
    )


# ------------------------------------------------------------------------------------------------ screening

CARD = Card(0, "client", ("image",), ("digit",), 10, ("layer", "norm", "gate"))


def screen(reply: Reply, order: Order, *, largest_growth: float) -> Refusal | None:
    """Screen a reply in 8 bits; the checklist, which is asked first, must not let through what this refuses."""
    refusal = screened(reply, order, CARD, largest_growth=largest_growth, reading=unpacked)
    passed = Checklist(order, CARD, largest_growth, unpacked).passes(reply, CARD)
    assert passed == (refusal is None)
    return refusal


def asked() -> tuple[Order, Order]:
    """An order as the method makes it and as it travels."""
    tensors = {"parameters": PARAMETERS}
    order = Order("train", frozenset(), tensors, {}, expected(tensors))
    return order, replace(order, tensors=packed(tensors), expects=packed_expects(order.expects))


def reply_of(**changes: Mapping[str, Tensor]) -> Reply:
    groups = packed({"parameters": PARAMETERS})
    return Reply(5, {group: {**held, **changes.get(group, {})} for group, held in groups.items()})


def test_a_packed_reply_is_what_a_packed_order_asks_for() -> None:
    _, order = asked()
    assert screen(reply_of(), order, largest_growth=100.0) is None
    zeros = Reply(5, packed({"parameters": {name: torch.zeros_like(value) for name, value in PARAMETERS.items()}}))
    assert screen(zeros, order, largest_growth=100.0) is None


def growing(size: int = 192) -> tuple[Order, Order, Reply]:
    """An order of norm 9.6, plain and packed, and a packed reply of 127 everywhere with the scales 1."""
    tensors = {"parameters": {"layer.weight": torch.full((size, size), 9.6 / size)}}
    plain = Order("train", frozenset(), tensors, {}, expected(tensors))
    whole = torch.full((size, size), 127, dtype=torch.int8)
    reply = Reply(
        5, {"parameters": {}, "quantized": {"layer.weight": whole}, "scales": {"layer.weight": torch.ones(size)}}
    )
    return plain, replace(plain, tensors=packed(tensors), expects=packed_expects(plain.expects)), reply


def test_values_are_screened_as_they_would_be_in_float32() -> None:
    plain, order, reply = growing()
    refusal = screen(reply, order, largest_growth=100.0)
    assert refusal == Refusal("layer", "norm 2.44e+04 is above the limit 960 (engine.largest_growth)")
    assert refusal == screened(unpacked_reply(reply), plain, CARD, largest_growth=100.0)


@pytest.mark.parametrize(("growth", "refused"), [(0.0, False), (1.0, False), (99.0, False), (101.0, True)])
def test_the_limit_is_that_of_values_not_of_scales(growth: float, refused: bool) -> None:
    """Rows of zeros, whose scales are 1, included."""
    plain, order, _ = growing()
    values = {name: growth * value for name, value in plain.tensors["parameters"].items()}
    reply = Reply(5, packed({"parameters": values}))
    assert (screen(reply, order, largest_growth=100.0) is not None) == refused
    if growth < 1:
        assert screen(reply, order, largest_growth=1.0) is None


def test_scales_of_which_there_is_nothing_may_be_large_if_finite() -> None:
    _, order, reply = growing(4)
    for scale, refused in ((1e30, False), (torch.inf, True), (torch.nan, True)):
        groups = {
            **reply.tensors,
            "quantized": {"layer.weight": torch.zeros(4, 4, dtype=torch.int8)},
            "scales": {"layer.weight": torch.full((4,), scale)},
        }
        refusal = screen(replace(reply, tensors=groups), order, largest_growth=100.0)
        assert (refusal is not None) == refused
        if refusal is not None:
            assert refusal.component == "layer"
            assert "'layer.weight' has 16 values that are NaN or infinite" in refusal.reason


def test_other_groups_are_screened_too() -> None:
    """Such as what is tried of a type that was left, which is not quantised."""
    plain, _ = asked()
    tried = {"layer.weight": torch.ones(2, 2)}
    tensors = {**plain.tensors, "retest": tried}
    order = replace(plain, tensors=packed(tensors), expects=packed_expects(expected(tensors)))
    for factor, refused in ((99.0, False), (101.0, True)):
        reply = Reply(5, {**packed(plain.tensors), "retest": {"layer.weight": factor * tried["layer.weight"]}})
        refusal = screen(reply, order, largest_growth=100.0)
        assert (None if refusal is None else refusal.component) == ("layer" if refused else None)


@pytest.mark.parametrize(
    "changes",
    [
        {"scales": {"layer.weight": torch.tensor([1.0, torch.nan, 1.0])}},
        {"scales": {"layer.weight": torch.full((3,), 1e4)}},
        {"scales": {"layer.bias": torch.tensor(1e30)}},
        {"scales": {"layer.weight": torch.ones(2)}},
        {"quantized": {"layer.weight": PARAMETERS["layer.weight"]}},
        {"parameters": {"layer.weight": PARAMETERS["layer.weight"]}},
    ],
)
def test_bad_packed_replies_are_refused(changes: dict[str, dict[str, Tensor]]) -> None:
    _, order = asked()
    assert screen(reply_of(**changes), order, largest_growth=100.0) is not None


def test_unpacked_parameters_were_not_asked_for() -> None:
    _, order = asked()
    assert screen(Reply(5, {"parameters": PARAMETERS}), order, largest_growth=100.0) is not None


# ------------------------------------------------------------------------------------------------ exchanges


def test_clients_that_are_sent_the_same_still_share_it() -> None:
    order, _ = asked()
    other = replace(order, active=frozenset({"audio"}))
    sent = packed_exchange(Ask({0: order, 1: other}))
    assert isinstance(sent, Ask)
    assert sent.orders[0].tensors is sent.orders[1].tensors
    assert sent.orders[0].expects is sent.orders[1].expects
    assert sent.orders[1].active == {"audio"}


def test_all_replies_at_once_are_unpacked_too() -> None:
    """As a selection asks for them."""
    order, _ = asked()

    class Asking:
        def round(self, *arguments: Any) -> Any:
            return (yield from ask({0: order}))

    asking: Any = Asking()
    conversation: Any = Quantized(asking).round(None, {}, Clock(0, 1, 1))
    wanted = next(conversation)
    assert isinstance(wanted, Ask)
    assert not isinstance(wanted, Fold)
    assert "quantized" in wanted.orders[0].tensors
    with pytest.raises(StopIteration) as end:
        conversation.send({0: reply_of()})
    assert end.value.value[0].tensors["parameters"].keys() == PARAMETERS.keys()


# ------------------------------------------------------------------------------------------------ whole runs


RUN: Mapping[str, Any] = {
    "method__name": "disentafl",
    "method__quantize_bits": 8,
    "model": MODEL,
    "rounds": 2,
    "engine__workers": 1,
}


def quantized_run(deliver: Any = lambda number, client, reply: reply, **changes: Any) -> Outcome:
    return train(tiny(**{**RUN, **changes}), deliver=deliver)


def test_the_server_averages_what_arrived_in_float32() -> None:
    replies: dict[int, Reply] = {}

    def kept(number: int, client: int, reply: Reply) -> Reply:
        replies[client] = reply
        return reply

    outcome = quantized_run(kept, rounds=1)
    world = build_world(tiny(model=MODEL))
    counts = {card.id: card.examples for card in world.federation.cards.values()}
    for name, found in outcome.state.parameters.items():
        held = {k: unpacked_reply(r).tensors["parameters"] for k, r in replies.items()}
        owners = [client for client, values in held.items() if name in values]
        total = sum(counts[client] for client in owners)
        mean = sum(held[client][name].double() * counts[client] for client in owners) / total
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), mean, rtol=1e-5, atol=1e-7)
    assert all(set(reply.tensors) == {"parameters", "quantized", "scales"} for reply in replies.values())
    for client, reply in replies.items():
        components = world.federation.cards[client].components
        assert not any(component_of(n, components)[:5] == "gate." for held in reply.tensors.values() for n in held)


def test_bytes_are_counted_and_fewer_and_bits_do_not_depend_on_the_wire() -> None:
    plain, packed_run = quantized_run(method__quantize_bits=None), quantized_run()
    assert packed_run.progress.refused == []
    for way in ("up", "down"):
        assert packed_run.progress.bytes[way] < plain.progress.bytes[way]  # though at this width names weigh most
    sent = 0

    def encoded(number: int, client: int, reply: Reply) -> bytes:
        nonlocal sent
        message = wire.encode_reply(reply)
        sent += len(message)
        return message

    travelled = quantized_run(encoded)
    assert sent == travelled.progress.bytes["up"]
    assert (travelled.digest, travelled.personal_digest) == (packed_run.digest, packed_run.personal_digest)
    for name, value in plain.state.parameters.items():
        torch.testing.assert_close(packed_run.state.parameters[name], value, rtol=0.1, atol=0.05)


def bytes_of(values: Mapping[str, Tensor]) -> int:
    """Count by hand what parameters take: one byte per value that is quantised, four per scale and per other value."""
    total = 0
    for name, value in values.items():
        bias = name.endswith("bias") and values[name.removesuffix("bias") + "weight"].dim() > 1
        scales = len(value) if value.dim() > 1 else int(bias)
        total += value.numel() + 4 * scales if scales else 4 * value.numel()
    return total


def test_the_bytes_of_a_run_are_those_of_what_its_clients_share(tmp_path: Path) -> None:
    """P8: exactly, in every round, both ways, component by component."""
    experiment = tiny(**RUN)
    train(experiment, tmp_path)
    world = build_world(experiment)
    initial, cards = world.architecture.initial(experiment.seed), world.federation.cards
    lines = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    clients = [line for line in lines if line["kind"] == "client"]
    assert [line["client"] for line in clients] == 2 * list(cards)
    for line in clients:
        components = cards[line["client"]].components
        values: dict[str, dict[str, Tensor]] = {part: {} for part in components if part[:5] != "gate."}
        for name in named_by(tuple(initial), tuple(values)):
            values[component_of(name, components)][name] = initial[name]
        wanted = {component: bytes_of(held) for component, held in values.items()}
        for sizes in line["bytes"].values():
            assert {name: size for name, size in sizes.items() if name != "envelope"} == wanted


def test_a_reply_that_grew_too_much_is_refused_by_name() -> None:
    """As the engine receives it: the scales of one component are large."""

    def grown(number: int, client: int, reply: Reply) -> Reply:
        scales = {name: 500 * v if name[:11] == "projection." else v for name, v in reply.tensors["scales"].items()}
        return replace(reply, tensors={**reply.tensors, "scales": scales}) if client == 1 else reply

    refused = quantized_run(grown, rounds=1).progress.refused
    assert [(entry["client"], entry["component"]) for entry in refused] == [(1, "projection")]
    assert re.fullmatch(r"norm \S+ is above the limit \d+ \(engine.largest_growth\)", refused[0]["reason"])


def test_the_model_that_is_judged_is_what_a_client_is_sent_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """P6: bit for bit; what it keeps to itself is as it is."""
    judge, begin = evaluate.judged, Alone._begin
    loaded: dict[int, Mapping[str, Tensor]] = {}
    sent: dict[int, Mapping[str, Tensor]] = {}

    def judged(trainer: Any, card: Card, parameters: Mapping[str, Tensor]) -> Any:
        loaded[card.id] = parameters
        return judge(trainer, card, parameters)

    def began(alone: Alone, one: Assignment, clock: Any) -> Any:
        sent[one.client] = unpacked(wire.decode_order(wire.encode_order(one.order)).tensors)["parameters"]
        return begin(alone, one, clock)

    monkeypatch.setattr(evaluate, "judged", judged)
    outcome = quantized_run(rounds=1)
    after_one = dict(loaded)
    monkeypatch.setattr(Alone, "_begin", began)
    quantized_run(rounds=2)
    server = outcome.state.parameters
    for client, held in after_one.items():
        own = outcome.personal[client]["parameters"]
        assert held.keys() - sent[client].keys() == own.keys()
        assert all(torch.equal(held[name], value) for name, value in {**sent[client], **own}.items())
        assert not torch.equal(held["projection.weight"], server["projection.weight"])
    assert sorted(after_one) == sorted(sent) == [0, 1, 2, 3]


def test_clients_are_judged_on_the_same_rounded_parameters() -> None:
    """Else every one of them would have to be sent to the workers."""
    world = build_world(tiny(**RUN))
    cards = world.federation.cards
    states = [world.method.begin(world.architecture.initial(seed), cards) for seed in (0, 1)]
    one, other = (world.method.deploy(states[0], cards[client]) for client in (0, 2))
    assert len(one) < len(other)
    assert all(other[name] is value for name, value in one.items())
    second = world.method.deploy(states[1], cards[0])
    assert all(
        torch.equal(second[n], v)
        for n, v in rounded({"parameters": states[1].parameters})["parameters"].items()
        if n in one
    )
    assert not torch.equal(second["projection.weight"], one["projection.weight"])


def test_without_an_option_nothing_is_wrapped() -> None:
    world = build_world(tiny(model=MODEL, method__name="disentafl"))
    assert type(world.method) is Averaging


@pytest.mark.parametrize("select", [{"name": "pow-d", "clients": 2}, {"name": "divfl", "clients": 2}])
def test_selections_read_packed_orders_and_replies(select: dict[str, Any]) -> None:
    assert quantized_run(select=select).progress.refused == []
