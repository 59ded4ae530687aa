"""Screening: every reply is held against what was asked before it may touch anything (design, promise 4)."""

from __future__ import annotations

import math
import reprlib
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polyfed.engine.wire import owner_of
from polyfed.method.protocol import Expected, Groups, Order, Reading, Reply, as_it_is
from polyfed.scenario.federation import Card

MOST_NUMBERS = 256  # of a reply: scalars are for logs and weights, not a way around the tensors that were asked for
LONGEST_NAME = 200
DIVERGED = "; if training diverged, lower train.lr or set train.clip_norm"


@dataclass(frozen=True)
class Refusal:
    """Why a reply was not used: the component (or other part) at fault and the reason."""

    component: str
    reason: str


def screen_own(reply: Any, personal: Groups, card: Card) -> Refusal | None:
    """Return why a client throws its own work away: its numbers or personal tensors are not finite.

    Every client sees this itself, whether or not its reply arrives; it then goes on from its former personal state.
    """
    numbers = _finite(reply.numbers) if isinstance(reply, Reply) and not malformed(reply) else None
    return numbers or _values(personal, {}, card.components, math.inf)


def screen(
    reply: Any, order: Order, card: Card, *, largest_growth: float, reading: Reading = as_it_is
) -> Refusal | None:
    """Return why a reply must be refused, or None if it is sound.

    A component's Euclidean norm may be at most ``largest_growth`` times the norm it was sent with (at least 1).
    Both are norms of the values that ``reading`` finds in tensors as they travel.
    """
    if not isinstance(reply, Reply):
        return Refusal("reply", f"expected a Reply, got {type(reply).__name__}")
    return (
        malformed(reply)
        or _counts(reply, card)
        or _finite(reply.numbers)
        or _needed(reply.numbers, order.needs)
        or _names(reply.tensors, order.expects, card.components)
        or _shapes(reply.tensors, order.expects, card.components)
        or _bounded(reply.tensors, order.expects, card.components)
        or _values(reading(reply.tensors), reading(order.tensors), card.components, largest_growth)
    )


def countable(reply: Any) -> bool:
    """Whether a reply can be weighed: it is one, and holds ordinary tensors and numbers that fit into messages."""
    return (
        isinstance(reply, Reply)
        and malformed(reply) is None
        and all(_is_number(value) for value in (reply.examples, *reply.numbers.values()))
        and all(
            isinstance(value, Tensor) and ordinary(value) for held in reply.tensors.values() for value in held.values()
        )
    )


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= sys.float_info.max)


def ordinary(value: Tensor) -> bool:
    """Whether a tensor has its values in memory, one after another."""
    return value.layout == torch.strided and not value.is_meta


def malformed(reply: Reply) -> Refusal | None:
    """Refuse what is not made as a Reply says; the other checks rely on it."""
    parts: tuple[tuple[str, Any], ...] = (("tensors", reply.tensors), ("numbers", reply.numbers))
    if isinstance(reply.tensors, Mapping):
        parts += tuple((f"tensors.{group}", tensors) for group, tensors in reply.tensors.items())
    for place, table in parts:
        if not isinstance(table, Mapping) or not all(isinstance(name, str) for name in table):
            return Refusal(place, f"expected a table by name, got {reprlib.repr(table)}")
    names = list(reply.numbers)
    if len(names) > MOST_NUMBERS or any(len(name) > LONGEST_NAME or not name.isprintable() for name in names):
        return Refusal("numbers", f"more than {MOST_NUMBERS} numbers, or names of more than {LONGEST_NAME} letters")
    return None


def _counts(reply: Reply, card: Card) -> Refusal | None:
    if type(reply.examples) is not int or not 0 <= reply.examples <= card.examples:
        return Refusal("examples", f"claims {reply.examples!r} training samples, its card says {card.examples}")
    return None


def _finite(numbers: Mapping[str, float]) -> Refusal | None:
    for name, value in numbers.items():
        if not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            return Refusal(f"numbers.{name}", f"{reprlib.repr(value)} is not a finite number{DIVERGED}")
    return None


def _needed(numbers: Mapping[str, float], needs: Mapping[str, tuple[float, float]]) -> Refusal | None:
    for name, (least, most) in needs.items():
        if name not in numbers:
            return Refusal(f"numbers.{name}", "is missing")
        if not least <= numbers[name] <= most:
            return Refusal(f"numbers.{name}", f"{numbers[name]:g} is not between {least:g} and {most:g}")
    return None


