"""Messages as bytes: safetensors with a small JSON head. Nothing is ever unpickled.

A tensor travels as ``group:name``; numbers travel as float64 scalars of the group ``number``, so that the length of a
message depends on its layout alone.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from polyfed.errors import PolyfedError
from polyfed.method.protocol import Groups, Order, Reply
from polyfed.model.architecture import component_of

NUMBER = "number"
LARGEST_HEADER = 16 * 2**20

Layout = tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]


class MalformedMessageError(PolyfedError):
    """Bytes that are not a message."""


def encode_reply(reply: Reply) -> bytes:
    """Return a reply as bytes."""
    numbers = {**reply.numbers, "examples": float(reply.examples)}
    return save(flat(reply.tensors, numbers), {"kind": "reply"})


def encode_order(order: Order) -> bytes:
    """Return an order as bytes; what the server expects back stays with the server."""
    head = {"kind": "order", "step": order.step, "active": json.dumps(sorted(order.active))}
    return save(flat(order.tensors, order.numbers), head)


def decode_reply(message: bytes) -> Reply:
    """Read a reply from bytes that may be hostile; raises ``MalformedMessageError``."""
    _, groups, numbers = _decode(message, "reply")
    examples = numbers.pop("examples", -1.0)
    if not examples.is_integer() or examples < 0:
        raise MalformedMessageError(f"examples is {examples}, not a count")
    return Reply(int(examples), groups, numbers)


def decode_order(message: bytes) -> Order:
    """Read an order from bytes that may be hostile; raises ``MalformedMessageError``."""
    head, groups, numbers = _decode(message, "order")
    try:
        active = json.loads(head.get("active", ""))
    except json.JSONDecodeError as error:
        raise MalformedMessageError("the list of active modalities is not JSON") from error
    if not isinstance(active, list) or not all(isinstance(name, str) for name in active) or "step" not in head:
        raise MalformedMessageError("an order needs a step and a list of active modalities")
    return Order(head["step"], frozenset(active), groups, numbers)


def flat(groups: Groups, numbers: Mapping[str, float]) -> dict[str, Tensor]:
    """Name every tensor and number of a message."""
    tensors = {f"{group}:{name}": value.contiguous() for group, held in groups.items() for name, value in held.items()}
    scalars = {f"{NUMBER}:{name}": torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
    return {**tensors, **scalars}


def _decode(message: bytes, kind: str) -> tuple[dict[str, str], dict[str, dict[str, Tensor]], dict[str, float]]:
    head = _head(message)
    if head.get("kind") != kind:
        raise MalformedMessageError(f"expected a message of kind {kind!r}, got {head.get('kind')!r}")
    try:
        tensors = load(message)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise MalformedMessageError(f"not safetensors: {error}") from error
    groups: dict[str, dict[str, Tensor]] = {}
    numbers: dict[str, float] = {}
    for name, value in tensors.items():
        group, separator, rest = name.partition(":")
        if not separator or not rest:
            raise MalformedMessageError(f"tensor {name!r} has no group")
        if group != NUMBER:
            groups.setdefault(group, {})[rest] = value
        elif value.dtype == torch.float64 and value.dim() == 0:
            numbers[rest] = float(value)
        else:
            raise MalformedMessageError(f"number {rest!r} is not a float64 scalar")
    return head, groups, numbers


def _head(message: bytes) -> dict[str, str]:
    if len(message) < 8:
        raise MalformedMessageError(f"{len(message)} bytes are too few for a message")
    (length,) = struct.unpack("<Q", message[:8])
    if length > min(len(message) - 8, LARGEST_HEADER):
        raise MalformedMessageError(f"the header claims {length} bytes; the message has {len(message)}")
    try:
        head = json.loads(message[8 : 8 + length])
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise MalformedMessageError("the header is not JSON") from error
    found = head.get("__metadata__", {}) if isinstance(head, dict) else {}
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise MalformedMessageError("the header is not a table of texts")
    return found


# ---------------------------------------------------------------------------------------------- sizes


def order_bytes(order: Order, components: Collection[str]) -> dict[str, int]:
    """Count the bytes of an order as it would travel, by component; ``envelope`` is all that is not tensor data."""
    return _sizes(order.tensors, order.numbers, components, lambda: len(encode_order(order)), _order_key(order))


def reply_bytes(reply: Reply, components: Collection[str]) -> dict[str, int]:
    """Count the bytes of a reply as it would travel, by component; ``envelope`` is all that is not tensor data."""
    return _sizes(reply.tensors, reply.numbers, components, lambda: len(encode_reply(reply)), "reply")


def _order_key(order: Order) -> str:
    return f"{order.step} {sorted(order.active)}"


_ENVELOPES: dict[tuple[str, Layout, tuple[str, ...]], int] = {}


def _sizes(
    groups: Groups, numbers: Mapping[str, float], components: Collection[str], length: Callable[[], int], kind: str
) -> dict[str, int]:
    """Count payload by component; the head's length is taken from one real encoding per layout."""
    sizes: dict[str, int] = {}
    names = tuple(components)
    layout = []
    for group, tensors in groups.items():
        for name, value in tensors.items():
            owner = owner_of(name, names) or group
            sizes[owner] = sizes.get(owner, 0) + value.numel() * value.element_size()
            layout.append((f"{group}:{name}", value.dtype, tuple(value.shape)))
    key = (kind, tuple(layout), tuple(numbers))
    if key not in _ENVELOPES:
        _ENVELOPES[key] = length() - sum(sizes.values())
    return {**sizes, "envelope": _ENVELOPES[key]}


@lru_cache(maxsize=100_000)
def owner_of(parameter: str, components: tuple[str, ...]) -> str | None:
    """Return the component of a tensor name, None if it belongs to none."""
    try:
        return component_of(parameter, components)
    except LookupError:
        return None
