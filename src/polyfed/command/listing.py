"""``polyfed list``: what is registered, with summaries and options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from polyfed.data.catalog import DATASETS
from polyfed.errors import unknown
from polyfed.method.catalog import METHODS
from polyfed.method.selections import SELECTORS
from polyfed.model.catalog import ENCODERS, FUSIONS, HEADS, MODELS
from polyfed.registry import Options, Registry
from polyfed.scenario.catalog import MODALITY_SETS, PARTITIONS, TASK_SETS

# What a kind of part is called, and its key in an experiment file.
KINDS: Mapping[str, tuple[tuple[str, Registry[Any]], ...]] = {
    "methods": (("method", METHODS),),
    "datasets": (("data", DATASETS),),
    "scenarios": (
        ("scenario.partition", PARTITIONS),
        ("scenario.modalities", MODALITY_SETS),
        ("scenario.tasks", TASK_SETS),
    ),
    "models": (("model", MODELS),),
    "encoders": (("model.encoders.MODALITY", ENCODERS),),
    "fusions": (("model.fusion", FUSIONS),),
    "heads": (("model.heads.TASK", HEADS),),
    "selections": (("select", SELECTORS),),
}


def show_kinds(console: Console) -> None:
    """Print the kinds of parts and the names of each."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for kind, registries in KINDS.items():
        names = [name for _, registry in registries for name in registry.names()]
        table.add_row(Text(kind, "bold"), Text(", ".join(dict.fromkeys(names))))
    console.print(table)
    console.print("polyfed list KIND shows what they do and their options, for instance: polyfed list methods")


def show_kind(console: Console, kind: str) -> None:
    """Print the parts of a kind with their options; raises UserError for an unknown kind."""
    if kind not in KINDS:
        raise unknown("kind of part", kind, KINDS)
    for number, (key, registry) in enumerate(KINDS[kind]):
        if number:
            console.print()
        console.print(Text(key, "bold"))
        table = Table.grid(padding=(0, 2, 0, 0))
        for name in registry.names():
            table.add_row(Text(f"  {name}", "cyan"), _part(registry, name))
        console.print(table)


def _part(registry: Registry[Any], name: str) -> Group:
    table = Table.grid(padding=(0, 2, 0, 0))
    for option, meaning in options(registry.options(name)):
        table.add_row(Text(option, "green"), Text(meaning, "dim"))
    summary = Text(registry.summary(name))
    return Group(summary, table) if table.row_count else Group(summary)


def options(model: type[Options]) -> Iterator[tuple[str, str]]:
    """Yield each option with its type, its default and what it means."""
    schema = model.model_json_schema()
    required = schema.get("required", [])
    for option, described in schema["properties"].items():
        if option == "name":
            continue
        default = "required" if option in required else f"default {written(described.get('default'))}"
        meaning = described.get("description", "")
        yield option, f"{kind_of(described, schema)}, {default}{': ' if meaning else ''}{meaning}"


def written(value: Any) -> str:
    """Write a default as it stands in a YAML file."""
    if isinstance(value, list):
        return f"[{', '.join(written(item) for item in value)}]"
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if _plain(value) else str(value)


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def kind_of(described: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Say in words what a JSON Schema allows: ``number > 0``, ``list of integer ≥ 1``, ``sgd | adam``."""
    if "anyOf" in described:
        return " or ".join(kind_of(each, schema) for each in described["anyOf"])
    if "$ref" in described:
        target = schema["$defs"][described["$ref"].rsplit("/", 1)[1]]
        return f"table of {', '.join(key for key in target['properties'])}"
    if "enum" in described or "const" in described:
        return " | ".join(map(str, described.get("enum", [described.get("const")])))
    if described.get("type") == "array":
        inner = described.get("items")
        return f"list of {kind_of(inner, schema)}" if inner else "list"
    if described.get("type") == "object":
        inner = described.get("additionalProperties")
        return f"table of {kind_of(inner, schema)}" if isinstance(inner, Mapping) else "table"
    return f"{described.get('type', 'value')}{_limits(described)}"


def _limits(described: Mapping[str, Any]) -> str:
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    found = [f"{sign} {described[key]:g}" for key, sign in signs.items() if key in described]
    return f" {' and '.join(found)}" if found else ""
