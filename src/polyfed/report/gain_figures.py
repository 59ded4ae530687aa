"""Bars of what each client gains or loses against training alone, with who gains and who loses in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from polyfed.report.formats import gain_unit, label, scaled, short, shown_gain
from polyfed.report.gains import ClientGain, Kind, TaskGains, by_kind
from polyfed.report.palette import GREY
from polyfed.report.plotting import Card, Chip, Plot, Table, axis, plot

SIGNS = {1: ("gains", "#1B9E77"), -1: ("loses", "#D95F02"), 0: ("within the spread over seeds", GREY)}
"""Name and colour by ``ClientGain.sign``: two of ColorBrewer's Dark2, which colour-blind readers tell apart."""

MANY_BARS = 400
MANY_WHISKERS = 60
PANEL, MARGIN = 180, 60  # pixels


def gain_card(gains: Sequence[TaskGains], over: str) -> Card | None:
    """Plot every client's gain over ``over``: one tab per task, one row of bars per method; None without any gain."""
    by_task: dict[tuple[str, str], list[TaskGains]] = {}
    for one in gains:
        by_task.setdefault((one.task, one.metric), []).append(one)
    if not by_task:
        return None
    several = any(client.std is not None for one in gains for client in one.clients)
    named = [sign for sign in SIGNS if sign or several]
    counted = [SIGNS[sign][0] for sign in named[:2]] + [SIGNS[0][0] if several else "the same"]
    head = ("method", "task", "loses most", *counted, "median gain", "largest loss", "largest gain")
    text = f"Each bar is a client: its metric minus what it reaches with {over}; upwards is better (positive transfer)."
    if several:
        text += (
            " Mean over seeds, each against the same seed; whiskers are one standard deviation, and a client whose"
            " mean is smaller than that neither gains nor loses."
        )
    return Card(
        f"Gain of each client over {over}",
        text,
        tuple(_plot(found) for found in by_task.values()),
        tuple(Chip(*SIGNS[sign]) for sign in named),
        wide=True,
        table=Table(head, tuple(_row(one) for one in gains), texts=3),
    )


def _row(one: TaskGains) -> tuple[str, ...]:
    signs = [client.sign for client in one.clients]
    worst = min(one.clients, key=lambda client: client.mean)
    best = max(one.clients, key=lambda client: client.mean)
    middle = median(client.mean for client in one.clients)
    return (
        short(one.method, 60),
        short(one.task),
        short(worst.name) if worst.mean < 0 else "nobody",
        *(f"{signs.count(sign):,}" for sign in SIGNS),
        shown_gain(one.metric, middle),
        shown_gain(one.metric, min(worst.mean, 0.0)),
        shown_gain(one.metric, max(best.mean, 0.0)),
    )


def _plot(methods: Sequence[TaskGains]) -> Plot:
    """Draw one task: methods one below the other, on the same scale and with the clients in the same order."""
    from plotly import graph_objects

    metric = methods[0].metric
    places, ticks = _places(by_kind(methods))
    traces: list[Any] = []
    axes: dict[str, Any] = {}
    titles = []
    for number, one in enumerate(methods):
        row = "" if number == 0 else str(number + 1)
        drawn = [client for client in one.clients if client.id in places]
        traces.append(graph_objects.Bar(**_bars(drawn, metric, places), yaxis=f"y{row}"))
        top, bottom = 1 - number / len(methods), 1 - (number + 1) / len(methods)
        bound = {"matches": "y"} if number else {}
        domain = [bottom + 0.02, top - 24 / _height(methods)]
        axes[f"yaxis{row}"] = axis("", domain=domain, nticks=6, **bound) | {"zeroline": True}
        place = {"x": 0, "y": top, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "top"}
        titles.append({"text": f"<b>{label(one.method, 60)}</b>", "showarrow": False, **place})
    unit = f", {gain_unit(metric)}" if gain_unit(metric) else ""
    middle = list(axes)[len(methods) // 2]  # panels are lower than their titles would be long
    axes[middle]["title"]["text"] = f"gain ({label(metric, 16)}{unit})"
    lower = "y" if len(methods) == 1 else f"y{len(methods)}"
    xaxis = axis(
        "",
        tickvals=list(ticks.values()),
        ticktext=["<br>".join(label(part, 40) for part in kind) for kind in ticks],
        showgrid=False,
    )
    layout = {"xaxis": {**xaxis, "anchor": lower}, **axes, "annotations": titles, "bargap": 0.15}
    return plot(short(methods[0].task), traces, layout, height=_height(methods))


def _height(methods: Sequence[TaskGains]) -> int:
    return MARGIN + PANEL * len(methods) + (60 if len(methods) == 1 else 0)


def _places(kinds: Mapping[Kind, Sequence[int]]) -> tuple[dict[int, int], dict[Kind, float]]:
    """Return where each client stands, kinds with a gap between them, and the middle of each kind.

    Of very many clients every second, third ... is drawn.
    """
    stride = -(-sum(map(len, kinds.values())) // MANY_BARS)
    places: dict[int, int] = {}
    middles: dict[Kind, float] = {}
    start = 0
    for kind, clients in kinds.items():
        drawn = clients[::stride]
        places |= {client: start + index for index, client in enumerate(drawn)}
        middles[kind] = start + (len(drawn) - 1) / 2
        start += len(drawn) + max(1, len(clients) // 30)
    return places, middles


def _bars(clients: Sequence[ClientGain], metric: str, places: Mapping[int, int]) -> dict[str, Any]:
    spreads = [scaled(metric, client.std or 0.0) for client in clients]
    whiskers = any(spreads) and len(clients) <= MANY_WHISKERS
    return {
        "x": [places[client.id] for client in clients],
        "y": [round(scaled(metric, client.mean), 4) for client in clients],
        "marker": {"color": [SIGNS[client.sign][1] for client in clients]},
        "error_y": {"array": spreads, "color": GREY, "thickness": 1, "width": 2, "visible": whiskers},
        "text": [_hover(client, metric) for client in clients],
        "textposition": "none",
        "hovertemplate": "%{text}<extra></extra>",
    }


def _hover(client: ClientGain, metric: str) -> str:
    spread = f" ± {shown_gain(metric, client.std).removeprefix('+')}" if client.std is not None else ""
    return f"{label(client.name)} ({label(client.group)}): {shown_gain(metric, client.mean)}{spread}"
