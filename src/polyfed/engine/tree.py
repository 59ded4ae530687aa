"""Any state made of frozen dataclasses, mappings, tuples, tensors and plain values <-> JSON and named tensors.

Reading is guided by type hints, so nothing in a file can name a class or run code.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from polyfed.errors import UserError

Json = Any
PLAIN = (int, float, str, bool)


def pack(value: Any, place: str = "") -> tuple[Json, dict[str, Tensor]]:
    """Return the JSON skeleton of a value and its tensors, each named by its place.

    Raises UserError naming the place of what cannot be saved.
    """
    tensors: dict[str, Tensor] = {}
    return _pack(value, place, tensors), tensors


def _pack(value: Any, place: str, tensors: dict[str, Tensor]) -> Json:
    if isinstance(value, Tensor):
        name = place or "value"
        tensors[name] = value
        return {"tensor": name}
    if value is None or isinstance(value, PLAIN):
        return value
    if is_dataclass(value):
        return {f.name: _pack(getattr(value, f.name), f"{place}/{f.name}", tensors) for f in fields(value)}
    if isinstance(value, Mapping):
        return [[_key(key, place), _pack(held, f"{place}/{escaped(key)}", tensors)] for key, held in value.items()]
    if isinstance(value, AbstractSet):
        return sorted(value)
    if isinstance(value, Sequence):
        return [_pack(held, f"{place}/{number}", tensors) for number, held in enumerate(value)]
    raise UserError(
        f"state at {place or 'the top'} holds a {type(value).__name__}, which cannot be saved. Choices: tensors, "
        "numbers, texts, true and false, None, and frozen dataclasses, mappings, sets and sequences of these"
    )


def _key(key: Any, place: str) -> str | int:
    if isinstance(key, str) or type(key) is int:
        return key
    raise UserError(f"state at {place or 'the top'} has the key {key!r}, which cannot be saved. Choices: text, integer")


def escaped(key: object) -> str:
    """Write a key so that no two places of a tree get one name (as in JSON pointers)."""
    return str(key).replace("~", "~0").replace("/", "~1")


def check_round_trip(state: Any) -> None:
    """Raise UserError if a state could not be read again once saved: better known now than after a kill."""
    kind = type(state)
    skeleton, tensors = pack(state)
    unpack(kind, skeleton, tensors, f"method state {kind.__name__}")


def unpack(hint: Any, skeleton: Json, tensors: Mapping[str, Tensor], place: str = "state") -> Any:
    """Rebuild a value of the hinted type; raises ``UserError`` naming the place where the file does not fit."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not type(None)]
        return None if skeleton is None else unpack(inner[0], skeleton, tensors, place)
    if hint is Tensor or (isinstance(hint, type) and issubclass(hint, torch.Tensor)):
        return _tensor(skeleton, tensors, place)
    if is_dataclass(hint):
        return _unpack_fields(hint, skeleton, tensors, place)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _unpack_mapping(arguments, skeleton, tensors, place)
    if isinstance(origin, type) and issubclass(origin, Sequence | AbstractSet):
        return _unpack_items(origin, arguments, skeleton, tensors, place)
    if hint in PLAIN and isinstance(skeleton, PLAIN):
        return hint(skeleton)
    raise UserError(f"{place}: the saved value does not fit the type {hint}")


def _tensor(skeleton: Json, tensors: Mapping[str, Tensor], place: str) -> Tensor:
    name = skeleton.get("tensor") if isinstance(skeleton, dict) else None
    if not isinstance(name, str) or name not in tensors:
        raise UserError(f"{place}: tensor {name!r} is not in the file")
    return tensors[name]


def _unpack_fields(hint: Any, skeleton: Json, tensors: Mapping[str, Tensor], place: str) -> Any:
    names = {f.name for f in fields(hint)}
    if not isinstance(skeleton, dict) or set(skeleton) != names:
        raise UserError(f"{place}: expected the fields {sorted(names)}")
    hints = get_type_hints(hint)
    return hint(**{name: unpack(hints[name], skeleton[name], tensors, f"{place}.{name}") for name in names})


def _unpack_mapping(arguments: Any, skeleton: Json, tensors: Mapping[str, Tensor], place: str) -> dict[Any, Any]:
    if not isinstance(skeleton, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in skeleton):
        raise UserError(f"{place}: expected a table")
    key_hint, value_hint = arguments
    return {key_hint(key): unpack(value_hint, held, tensors, f"{place}[{key!r}]") for key, held in skeleton}


def _unpack_items(origin: Any, arguments: Any, skeleton: Json, tensors: Mapping[str, Tensor], place: str) -> Any:
    if not isinstance(skeleton, list):
        raise UserError(f"{place}: expected a list")
    uniform = issubclass(origin, AbstractSet) or len(arguments) == 1 or arguments[-1] is Ellipsis
    if not uniform and len(arguments) != len(skeleton):
        raise UserError(f"{place}: expected {len(arguments)} values, found {len(skeleton)}")
    hints = [arguments[0]] * len(skeleton) if uniform else list(arguments)
    items = (
        unpack(hint, held, tensors, f"{place}[{number}]")
        for number, (hint, held) in enumerate(zip(hints, skeleton, strict=True))
    )
    return frozenset(items) if issubclass(origin, AbstractSet) else tuple(items)