def _names(groups: Groups, expects: Mapping[str, Mapping[str, Expected]], parts: Collection[str]) -> Refusal | None:
    for group in sorted({*groups, *expects}):
        got, wanted = groups.get(group, {}).keys(), expects.get(group, {}).keys()
        for name in sorted(got - wanted):
            return Refusal(part_of(name, group, parts), f"tensor {name!r} of group {group!r} was not asked for")
        for name in sorted(wanted - got):
            return Refusal(part_of(name, group, parts), f"tensor {name!r} of group {group!r} is missing")
    return None


def _shapes(groups: Groups, expects: Mapping[str, Mapping[str, Expected]], parts: Collection[str]) -> Refusal | None:
    for group, tensors in groups.items():
        for name, value in tensors.items():
            wanted = expects[group][name]
            if not isinstance(value, Tensor):
                return Refusal(part_of(name, group, parts), f"{name!r} is a {type(value).__name__}, not a tensor")
            if tuple(value.shape) != wanted.shape:
                return Refusal(
                    part_of(name, group, parts), f"{name!r} has shape {tuple(value.shape)}, expected {wanted.shape}"
                )
            if not ordinary(value):
                return Refusal(part_of(name, group, parts), f"{name!r} is not an ordinary tensor")
            if value.dtype != wanted.dtype:
                return Refusal(
                    part_of(name, group, parts), f"{name!r} has dtype {value.dtype}, expected {wanted.dtype}"
                )
    return None


def _bounded(groups: Groups, expects: Mapping[str, Mapping[str, Expected]], parts: Collection[str]) -> Refusal | None:
    for group, tensors in groups.items():
        for name, value in tensors.items():
            limit = expects[group][name].largest
            if limit is not None and float(torch.linalg.vector_norm(value)) > limit:
                return Refusal(part_of(name, group, parts), f"norm of {name!r} is above its limit {limit:.3g}")
    return None


def _values(groups: Groups, sent: Groups, parts: Collection[str], largest_growth: float) -> Refusal | None:
    for group, tensors in groups.items():
        received = _norms(tensors, group, parts)
        before = _norms({n: v for n, v in sent.get(group, {}).items() if n in tensors}, group, parts)
        for part, norm in received.items():
            if not math.isfinite(norm):
                return Refusal(part, _not_finite(tensors, group, parts, part))
            limit = largest_growth * max(1.0, before.get(part, 0.0))
            if part in before and norm > limit:
                return Refusal(part, f"norm {norm:.3g} is above the limit {limit:.3g} (engine.largest_growth)")
    return None


def _norms(tensors: Mapping[str, Tensor], group: str, parts: Collection[str]) -> dict[str, float]:
    return norms_by_part(tensors, [part_of(name, group, parts) for name in tensors])


def norms_by_part(tensors: Mapping[str, Tensor], parts: Sequence[str]) -> dict[str, float]:
    """Return the joint Euclidean norm of the tensors of each part; whole numbers and empty tensors do not count."""
    pairs = zip(parts, tensors.values(), strict=True)
    floating = [(part, value) for part, value in pairs if value.is_floating_point() and value.numel()]
    if not floating:
        return {}
    norms = torch.stack(torch._foreach_norm([value for _, value in floating])).double().tolist()
    squares: dict[str, float] = {}
    for (part, _), norm in zip(floating, norms, strict=True):
        squares[part] = squares.get(part, 0.0) + norm * norm
    return {part: math.sqrt(square) if square >= 0 else square for part, square in squares.items()}


def _not_finite(tensors: Mapping[str, Tensor], group: str, parts: Collection[str], part: str) -> str:
    for name, value in tensors.items():
        if part_of(name, group, parts) == part and value.is_floating_point():
            bad = int((~torch.isfinite(value)).sum())
            if bad:
                return f"{name!r} has {bad} values that are NaN or infinite{DIVERGED}"
    return "its norm is not finite"


def part_of(name: str, group: str, parts: Collection[str]) -> str:
    """Return the component a tensor belongs to; the group's name where it belongs to none."""
    return owner_of(name, tuple(parts)) or group
