"""Any state made of frozen dataclasses, mappings, tuples, tensors and plain values <-> JSON and named tensors.

Reading is guided by type hints, so nothing in a file can name a class or run code.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from polyfed.errors import UserError

Json = Any
PLAIN = (int, float, str, bool)
READABLE: Mapping[Any, tuple[type, ...]] = {int: (int,), float: (int, float), str: (str,), bool: (bool,)}


def check_round_trip(state: Any) -> None:
    """Raise UserError if a state could not be read again once saved: better known now than after a kill.

    Reading follows the annotations of the state's type, and these may not be those of what it holds.
    """
    place = f"method state {type(state).__name__}"
    skeleton, tensors = pack(state)
    try:
        unpack(type(state), skeleton, tensors, place)
    except (LookupError, NameError, TypeError, ValueError) as error:  # what annotations that cannot be followed raise
        raise UserError(f"{place}: its annotations cannot be followed: {type(error).__name__}: {error}") from error


def pack(value: Any, place: str = "") -> tuple[Json, dict[str, Tensor]]:
    """Return the JSON skeleton of a value and its tensors, each named by its place.

    Raises UserError naming the place of what cannot be saved.
    """
    tensors: dict[str, Tensor] = {}
    return _pack(value, place, tensors), tensors


def _pack(value: Any, place: str, tensors: dict[str, Tensor]) -> Json:
    if isinstance(value, Tensor):
        name = place or "value"
        if name in tensors:
            raise UserError(f"state at {place}: two keys are written alike, such as 1 and '1'; keep one kind of key")
        tensors[name] = value
        return {"tensor": name}
    if value is None or isinstance(value, PLAIN):
        return value
    if is_dataclass(value):
        return {f.name: _pack(getattr(value, f.name), f"{place}/{f.name}", tensors) for f in fields(value)}
    if isinstance(value, Mapping):
        return [[_key(key, place), _pack(held, f"{place}/{escaped(key)}", tensors)] for key, held in value.items()]
    if isinstance(value, AbstractSet):
        return _pack(_in_order(value, place), place, tensors)
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


def _in_order(items: AbstractSet[Any], place: str) -> list[Any]:
    try:
        return sorted(items)
    except TypeError as error:
        raise UserError(
            f"state at {place or 'the top'}: a set whose items have no order cannot be saved: {error}"
        ) from error


def unpack(hint: Any, skeleton: Json, tensors: Mapping[str, Tensor], place: str = "state") -> Any:
    """Rebuild a value of the hinted type; raises ``UserError`` naming the place where the file does not fit."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _unpack_any(arguments, skeleton, tensors, place)
    if hint is Tensor or (isinstance(hint, type) and issubclass(hint, torch.Tensor)):
        return _tensor(skeleton, tensors, place)
    if is_dataclass(hint):
        return _unpack_fields(hint, skeleton, tensors, place)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _unpack_mapping(arguments, skeleton, tensors, place)
    if isinstance(origin, type) and issubclass(origin, Sequence | AbstractSet):
        return _unpack_items(origin, arguments, skeleton, tensors, place)
    if hint in READABLE and isinstance(skeleton, READABLE[hint]):
        return hint(skeleton)
    raise UserError(f"{place}: the saved value does not fit the type {_named(hint)}")


def _named(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _unpack_any(hints: Sequence[Any], skeleton: Json, tensors: Mapping[str, Tensor], place: str) -> Any:
    if skeleton is None and types.NoneType in hints:
        return None
    *others, last = [hint for hint in hints if hint is not types.NoneType]
    for hint in others:
        with suppress(UserError):
            return unpack(hint, skeleton, tensors, place)
    return unpack(last, skeleton, tensors, place)


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
    return {
        unpack(key_hint, key, tensors, f"{place}, key {key!r}"): unpack(value_hint, held, tensors, f"{place}[{key!r}]")
        for key, held in skeleton
    }


def _unpack_items(origin: Any, arguments: Any, skeleton: Json, tensors: Mapping[str, Tensor], place: str) -> Any:
    if not isinstance(skeleton, list):
        raise UserError(f"{place}: expected a list")
    hints = arguments
    if origin is not tuple or arguments[1:] == (Ellipsis,):
        hints = arguments[:1] * len(skeleton)
    if len(hints) != len(skeleton):
        raise UserError(f"{place}: expected {len(hints)} values, found {len(skeleton)}")
    items = (
        unpack(hint, held, tensors, f"{place}[{number}]")
        for number, (hint, held) in enumerate(zip(hints, skeleton, strict=True))
    )
    if issubclass(origin, AbstractSet):
        return set(items) if origin is set else frozenset(items)
    return list(items) if origin is list else tuple(items)
