"""The checklist against the screen: it may be stricter, never more lenient."""

from __future__ import annotations

import math
from collections import OrderedDict, UserDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from polyfed.engine.checklist import SMALL, Checklist
from polyfed.engine.screen import LONGEST_NAME, MOST_NUMBERS, screen
from polyfed.engine.wire import order_bytes, reply_bytes
from polyfed.method.protocol import Expected, Groups, Order, Reply, expected
from polyfed.scenario.federation import Card
from tests.laws.test_methods import DAMAGES

GROWTH = 10.0
PARTS = ("encoder.image", "head.digit", "parameters")
CARD = Card(3, "client 3", ("image",), ("digit",), 20, PARTS)
SHAPES: dict[str, tuple[int, ...]] = {
    "encoder.image.weight": (4, 3, 2, 2),
    "encoder.image.zoom": (),
    "head.digit.weight": (2, 4),
    "head.digit.bias": (2,),
    "parameters.bias": (3,),
    "loose": (3,),
}


def tensors(seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def order_of(sent: Groups, wanted: Groups | None = None) -> Order:
    return Order("train", frozenset({"image"}), sent, expects=expected(sent if wanted is None else wanted))


ORDER = order_of({"parameters": tensors(0)})
SOUND = Reply(20, {"parameters": tensors(1)}, {"loss": 0.5, "steps": 3.0})


def passes(reply: Any, order: Order = ORDER, card: Card = CARD, *, first: Reply | None = SOUND) -> bool:
    """Ask the checklist, and hold its answer against the screen; ``first`` came before and left its traces."""
    checklist = Checklist(order, card, GROWTH)
    if first is not None:
        checklist.passes(first, card)
    found = checklist.passes(reply, card)
    if found:
        assert screen(reply, order, card, largest_growth=GROWTH) is None
    return found


def test_a_sound_reply_passes() -> None:
    assert passes(SOUND)
    assert passes(replace(SOUND, examples=0, numbers={"loss": 1}))
    assert passes(replace(SOUND, tensors={"parameters": dict(reversed(list(SOUND.tensors["parameters"].items())))}))


def with_tensors(change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> Reply:
    return replace(SOUND, tensors={"parameters": change(dict(SOUND.tensors["parameters"]))})


def with_value(name: str, change: Callable[[Tensor], Any]) -> Reply:
    return with_tensors(lambda held: {**held, name: change(held[name])})


def with_numbers(**numbers: Any) -> Reply:
    return replace(SOUND, numbers={**SOUND.numbers, **numbers})


@dataclass(frozen=True)
class Other(Reply):
    """A reply of another class."""


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_replies_do_not_pass(damage: str) -> None:
    assert not passes(DAMAGES[damage](SOUND))


BAD: dict[str, Any] = {
    "nothing": None,
    "a class": Reply,
    "true examples": replace(SOUND, examples=True),
    "fractional examples": replace(SOUND, examples=3.0),  # type: ignore[arg-type]
    "one example too many": replace(SOUND, examples=21),
    "numbers are a list": replace(SOUND, numbers=[("loss", 0.5)]),  # type: ignore[arg-type]
    "a number is a text": with_numbers(loss="0.5"),
    "a number is None": with_numbers(loss=None),
    "a number is a tensor": with_numbers(loss=torch.tensor(0.5)),
    "a number is complex": with_numbers(loss=1j),
    "a number is infinite": with_numbers(loss=-math.inf),
    "a number beyond floats": with_numbers(loss=10**400),
    "a number's name is a number": replace(SOUND, numbers={1: 0.5}),  # type: ignore[dict-item]
    "a long name": replace(SOUND, numbers={"x" * (LONGEST_NAME + 1): 0.5}),
    "a name with a line break": replace(SOUND, numbers={"lo\nss": 0.5}),
    "one number too many": replace(SOUND, numbers={str(at): 0.5 for at in range(MOST_NUMBERS + 1)}),
    "no group": replace(SOUND, tensors={}),
    "tensors are None": replace(SOUND, tensors=None),  # type: ignore[arg-type]
    "a group is a list": replace(SOUND, tensors={"parameters": list(SHAPES)}),  # type: ignore[dict-item]
    "a name more": with_tensors(lambda held: {**held, "more": torch.zeros(1)}),
    "a name less": with_tensors(lambda held: {name: held[name] for name in list(held)[1:]}),
    "the same names swapped": with_tensors(
        lambda held: {**held, "head.digit.bias": held["loose"], "loose": held["head.digit.bias"]}
    ),
    "transposed": with_value("head.digit.weight", lambda value: value.t()),
    "half precision": with_value("loose", lambda value: value.half()),
    "whole numbers": with_value("loose", lambda value: value.int()),
    "complex numbers": with_value("loose", lambda value: value.to(torch.complex64)),
    "on no device": with_value("loose", lambda value: value.to("meta")),
    "sparse": with_value("loose", lambda value: value.to_sparse()),
    "an array": with_value("loose", lambda value: value.numpy()),
    "one value not a number": with_value("encoder.image.zoom", lambda value: value * math.nan),
    "one value infinite": with_value("loose", lambda value: torch.tensor([0.0, -math.inf, 0.0])),
    "values whose squares are infinite": with_value("loose", lambda value: value * 1e30),
    "a norm too large": with_value("loose", lambda value: value * 1e3),
}


@pytest.mark.parametrize("what", BAD)
def test_what_the_screen_refuses_does_not_pass(what: str) -> None:
    if what != "nothing":
        assert screen(BAD[what], ORDER, CARD, largest_growth=GROWTH) is not None
    assert not passes(BAD[what])
    assert not passes(BAD[what], first=None)


ODD: dict[str, Any] = {
    "another class of reply": Other(SOUND.examples, SOUND.tensors, SOUND.numbers),
    "a subclass of dict for numbers": replace(SOUND, numbers=OrderedDict(SOUND.numbers)),
    "another mapping for numbers": replace(SOUND, numbers=UserDict(SOUND.numbers)),
    "a subclass of dict for groups": replace(SOUND, tensors=OrderedDict(SOUND.tensors)),
    "a subclass of dict for tensors": with_tensors(OrderedDict),
    "a true number": with_numbers(loss=True),
    "a subclass of Tensor": with_value("loose", nn.Parameter),
}


@pytest.mark.parametrize("what", ODD)
def test_what_is_odd_is_left_to_the_screen(what: str) -> None:
    assert screen(ODD[what], ORDER, CARD, largest_growth=GROWTH) is None
    assert not passes(ODD[what])


def test_limits_of_single_tensors_are_left_to_the_screen() -> None:
    held = {name: Expected(shape, torch.float32, largest=1e3) for name, shape in SHAPES.items()}
    assert not passes(SOUND, replace(ORDER, expects={"parameters": held}))


def test_what_was_not_sent_has_no_limit_but_must_be_finite() -> None:
    order = order_of({}, {"parameters": tensors(0)})
    assert passes(with_value("loose", lambda value: value * 1e9), order)
    assert not passes(with_value("loose", lambda value: value * math.inf), order)


def test_tensors_of_no_component_are_weighed_as_the_screen_does() -> None:
    """A group may be called as a component is: then its loose tensors are weighed together with that component's."""
    sent = {name: 0.01 * value for name, value in tensors(0).items()}
    order = order_of({"parameters": sent})
    each = 0.99 * GROWTH / math.sqrt(3)
    reply = with_tensors(lambda held: {**held, "loose": torch.full((3,), each)})
    assert passes(reply, order)
    both = with_tensors(
        lambda held: {**held, "loose": torch.full((3,), each), "parameters.bias": torch.full((3,), each)}
    )
    assert screen(both, order, CARD, largest_growth=GROWTH) is not None
    assert not passes(both, order)


scales = st.sampled_from([0.0, 1e-20, 0.5, 1.0, 9.0, 11.0, 1e3, 1e19, 1e25, 3e38, math.inf, math.nan])


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from(sorted(SHAPES)), scales, max_size=3),
    st.dictionaries(st.sampled_from(sorted(SHAPES)), st.sampled_from([0.0, 1e-3, 1.0, 1e20, math.nan]), max_size=3),
    st.sampled_from(["all", "nothing", "some"]),
    st.one_of(st.integers(-1, 22), st.booleans(), st.floats(0, 20)),
    st.dictionaries(st.text(max_size=3), st.one_of(st.floats(), st.integers(), st.none(), st.text(max_size=2))),
)
def test_what_passes_the_screen_finds_sound(
    changes: dict[str, float], before: dict[str, float], sent: str, examples: Any, numbers: dict[str, Any]
) -> None:
    held = {name: value * before.get(name, 1.0) for name, value in tensors(0).items()}
    names = {"all": list(held), "nothing": [], "some": list(held)[::2]}[sent]
    order = order_of({"parameters": {name: held[name] for name in names}}, {"parameters": held})
    values = {name: value * changes.get(name, 1.0) for name, value in tensors(1).items()}
    passes(Reply(examples, {"parameters": values}, numbers), order)


