"""The map of who took part in which round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polyfed.report.entries import ClientResult
from polyfed.report.figures import group_legend
from polyfed.report.formats import label, plural, whole
from polyfed.report.history import NO_REPLY
from polyfed.report.palette import GREY, Palette
from polyfed.report.participation_shares import share_map, used_modalities
from polyfed.report.plotting import Card, Chip, Plot, axis, plot, rounds_axis
from polyfed.report.records import RunData

EXACT_CLIENTS, EXACT_ROUNDS = 150, 300
"""Up to here the map shows every client in every round; beyond it shows shares."""


def participation_card(run: RunData, palette: Palette) -> Card | None:
    """Map who took part in which round, coloured by the modalities used; None where nobody was asked."""
    order = {name: index for index, name in enumerate(palette.colours)}
    clients = sorted(run.clients, key=lambda client: (order[palette.entry(client.group)], client.group, client.id))
    rounds = sorted({number for asked in run.history.active.values() for number in asked})
    if not clients or not rounds:
        return None
    if len(clients) <= EXACT_CLIENTS and len(rounds) <= EXACT_ROUNDS:
        text = "Each cell is one client in one round, in the colour of the modalities it used; empty: not asked."
        silent = (Chip("asked, no usable reply", GREY),) if _has_silent(run) else ()
        groups = group_legend(palette, overall=False, fleeting=True)
        legend = (*(Chip(chip.label, chip.colour) for chip in groups), *silent)
        return Card("Who took part", text, (_exact_map(run, clients, rounds, palette),), legend, wide=True)
    names = used_modalities(run, palette)
    several = len(names) > 1
    share = "the larger the share of a block of clients that took part in a span of rounds"
    text = f"The darker, {share}."
    if several:
        text = f"The stronger the colour, {share}; it is that of the modalities that most of them used."
    legend = tuple(Chip(whole(name), palette.colours[name]) for name in names) if several else ()
    note = (
        f"{plural(len(clients), 'client')} and {plural(len(rounds), 'round')} are too many for one cell each: "
        "clients of the same modality group are put together in blocks, rounds in spans."
    )
    return Card("Who took part", text, (share_map(run, clients, rounds, palette),), legend, note, wide=True)


def _has_silent(run: RunData) -> bool:
    return any(group == NO_REPLY for asked in run.history.active.values() for group in asked.values())


def _exact_map(run: RunData, clients: Sequence[ClientResult], rounds: Sequence[int], palette: Palette) -> Plot:
    from plotly import graph_objects

    names = ["asked, no usable reply", *palette.colours]
    code = {name: index for index, name in enumerate(names)}
    colours = [GREY, *palette.colours.values()]

    def cell(client: int, number: int) -> int | None:
        group = run.history.active.get(client, {}).get(number)
        if group is None:
            return None
        return 0 if group == NO_REPLY else code[palette.entry(group)]

    heat = graph_objects.Heatmap(
        x=rounds,
        y=list(range(len(clients))),
        z=[[cell(client.id, number) for number in rounds] for client in clients],
        colorscale=_steps(colours),
        zmin=-0.5,
        zmax=len(colours) - 0.5,
        showscale=False,
        xgap=1 if len(rounds) <= 100 else 0,
        ygap=1,
        hoverongaps=False,
        # the page writes each cell's text from these, which is far smaller than a text per cell
        meta={"cells": [label(name) for name in names], "rows": [_client_label(client) for client in clients]},
        hovertemplate="%{text}<extra></extra>",
    )
    rows = list(range(len(clients)))
    ticks = {"tickvals": rows, "ticktext": [_client_label(client) for client in clients]} if len(rows) <= 40 else {}
    hidden = {} if ticks else {"showticklabels": False}
    yaxis = axis("" if ticks else "clients", autorange="reversed", showgrid=False, ticksuffix="  ", **ticks, **hidden)
    layout = {"xaxis": {**rounds_axis(rounds), "rangemode": "normal", "showgrid": False}, "yaxis": yaxis}
    return plot("", [heat], layout, height=100 + len(rows) * (18 if ticks else 6))


def _client_label(client: ClientResult) -> str:
    return label(client.name or f"client {client.id}", 20)


def _steps(colours: Sequence[str]) -> list[list[Any]]:
    width = 1 / len(colours)
    return [[edge, colour] for i, colour in enumerate(colours) for edge in (i * width, (i + 1) * width)]
