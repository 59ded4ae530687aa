"""Maps of clients: rows of cells in colours, clients grouped by task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polyfed.report.entries import ClientResult
from polyfed.report.formats import label, short
from polyfed.report.plotting import axis
from polyfed.report.records import RunData

Cells = Sequence[Sequence[float | None]]


def by_task(run: RunData) -> list[ClientResult]:
    """Return the clients grouped by task: the tasks in their own order, ascending ids in each."""
    order = {task: place for place, task in enumerate(run.summary.tasks)}
    places = {
        client.id: min((order.get(task, len(order)) for task in client.tasks), default=0) for client in run.clients
    }
    return sorted(run.clients, key=lambda client: (places[client.id], client.id))


def row_name(client: ClientResult) -> str:
    """Name a client and its tasks."""
    name = client.name or f"client {client.id}"
    return f"{short(name, 20)} ({short(', '.join(client.tasks), 20)})" if client.tasks else short(name, 20)


def heat(cells: Cells, words: Sequence[Sequence[str]], title: str, **options: Any) -> Any:
    """Draw cells as colours; ``words`` are what the pointer shows of each, ``title`` what the colours mean."""
    from plotly import graph_objects

    rounded = [[None if value is None else round(value, 6) for value in row] for row in cells]
    return graph_objects.Heatmap(
        x=list(range(len(cells[0]))),
        y=list(range(len(cells))),
        z=rounded,
        colorscale="Viridis",
        colorbar={"thickness": 10, "outlinewidth": 0, "nticks": 5, "title": {"text": title}},
        xgap=1,
        ygap=1,
        hoverongaps=False,
        customdata=[[label(text, 200) for text in row] for row in words],
        hovertemplate="%{customdata}<extra></extra>",
        **options,
    )


def axes(columns: Sequence[str], rows: Sequence[str]) -> dict[str, Any]:
    """Describe the axes of a map, with the names of its columns and rows."""
    across = {"tickvals": list(range(len(columns))), "ticktext": [label(name, 44) for name in columns]}
    down = {"tickvals": list(range(len(rows))), "ticktext": [label(name, 44) for name in rows]}
    return {
        "xaxis": axis("", showgrid=False, tickangle=-40 if len(columns) > 3 else 0, **across),
        "yaxis": axis("", autorange="reversed", showgrid=False, ticksuffix="  ", **down),
    }