# -------------------------------------------------------------------------- norms of many


def replies(count: int, scale: float = 1.0) -> list[Reply]:
    return [replace(SOUND, tensors={"parameters": tensors(seed, scale * 2.0**seed)}) for seed in range(count)]


@pytest.mark.parametrize("scale", [0.0, 1e-15, 1.0, 1e15])
def test_norms_of_many_are_the_norms_of_each(scale: float) -> None:
    checklist = Checklist(ORDER, CARD, GROWTH)
    many = replies(5, scale)
    found = checklist.norms_of_many(many)
    assert found is not None
    for norms, reply in zip(found, many, strict=True):
        each = checklist.norms(reply)
        assert norms.keys() == each.keys() == {"parameters"}
        assert norms["parameters"] == pytest.approx(each["parameters"], rel=1e-6)
        assert set(norms["parameters"]) == {"encoder.image", "head.digit", "parameters"}


def test_norms_of_many_channels_last() -> None:
    """As the resident models lay out the weights of convolutions."""
    checklist = Checklist(ORDER, CARD, GROWTH)
    many = [
        replace(
            reply,
            tensors={
                "parameters": {
                    name: value.to(memory_format=torch.channels_last) if value.dim() == 4 else value
                    for name, value in reply.tensors["parameters"].items()
                }
            },
        )
        for reply in replies(3)
    ]
    found = checklist.norms_of_many(many)
    assert found is not None
    assert found[2]["parameters"] == pytest.approx(checklist.norms(replies(3)[2])["parameters"], rel=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_norms_of_many_pass_nothing_that_is_not_finite(value: float) -> None:
    checklist = Checklist(ORDER, CARD, GROWTH)
    bad = with_value("head.digit.bias", lambda held: torch.tensor([0.0, value]))
    norms = checklist.norms_of_many([SOUND, bad, SOUND])
    assert norms is not None
    answers = [checklist.passes(reply, CARD, held) for reply, held in zip([SOUND, bad, SOUND], norms, strict=True)]
    assert answers == [True, False, True]


@pytest.mark.parametrize("what", BAD)
def test_a_broken_reply_among_many_stops_nobody(what: str) -> None:
    """Either there are no joint norms, or they pass no more than its own norms do."""
    checklist = Checklist(ORDER, CARD, GROWTH)
    norms = checklist.norms_of_many([SOUND, BAD[what]])
    assert norms is None or not checklist.passes(BAD[what], CARD, norms[1])
    assert norms is None or checklist.passes(SOUND, CARD, norms[0])


def test_norms_of_many_are_for_several_small_floating_replies() -> None:
    checklist = Checklist(ORDER, CARD, GROWTH)
    assert checklist.norms_of_many([]) is None
    assert checklist.norms_of_many([SOUND]) is None
    for value in (torch.zeros(SMALL + 1), torch.zeros(3, dtype=torch.int64), torch.zeros(0)):
        held = {"parameters": {"loose": value}}
        reply, other = Reply(1, held), Checklist(order_of(held), CARD, GROWTH)
        assert other.norms_of_many([reply, reply]) is None
        assert other.passes(reply, CARD)


# -------------------------------------------------------------------------- values that tensors stand for


def multiplied(groups: Groups) -> Groups:
    """Read tensors that travel as hundredths."""
    return {group: {name: 100 * value for name, value in held.items()} for group, held in groups.items()}


def test_norms_are_those_of_the_values_that_are_read() -> None:
    """Sent at norms below 1 in hundredths: read, they are far above it, and so is their limit."""
    order = order_of({"parameters": tensors(0, 1e-3)})
    plain, read = Checklist(order, CARD, GROWTH), Checklist(order, CARD, GROWTH, multiplied)
    for scale, sound in ((5e-3, True), (0.1, False)):
        reply = Reply(20, {"parameters": tensors(0, scale)})
        assert plain.passes(reply, CARD)
        assert read.passes(reply, CARD) == sound
        refusal = screen(reply, order, CARD, largest_growth=GROWTH, reading=multiplied)
        assert (refusal is None) == sound


def test_norms_of_many_are_not_those_of_what_travels() -> None:
    """They are computed of each reply, from what is read."""
    many = [SOUND, SOUND]
    assert Checklist(ORDER, CARD, GROWTH).norms_of_many(many) is not None
    assert Checklist(ORDER, CARD, GROWTH, multiplied).norms_of_many(many) is None


# -------------------------------------------------------------------------- bytes


@pytest.mark.parametrize("numbers", [{}, {"loss": 0.5}, {"loss": 0.5, "steps": 3}])
def test_bytes_are_those_of_the_message(numbers: dict[str, float]) -> None:
    checklist = Checklist(ORDER, CARD, GROWTH)
    assert checklist.down == order_bytes(ORDER, CARD.components)
    assert checklist.down_total == sum(checklist.down.values())
    for seed in range(2):
        reply = Reply(seed, {"parameters": tensors(seed)}, numbers)
        sizes = reply_bytes(reply, CARD.components)
        assert checklist.up(reply) == (sizes, sum(sizes.values()))


def test_bytes_of_replies_with_other_numbers_are_not_mixed_up() -> None:
    checklist = Checklist(ORDER, CARD, GROWTH)
    few = checklist.up(replace(SOUND, numbers={}))[1]
    more = checklist.up(replace(SOUND, numbers={"a rather long name": 1.0}))[1]
    assert few < more
    assert checklist.up(replace(SOUND, numbers={}))[1] == few
