"""YAML that people write by hand: safe types only, no key given twice, no document that unfolds without end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from polyfed.errors import UserError

MOST_VALUES = 100_000

# What PyYAML raises besides its own errors: for impossible dates and numbers, and for nesting without end.
_UNREADABLE = (yaml.YAMLError, ValueError, RecursionError)


class _Loader(yaml.SafeLoader):
    """The safe loader, refusing a key given twice, where plain YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = str(self.construct_object(key_node, deep=True))
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read(path: Path) -> Any:
    """Read a file; raises UserError naming the file and, where there is one, the line and column at fault."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    return parse(text, str(path))


def parse(text: str, place: str) -> Any:
    """Read a text; values that aliases repeat are copied, so that the result is a tree."""
    try:
        found = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
        budget = [MOST_VALUES]
        return _copied(found, budget)
    except _TooLargeError:
        raise UserError(f"{place}: unfolds to more than {MOST_VALUES} values; are there aliases of aliases?") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{place}{where}: not valid YAML: {error.problem}") from None
    except _UNREADABLE as error:
        raise UserError(f"{place}: not valid YAML: {' '.join(str(error).split())}") from None


class _TooLargeError(Exception):
    pass


def _copied(value: Any, budget: list[int]) -> Any:
    budget[0] -= 1
    if budget[0] < 0:
        raise _TooLargeError
    if isinstance(value, dict):
        return {key: _copied(held, budget) for key, held in value.items()}
    return [_copied(held, budget) for held in value] if isinstance(value, list) else value
