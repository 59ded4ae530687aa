"""``polyfed show``: who holds what in a federation, as data and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from polyfed.command.console import add_columns, plain_table
from polyfed.data.samples import Samples
from polyfed.data.schema import Task
from polyfed.engine.evaluate import SPLITS, samples_of
from polyfed.engine.loop import with_components
from polyfed.experiment.world import World
from polyfed.model.size import parameter_count
from polyfed.report.formats import plural, short, whole
from polyfed.scenario.federation import Client

MANY_CLIENTS = 40
FIRST_CLIENTS = 10
MANY_KINDS = 20
MANY_CLASSES = 16
PARTS = ("train", *SPLITS)

Description = dict[str, Any]


def describe(world: World) -> Description:
    """Return the federation as plain values: modalities, tasks, model, and every client."""
    federation = world.federation.members or world.federation
    if world.federation.members is not None:
        federation = with_components(federation, world.architecture)
    union = sorted({component for card in federation.cards.values() for component in card.components})
    full = parameter_count(world.architecture, union)

    @cache
    def size(components: tuple[str, ...]) -> int:
        return sum(full[component] for component in components)

    total = sum(full.values())
    clients = [
        _client(client, federation.tasks, size(client.card.components), total) for client in federation.clients()
    ]
    return {
        "experiment": world.experiment.name,
        "dataset": world.experiment.data.name,
        "method": world.experiment.method.name,
        "seed": world.experiment.seed,
        "modalities": {name: {"kind": m.kind, "shape": list(m.shape)} for name, m in federation.modalities.items()},
        "tasks": {name: _task(task) for name, task in federation.tasks.items()},
        "model": {"name": world.experiment.model.name, "components": full, "parameters": total},
        "clients": clients,
        "examples": _totals(clients, shared=world.experiment.scenario.validation_source == "shared"),
    }


def _totals(clients: Sequence[Description], *, shared: bool) -> dict[str, int]:
    """Count the examples of each part; validation examples that all clients share count once."""
    counts = {part: [client["examples"][part] for client in clients] for part in PARTS}
    return {part: max(held) if shared and part == "validation" else sum(held) for part, held in counts.items()}


def _task(task: Task) -> Description:
    described: Description = {"kind": task.kind}
    if task.kind == "classification":
        return {**described, "classes": task.classes, "labels": list(task.labels)}
    return {**described, "shape": list(task.shape)}


def _client(client: Client, tasks: Mapping[str, Task], parameters: int, total: int) -> Description:
    card = client.card
    train = client.train
    return {
        "id": card.id,
        "name": card.name,
        "modalities": list(card.modalities),
        "tasks": list(card.tasks),
        "examples": {part: len(train if part == "train" else samples_of(client, part)) for part in PARTS},
        "with_modality": {name: int(mask.sum()) for name, mask in sorted(train.present.items())},
        "labels": {
            name: label_counts(train, tasks[name]) for name in card.tasks if tasks[name].kind == "classification"
        },
        "components": list(card.components),
        "parameters": parameters,
        "share": parameters / total if total else 0.0,
    }


def label_counts(samples: Samples, task: Task) -> list[int]:
    """Count the samples of each class."""
    labels = samples.target(task.name)[samples.labelled[task.name]]
    counts: list[int] = torch.bincount(labels, minlength=task.classes).tolist()
    return counts


# ------------------------------------------------------------------------------------------------ printing


def show(console: Console, described: Description, *, everyone: bool = False) -> None:
    """Print a federation: its kinds of clients, its clients (the first few of many) and its totals."""
    clients = described["clients"]
    shown = clients if everyone or len(clients) <= MANY_CLIENTS else clients[:FIRST_CLIENTS]
    console.print(_heading(described))
    console.print(_components_table(described))
    console.print(_kinds_table(described))
    console.print(_clients_table(described, shown))
    if any("classes" in task for task in described["tasks"].values()):
        console.print("bars: training labels by class, · for none")
    if len(shown) < len(clients):
        console.print(f"the first {len(shown)} of {len(clients):,} clients; --all shows everyone")


def _heading(described: Description) -> str:
    modalities = ", ".join(
        f"{whole(name)} {_shape(held['shape'])}".rstrip() for name, held in described["modalities"].items()
    )
    tasks = ", ".join(f"{whole(name)} ({outputs(task)})" for name, task in described["tasks"].items())
    examples = ", ".join(f"{described['examples'][part]:,} {part}" for part in PARTS)
    model = described["model"]
    return (
        f"{described['experiment']}: {described['dataset']}, seed {described['seed']}\n"
        f"modalities: {modalities}\n"
        f"tasks:      {tasks}\n"
        f"clients:    {len(described['clients']):,}, with {examples} examples\n"
        f"model:      {model['name']}, {plural(len(model['components']), 'component')}, "
        f"{model['parameters']:,} parameters in all\n"
    )


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def outputs(task: Description) -> str:
    """Say what a task asks for: ``10 classes``, ``regression``, ``generation 1×28×28``."""
    return f"{task['classes']} classes" if "classes" in task else f"{task['kind']} {_shape(task['shape'])}".rstrip()


def _kinds_table(described: Description) -> Table:
    """Clients of one kind have the same modalities and tasks, so their models have the same components."""
    kinds: dict[tuple[str, str], list[Description]] = {}
    for client in described["clients"]:
        kinds.setdefault(("+".join(client["modalities"]), ", ".join(client["tasks"])), []).append(client)
    table = plain_table("Kinds of clients")
    add_columns(table, "modalities", "tasks")
    for heading in ("clients", "train", "parameters", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    add_columns(table, "components")
    for (modalities, tasks), held in list(kinds.items())[:MANY_KINDS]:
        examples = sum(client["examples"]["train"] for client in held)
        first = held[0]
        cells = [
            modalities,
            tasks,
            f"{len(held):,}",
            f"{examples:,}",
            f"{first['parameters']:,}",
            f"{first['share']:.0%}",
            ", ".join(first["components"]),
        ]
        table.add_row(*cells)
    if len(kinds) > MANY_KINDS:
        table.add_row(f"and {len(kinds) - MANY_KINDS} more kinds")
    return table


def _components_table(described: Description) -> Table:
    table = plain_table("Components of the model")
    add_columns(table, "component")
    add_columns(table, "clients", "parameters", "share", right=True)
    model = described["model"]
    for name, size in model["components"].items():
        holders = sum(name in client["components"] for client in described["clients"])
        table.add_row(name, f"{holders:,}", f"{size:,}", f"{size / max(model['parameters'], 1):.0%}")
    return table


def _clients_table(described: Description, clients: Sequence[Description]) -> Table:
    labelled = [name for name, task in described["tasks"].items() if "classes" in task]
    table = plain_table("Clients")
    add_columns(table, "id", right=True)
    named = any(client["name"] != f"client {client['id']}" for client in clients)
    if named:
        add_columns(table, "name")
    add_columns(table, "modalities", "tasks")
    add_columns(table, "train/val/test", right=True)
    for name in labelled:
        table.add_column(short(name), no_wrap=True)
    for client in clients:
        counts = "/".join(f"{client['examples'][part]}" for part in PARTS)
        bars = (histogram(client["labels"].get(name, ())) for name in labelled)
        names = [whole(client["name"])] if named else []
        table.add_row(
            str(client["id"]), *names, "+".join(client["modalities"]), ", ".join(client["tasks"]), counts, *bars
        )
    return table


def histogram(counts: Sequence[int]) -> str:
    """Draw one bar per class, or say how many classes occur if there are too many to draw."""
    if len(counts) > MANY_CLASSES:
        return f"{sum(count > 0 for count in counts)} of {len(counts)} classes"
    highest = max(counts, default=0)
    return "".join("▁▂▃▄▅▆▇█"[max(0, -(-8 * count // highest) - 1)] if count else "·" for count in counts)
