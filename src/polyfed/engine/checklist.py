"""A checklist per kind of order: what its replies must be, worked out once for all clients that are sent the same.

A reply that passes is sound. One that does not goes through ``screen``, which tells what is wrong with it; so the
checks here may be strict, never lenient.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from polyfed.engine.screen import LONGEST_NAME, MOST_NUMBERS, norms_by_part, part_of
from polyfed.engine.wire import order_bytes, reply_bytes
from polyfed.method.protocol import Order, Reading, Reply, as_it_is
from polyfed.scenario.federation import Card

Norms = Mapping[str, Mapping[str, float]]
"""Euclidean norms by group and part."""

SMALL = 65_536
"""Numbers in a reply up to which the norms of many replies are computed in one pass."""

CPU = torch.device("cpu")


class Checklist:
    """What replies to an order must be, and how many bytes it and they take on the wire.

    Norms are those of the values that ``reading`` finds in tensors as they travel.
    """

    def __init__(self, order: Order, card: Card, largest_growth: float, reading: Reading = as_it_is) -> None:
        self._reading = reading
        self._parts = card.components
        self._expects = order.expects
        self._needs = order.needs
        self._bounded = any(one.largest is not None for held in order.expects.values() for one in held.values())
        self._limits = {
            group: {part: largest_growth * max(1.0, norm) for part, norm in self._norms_of(group, held).items()}
            for group, held in reading(self._sent(order)).items()
        }
        self.down = order_bytes(order, card.components)
        self.down_total = sum(self.down.values())
        self._up: dict[tuple[str, ...], tuple[dict[str, int], int]] = {}
        self._names_seen: set[str] = set()

    def _sent(self, order: Order) -> dict[str, dict[str, Tensor]]:
        """Return what was sent of that which comes back."""
        return {
            group: {name: value for name, value in order.tensors.get(group, {}).items() if name in held}
            for group, held in order.expects.items()
        }

    def up(self, reply: Reply) -> tuple[dict[str, int], int]:
        """Count the bytes of a reply that passed: by component, and all together."""
        names = tuple(reply.numbers)
        if names not in self._up:
            sizes = reply_bytes(reply, self._parts)
            self._up[names] = sizes, sum(sizes.values())
        return self._up[names]

    def passes(self, reply: object, card: Card, norms: Norms | None = None) -> bool:
        """Whether a reply is sound beyond doubt; ``norms`` are what ``norms_of_many`` said of it, where it did."""
        return (
            type(reply) is Reply
            and not self._bounded
            and type(reply.examples) is int
            and 0 <= reply.examples <= card.examples
            and self._right_numbers(reply.numbers)
            and (norms is not None or self._right_tensors(reply.tensors))
            and self._right_norms(self.norms(reply) if norms is None else norms)
        )

    def _right_numbers(self, numbers: object) -> bool:
        if type(numbers) is not dict or len(numbers) > MOST_NUMBERS:
            return False
        for name, value in numbers.items():
            if name not in self._names_seen:
                if type(name) is not str or len(name) > LONGEST_NAME or not name.isprintable():
                    return False
                self._names_seen.add(name)
            if type(value) not in (float, int) or not abs(value) <= sys.float_info.max:
                return False
        return all(name in numbers and least <= numbers[name] <= most for name, (least, most) in self._needs.items())

    def _right_tensors(self, groups: object) -> bool:
        if type(groups) is not dict or groups.keys() != self._expects.keys():
            return False
        for group, expects in self._expects.items():
            tensors = groups[group]
            if type(tensors) is not dict or tensors.keys() != expects.keys():
                return False
            for name, wanted in expects.items():
                value = tensors[name]
                if (
                    type(value) is not Tensor
                    or value.shape != wanted.shape
                    or value.dtype != wanted.dtype
                    or value.layout != torch.strided
                    or value.device != CPU
                ):
                    return False
        return True

    def _right_norms(self, norms: Norms) -> bool:
        for group, held in norms.items():
            limits = self._limits[group]
            for part, norm in held.items():
                if not math.isfinite(norm) or norm > limits.get(part, math.inf):
                    return False
        return True

    def norms(self, reply: Reply) -> Norms:
        """Return a reply's norms by group and part."""
        return {group: self._norms_of(group, held) for group, held in self._reading(reply.tensors).items()}

    def _norms_of(self, group: str, tensors: Mapping[str, Tensor]) -> dict[str, float]:
        return norms_by_part(tensors, [part_of(name, group, self._parts) for name in tensors])

    def norms_of_many(self, replies: Sequence[object]) -> list[Norms] | None:
        """Return the norms of several small replies in one pass; None where that does not go or does not pay."""
        if self._reading is not as_it_is:
            return None
        sound = [reply for reply in replies if type(reply) is Reply and self._right_tensors(reply.tensors)]
        size = sum(math.prod(one.shape) for held in self._expects.values() for one in held.values())
        if len(sound) < len(replies) or len(sound) < 2 or size > SMALL:
            return None
        squares: dict[tuple[str, str], Tensor] = {}
        for group, expects in self._expects.items():
            for name, wanted in expects.items():
                if not wanted.dtype.is_floating_point or not math.prod(wanted.shape):
                    return None
                values = torch.stack([reply.tensors[group][name] for reply in sound]).reshape(len(sound), -1)
                square = torch.linalg.vector_norm(values, dim=1).double().square_()
                key = group, part_of(name, group, self._parts)
                squares[key] = squares[key] + square if key in squares else square
        found: list[dict[str, dict[str, float]]] = [{group: {} for group in self._expects} for _ in sound]
        for (group, part), square in squares.items():
            for norms, norm in zip(found, square.sqrt_().tolist(), strict=True):
                norms[group][part] = norm
        return list(found)
