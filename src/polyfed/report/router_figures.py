"""How much each client's router gives to the adapter of each task."""

from __future__ import annotations

from typing import NamedTuple

from polyfed.report.entries import ClientResult
from polyfed.report.formats import plural, short
from polyfed.report.heat import axes, by_task, heat, row_name
from polyfed.report.plotting import Card, Plot, Table, plot
from polyfed.report.records import RunData

MANY_ROWS = 60
MANY_COLUMNS = 20


class Used(NamedTuple):
    """One row: a client, the task it solves, and the mean weight of each task's adapter."""

    client: ClientResult
    task: str
    weights: dict[str, float]


def router_card(run: RunData) -> Card | None:
    """Map the routers' weights; None where no model has a router over adapters, or none was recorded."""
    found = used(run)
    if not found:
        return None
    names = list(dict.fromkeys([*run.summary.tasks, *(name for row in found for name in row.weights)]))
    tasks = [name for name in names if any(name in row.weights for row in found)][:MANY_COLUMNS]
    shown = found[:MANY_ROWS]
    text = (
        "How much each client's router gives to the adapter of each task, at the last evaluation: its mean probability "
        "over all image tokens of the client's test samples; a row sums to 1. The frame marks the client's own task."
    )
    note = f"The first {MANY_ROWS} of {plural(len(found), 'row')} are shown." if len(found) > MANY_ROWS else ""
    rows = tuple((row_name(row.client), row.task, *(_cell(row, task) for task in tasks)) for row in shown)
    table = Table(("client", "own task", *map(short, tasks)), rows, texts=2)
    return Card("Router", text, (_map(shown, tasks),), note=note, wide=True, table=table)


def used(run: RunData) -> list[Used]:
    """Return what the routers' weights were at the last evaluation, clients grouped by task."""
    return [
        Used(client, task, dict(weights))
        for client in by_task(run)
        for task, weights in run.history.router_use.get(client.id, (0, {}))[1].items()
        if weights
    ]


def _cell(row: Used, task: str) -> str:
    return f"{row.weights[task]:.3f}" if task in row.weights else ""


def _map(rows: list[Used], tasks: list[str]) -> Plot:
    words = [
        [f"{row_name(row.client)} gives {_cell(row, task) or 'nothing'} to the adapter of {task}" for task in tasks]
        for row in rows
    ]
    cells = [[row.weights.get(task) for task in tasks] for row in rows]
    trace = heat(cells, words, "weight", zmin=0, zmax=1, texttemplate="%{z:.2f}" if len(tasks) <= 8 else "")
    layout = axes([f"adapter of {short(task, 24)}" for task in tasks], [row_name(row.client) for row in rows])
    frames = [
        {
            "type": "rect",
            "x0": tasks.index(row.task) - 0.47,
            "x1": tasks.index(row.task) + 0.47,
            "y0": place - 0.44,
            "y1": place + 0.44,
            "line": {"color": "#ffffff", "width": 2},
        }
        for place, row in enumerate(rows)
        if row.task in tasks
    ]
    return plot("", [trace], {**layout, "shapes": frames}, height=110 + 26 * len(rows))
