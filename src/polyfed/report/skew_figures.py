"""How far the clients' labels are from everybody's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean

from polyfed.report.formats import label, plural, short
from polyfed.report.plotting import Card, Plot, axis, plot
from polyfed.report.records import RunData

NAMED_CLIENTS = 40
"""Up to this many clients are named below the map."""

MANY_CLIENTS = 400
MANY_TASKS = 6

Distances = Mapping[int, Mapping[str, float]]
"""Client -> modality -> distance."""


def label_distance_card(run: RunData) -> Card | None:
    """Map the label distance of every client by modality, a tab per task; None where it was not recorded."""
    tasks = sorted({task for held in run.history.skews.values() for task in held})
    found = {task: distances for task in tasks if (distances := _distances(run, task))}
    if not found:
        return None
    several = len(found) > 1
    plots = tuple(_map(run, distances, short(task)) for task, distances in list(found.items())[:MANY_TASKS])
    text = (
        "How far the labels of a client's training samples are from those of all clients: 0, the same mix of classes; "
        "2, no class in common. Only samples that have the modality count; empty: the client has none. "
        "The nearest clients stand left."
    )
    stride = _stride(max(map(len, found.values())))
    notes = [f"Drawn: every {stride}th of {plural(len(run.history.skews), 'client')}."] if stride > 1 else []
    if len(found) > MANY_TASKS:
        notes.append(f"The first {MANY_TASKS} of {len(found)} tasks are drawn; the records hold all.")
    title = "Label distances" if several else f"Label distances, {short(next(iter(found)))}"
    return Card(title, text, plots, note=" ".join(notes), wide=True)


def _distances(run: RunData, task: str) -> Distances:
    """Return what is known of a task, nearest clients first."""
    known = {
        client: {name: value for name, value in tasks.get(task, {}).items() if math.isfinite(value)}
        for client, tasks in run.history.skews.items()
    }
    held = {client: values for client, values in known.items() if values}
    return {client: held[client] for client in sorted(held, key=lambda client: (mean(held[client].values()), client))}


def _stride(clients: int) -> int:
    return -(-clients // MANY_CLIENTS)


def _map(run: RunData, distances: Distances, tab: str) -> Plot:
    from plotly import graph_objects

    modalities = sorted({name for held in distances.values() for name in held})
    means = [mean(held[name] for held in distances.values() if name in held) for name in modalities]
    clients = list(distances)[:: _stride(len(distances))]
    names = _names(run, clients)
    columns = list(range(len(clients)))
    heat = graph_objects.Heatmap(
        x=columns,
        y=list(range(len(modalities))),
        z=[[_cell(distances[client].get(name)) for client in clients] for name in modalities],
        zmin=0,
        zmax=max(value for held in distances.values() for value in held.values()) or 1,
        colorscale="Viridis",
        colorbar={"thickness": 10, "outlinewidth": 0, "nticks": 5},
        xgap=1 if len(clients) <= MANY_CLIENTS // 4 else 0,
        ygap=2,
        hoverongaps=False,
        customdata=[[f"{name}, {label(modality)}" for name in names] for modality in modalities],
        hovertemplate="%{customdata}: %{z:.2f}<extra></extra>",
    )
    rows = [f"{label(name)}, mean {value:.2f}" for name, value in zip(modalities, means, strict=True)]
    named = len(clients) <= NAMED_CLIENTS
    ticks = {"tickvals": columns, "ticktext": names, "tickangle": -90} if named else {"showticklabels": False}
    yaxis = axis("", autorange="reversed", tickvals=list(range(len(rows))), ticktext=rows, ticksuffix="  ")
    layout = {
        "xaxis": axis("" if named else "clients", showgrid=False, **ticks),
        "yaxis": {**yaxis, "showgrid": False},
    }
    return plot(tab, [heat], layout, height=(140 if named else 80) + 34 * len(modalities))


def _cell(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _names(run: RunData, clients: Sequence[int]) -> list[str]:
    known = {client.id: client.name for client in run.clients}
    return [label(known.get(client, f"client {client}"), 20) for client in clients]
