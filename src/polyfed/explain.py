"""Say what is wrong with values that were checked by a model: the key, the value and the choices, one line each."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

MISSING = {"missing": "is missing", "union_tag_not_found": "a name is missing: write name: ..."}


def explain(error: ValidationError, model: type[BaseModel], source: str) -> str:
    """Return one line per fault: ``source: method.mu: -1 ...``."""
    lines = []
    for fault in error.errors():
        path, choices = _walk(model, fault["loc"])
        lines.append(f"{source}: {path or 'the file'}: {_fault(dict(fault), choices)}")
    return "\n".join(dict.fromkeys(lines))


# What pydantic says where a section, or one of its parts, is no table.
NO_TABLE = frozenset({"model_attributes_type", "model_type", "dict_type", "mapping_type", "dataclass_type"})


def _fault(fault: dict[str, Any], siblings: list[str]) -> str:
    kind, context, value = fault["type"], fault.get("ctx", {}), fault.get("input")
    if kind == "extra_forbidden":
        key = str(fault["loc"][-1])
        return f"unknown key {key!r}{_hint(key, siblings)} Choices: {', '.join(siblings)}"
    if kind == "union_tag_invalid":
        expected = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
        tag = context["tag"]
        return f"unknown name {tag!r}{_hint(tag, expected)} Choices: {', '.join(expected)}"
    return MISSING[kind] if kind in MISSING else _refused(kind, value, fault)


def _refused(kind: str, value: object, fault: dict[str, Any]) -> str:
    if kind == "literal_error":
        return f"{value!r} is not one of the choices: {fault['ctx']['expected']}"
    if kind == "value_error":  # raised by a check of polyfed's own, which names the value
        return str(fault["msg"]).removeprefix("Value error, ")
    if kind in NO_TABLE and isinstance(value, str):
        return f"{value!r} is a text where a table belongs; write {{name: {value}}}"
    message = str(fault["msg"])
    return f"{value!r} is not allowed: {message[0].lower()}{message[1:]}"


def _hint(value: object, choices: list[str]) -> str:
    close = get_close_matches(str(value), choices, n=1)
    return f"; did you mean {close[0]!r}?" if close else "."


TABLES = (dict, Mapping)
KEY = "[key]"  # what pydantic calls the key of a table


def _walk(model: type[BaseModel], place: tuple[int | str, ...]) -> tuple[str, list[str]]:
    """Return the dotted path of a fault, without the tags that pydantic puts in, and the keys beside it."""
    shown: list[str] = []
    here: Any = model
    siblings: list[str] = []
    for part in place:
        if part == KEY:
            continue
        if get_origin(here) in TABLES:  # the entry of that key, whatever the key is
            here = get_args(here)[1]
            shown.append(str(part))
            continue
        options = _models(here)
        tagged = {_tag(option): option for option in options}
        if isinstance(part, str) and len(tagged) > 1 and part in tagged:
            here = tagged[part]
        elif _is_union_of_values(here):  # pydantic names the member that it tried, such as "int"
            here = None
        else:
            siblings = list(options[0].model_fields) if options else []
            field = options[0].model_fields.get(str(part)) if options else None
            here = field.annotation if field else here  # an entry of a list or table: the models stay the same
            shown.append(str(part))
    return ".".join(shown), siblings


def _is_union_of_values(hint: Any) -> bool:
    members = [member for member in get_args(hint) if member is not NoneType]
    return get_origin(hint) in (Union, UnionType) and len(members) > 1 and not _models(hint)


def _models(hint: Any) -> list[type[BaseModel]]:
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return [hint]
    return [model for argument in get_args(hint) for model in _models(argument)]


def _tag(model: type[BaseModel]) -> str:
    field = model.model_fields.get("name")
    return str(field.default) if field else ""
