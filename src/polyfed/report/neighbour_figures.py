"""Whose text adapters each client's is mixed with: distances between them, and what one takes of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from polyfed.method.protocol import MOST_LINKED
from polyfed.report.entries import ClientResult
from polyfed.report.formats import listed, short
from polyfed.report.heat import axes, by_task, heat, row_name
from polyfed.report.history import Links
from polyfed.report.plotting import Card, Plot, Table, plot
from polyfed.report.records import RunData

PART, DISTANCE = ".part", ".distance"
MANY_STEPS = 6
TOLD = 8
"""Neighbours of a client that the table tells, those it takes most of first."""


def neighbours_card(run: RunData) -> Card | None:
    """Map distances between text adapters and who is mixed with whom; None where no method told of it."""
    steps = [name.removesuffix(PART) for name in run.history.links if name.endswith(PART)][:MANY_STEPS]
    drawn = [(step, *_links(run, step)) for step in steps]
    plots: list[Plot] = []
    lines: list[tuple[str, ...]] = []
    for step, apart, parts in drawn:
        clients = [client for client in by_task(run) if client.id in parts][:MOST_LINKED]
        if clients:
            plots.append(_map(step, clients, apart, parts))
            lines += [_line(step, client, clients, apart, parts) for client in clients]
    if not plots:
        return None
    measured = any(apart for _, apart, _ in drawn)
    first = "Euclidean distances between the clients' text adapters" if measured else "Parts of other text adapters"
    text = (
        f"{first}, as the server found them after each step of the last round; clients are grouped by task. A row's "
        "dots are the clients whose adapters its own is mixed with."
    )
    table = Table(("client", "after", "mixed with, and how much of it (distance)", "own part"), tuple(lines), texts=3)
    return Card("Text adapters", text, tuple(plots), wide=True, table=table)


def _links(run: RunData, step: str) -> tuple[dict[tuple[int, int], float], Links]:
    """Return distances by pair, in both directions, and the parts."""
    _, parts = run.history.links[step + PART]
    apart: dict[tuple[int, int], float] = {}
    for one, held in run.history.links.get(step + DISTANCE, (0, {}))[1].items():
        for other, value in held.items():
            apart[one, other] = apart[other, one] = value
    return apart, parts


def _map(step: str, clients: Sequence[ClientResult], apart: Mapping[tuple[int, int], float], parts: Links) -> Plot:
    from plotly import graph_objects

    names = [row_name(client) for client in clients]
    ids = [client.id for client in clients]
    others: list[list[float | None]] = [
        [(apart.get((one, other)) if apart else parts[one].get(other)) if one != other else None for other in ids]
        for one in ids
    ]
    words = [[_words(one, other, apart, parts) for other in clients] for one in clients]
    dots = [
        (column, row)
        for row, one in enumerate(ids)
        for column, other in enumerate(ids)
        if one != other and parts[one].get(other)
    ]
    trace = heat(others, words, "distance" if apart else "part")
    marks = graph_objects.Scatter(
        x=[column for column, _ in dots],
        y=[row for _, row in dots],
        mode="markers",
        hoverinfo="skip",
        marker={"size": 7, "color": "#ffffff", "line": {"color": "#1c2430", "width": 1.5}},
    )
    layout = axes(names, names)
    size = 26 if len(clients) <= 20 else 14
    return plot(
        f"after {short(step)}",
        [trace, marks],
        {**layout, "shapes": _borders(clients)},
        height=220 + size * len(clients),
    )


def _borders(clients: Sequence[ClientResult]) -> list[dict[str, object]]:
    """Draw a line between the clients of one task and of the next."""
    places = [place + 0.5 for place, (one, other) in enumerate(pairwise(clients)) if one.tasks != other.tasks]
    ends = {"line": {"color": "#ffffff", "width": 3}, "type": "line"}
    edge = len(clients) - 0.5
    across = [{**ends, "x0": -0.5, "x1": edge, "y0": place, "y1": place} for place in places]
    return across + [{**ends, "y0": -0.5, "y1": edge, "x0": place, "x1": place} for place in places]


def _words(one: ClientResult, other: ClientResult, apart: Mapping[tuple[int, int], float], parts: Links) -> str:
    part = parts[one.id].get(other.id, 0.0)
    if one.id == other.id:
        return f"{row_name(one)}: {100 * part:.1f} % of its own"
    distance = apart.get((one.id, other.id))
    far = "" if distance is None else f", distance {distance:.4g}"
    taken = f"takes {100 * part:.1f} % of" if part else "takes nothing of"
    return f"{row_name(one)} {taken} {row_name(other)}{far}"


def _line(
    step: str,
    client: ClientResult,
    clients: Sequence[ClientResult],
    apart: Mapping[tuple[int, int], float],
    parts: Links,
) -> tuple[str, ...]:
    held = parts[client.id]
    taken = sorted(
        (other for other in clients if other.id != client.id and held.get(other.id)), key=lambda o: -held[o.id]
    )
    named = []
    for other in taken[:TOLD]:
        distance = apart.get((client.id, other.id))
        far = "" if distance is None else f" ({distance:.4g})"
        named.append(f"{short(other.name or f'client {other.id}', 20)} {100 * held[other.id]:.1f} %{far}")
    if len(taken) > TOLD:
        named.append(f"{len(taken) - TOLD} more")
    return row_name(client), short(step), listed(named) or "nobody", f"{100 * held.get(client.id, 0.0):.1f} %"
