"""Which runs are seeds of the same thing: runs of one method with the same settings form a variant."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polyfed.errors import UserError
from polyfed.method.catalog import METHODS
from polyfed.method.selections import SELECTORS
from polyfed.registry import Registry
from polyfed.report.formats import short
from polyfed.report.records import RunData

OPTION = "method."
"""How the paths of a method's name and options begin."""

SELECTION = "select."
"""How the paths of a selection's name and options begin."""

SELECTION_NAME = f"{SELECTION}name"

IGNORED = frozenset({"version", "name", "seed", "baseline", "engine", "resolved_with"})
"""Settings that do not make another experiment of a run."""

Settings = Mapping[str, str]
"""Path of a setting -> its value as text."""


@dataclass(frozen=True)
class Variant:
    """A method with its settings, and its runs in ascending seed. ``label`` tells it from all others compared."""

    label: str
    method: str
    runs: tuple[RunData, ...]


def variants(runs: Sequence[RunData]) -> list[Variant]:
    """Group runs by method and settings, in the order in which they first appear.

    A label is the method's name with the options that are not the method's defaults and, where that is not enough,
    the settings that differ (of a selection's options, those that are not its defaults) or the experiment's name.
    Raises UserError if two runs cannot be told apart.
    """
    groups: dict[tuple[str, str], list[RunData]] = {}
    for run in runs:
        key = (run.summary.method, json.dumps(dict(settings(run)), sort_keys=True))
        groups.setdefault(key, []).append(run)
    parts = [part for held in groups.values() for part in _told_apart(held)]
    labels = _labels(parts)
    return [
        Variant(label, held[0].summary.method, tuple(sorted(held, key=lambda run: run.summary.seed)))
        for label, held in zip(labels, parts, strict=True)
    ]


def settings(run: RunData) -> Settings:
    """Return a run's settings by dotted path, without those that do not make another experiment of it."""
    kept = {key: value for key, value in run.experiment.items() if key not in IGNORED}
    return {path: _text(value) for path, value in _leaves(kept, ())}


def shared_differences(found: Sequence[Variant]) -> list[str]:
    """Name the settings outside the method in which the compared variants differ, such as ``rounds: 10, 20``."""
    tables = [settings(one.runs[0]) for one in found]
    paths = dict.fromkeys(path for table in tables for path in table if not path.startswith(OPTION))
    lines = []
    for path in paths:
        values = list(dict.fromkeys(table.get(path, "not set") for table in tables))
        if len(values) > 1:
            lines.append(f"{short(path, 60)}: {', '.join(short(value) for value in values[:6])}")
    return lines


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 1 and 1.0 are the same setting
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, str(key)))
    else:
        yield ".".join(path), value


def _told_apart(runs: list[RunData]) -> list[list[RunData]]:
    """Split runs of equal settings by experiment name if a seed occurs twice among them."""
    if _twin(runs) is None:
        return [runs]
    by_name: dict[str, list[RunData]] = {}
    for run in runs:
        by_name.setdefault(run.summary.experiment, []).append(run)
    for held in by_name.values():
        twins = _twin(held)
        if twins is not None:
            first, second = twins
            raise UserError(
                f"{first.folder} and {second.folder} are both {first.summary.method!r} with seed "
                f"{first.summary.seed} and the same settings: compare only one of them"
            )
    return list(by_name.values())


def _twin(runs: Sequence[RunData]) -> tuple[RunData, RunData] | None:
    seen: dict[int, RunData] = {}
    for run in runs:
        if run.summary.seed in seen:
            return seen[run.summary.seed], run
        seen[run.summary.seed] = run
    return None


def _labels(parts: Sequence[Sequence[RunData]]) -> list[str]:
    methods = [held[0].summary.method for held in parts]
    tables = [settings(held[0]) for held in parts]
    labels = []
    for held, method, table in zip(parts, methods, tables, strict=True):
        rivals = [other for name, other in zip(methods, tables, strict=True) if name == method]
        differing = [path for path in table if any(other.get(path) != table[path] for other in rivals)]
        others = [path for path in differing if not path.startswith(OPTION) and not _usual(path, table, rivals)]
        mentioned = {*differing, *_chosen(METHODS, method, OPTION, table)}
        options = [path for path in table if path in mentioned and path.startswith(OPTION)]
        told = ",".join(f"{path.removeprefix(OPTION)}={table[path]}" for path in [*options, *others[:3]])
        named = method if len(rivals) == 1 else f"{method} ({held[0].summary.experiment})"
        labels.append(f"{method}[{told}]" if told else named)
    return _numbered(labels)


def _usual(path: str, table: Settings, rivals: Sequence[Settings]) -> bool:
    """Whether a path is an option of the selection that need not be told: at its default, where names differ."""
    if not path.startswith(SELECTION) or path == SELECTION_NAME:
        return False
    name = table.get(SELECTION_NAME, "")
    if all(other.get(SELECTION_NAME) == name for other in rivals):
        return False
    return name in SELECTORS and path not in _chosen(SELECTORS, name, SELECTION, table)


def _chosen(registry: Registry[Any], name: str, beginning: str, table: Settings) -> list[str]:
    """Return the paths of the options of what is registered that are not at their defaults; none of what is unknown."""
    if name not in registry:
        return []
    described = registry.options(name).model_json_schema()["properties"]
    defaults = {
        path: _text(value)
        for option, schema in described.items()
        if "default" in schema
        for path, value in _leaves(schema["default"], (beginning.removesuffix("."), option))
    }
    return [path for path in table if path.startswith(beginning) and table[path] != defaults.get(path)]


def _numbered(labels: Sequence[str]) -> list[str]:
    """Make equal labels different by counting them."""
    return [
        label if labels.count(label) == 1 else f"{label} #{1 + list(labels[:index]).count(label)}"
        for index, label in enumerate(labels)
    ]
