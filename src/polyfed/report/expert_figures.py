"""Which expert each client uses, and how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polyfed.model.expert_names import GENERAL
from polyfed.report.component_kinds import ARROW
from polyfed.report.entries import ClientResult
from polyfed.report.figures import group_legend
from polyfed.report.formats import label, plural
from polyfed.report.history import Weights
from polyfed.report.palette import Palette
from polyfed.report.plotting import Card, Chip, Plot, axis, plot
from polyfed.report.records import RunData

NAMED_CLIENTS = 40
"""Up to this many clients are named beside the map; of more, their modality groups are."""

MANY_CLIENTS = 200
MANY_TYPES = 60

Type = tuple[str, str]
"""Input and output scope of an expert."""


def expert_use_card(run: RunData, palette: Palette) -> Card | None:
    """Map how much every client uses every expert; None where the model mixes no experts or it was not recorded."""
    order = {name: index for index, name in enumerate(palette.colours)}
    used = {client.id: found for client in run.clients if (found := shares(run, client.id))}
    clients = sorted(
        (client for client in run.clients if client.id in used),
        key=lambda client: (order[palette.entry(client.group)], client.group, client.id),
    )
    if not clients:
        return None
    stride = -(-len(clients) // MANY_CLIENTS)
    types = sorted({kind for found in used.values() for kind in found}, key=_general_first)
    text = (
        "How much of what a client's heads see comes through each expert, from an input scope to an output scope, at "
        "the last evaluation: mean weight over its test samples and tasks, a row sums to 1. Empty: the client does not "
        "hold the expert."
    )
    notes = [f"Drawn: every {stride}th of {plural(len(clients), 'client')}."] if stride > 1 else []
    if len(types) > MANY_TYPES:
        notes.append(f"The first {MANY_TYPES} of {len(types):,} kinds of knowledge are drawn.")
    drawn = _map(clients[::stride], types[:MANY_TYPES], used, palette)
    legend = tuple(Chip(chip.label, chip.colour) for chip in group_legend(palette, overall=False))
    return Card("Experts", text, (drawn,), legend, " ".join(notes), wide=True)


def shares(run: RunData, client: int) -> dict[Type, float]:
    """Return the weight with which a client uses each type of expert: sum over modalities, mean over its tasks."""
    _, weights = run.history.expert_use.get(client, (0, {}))
    tasks = [found for modalities in weights.values() if (found := _summed(modalities))]
    kinds = dict.fromkeys(kind for found in tasks for kind in found)
    return {kind: sum(found.get(kind, 0.0) for found in tasks) / len(tasks) for kind in kinds}


def _summed(modalities: Mapping[str, Weights]) -> dict[Type, float]:
    found: dict[Type, float] = {}
    for weights in modalities.values():
        for first, held in weights.items():
            for second, weight in held.items():
                found[first, second] = found.get((first, second), 0.0) + weight
    return found


def _general_first(kind: Type) -> tuple[bool, str, bool, str]:
    first, second = kind
    return first != GENERAL, first, second != GENERAL, second


def _map(
    clients: Sequence[ClientResult], types: Sequence[Type], used: Mapping[int, Mapping[Type, float]], palette: Palette
) -> Plot:
    from plotly import graph_objects

    names = [label(client.name or f"client {client.id}", 20) for client in clients]
    named = [f"{label(first, 16)} {ARROW} {label(second, 16)}" for first, second in types]
    cells = [[used[client.id].get(kind) for kind in types] for client in clients]
    heat = graph_objects.Heatmap(
        x=list(range(len(types))),
        y=list(range(len(clients))),
        z=[[None if value is None else round(value, 4) for value in row] for row in cells],
        zmin=0,
        zmax=max((value for row in cells for value in row if value is not None), default=0) or 1,
        colorscale="Viridis",
        colorbar={"thickness": 10, "outlinewidth": 0, "nticks": 5, "title": {"text": "weight"}},
        xgap=1,
        ygap=1 if len(clients) <= NAMED_CLIENTS else 0,
        hoverongaps=False,
        customdata=[[f"{name}, {kind}" for kind in named] for name in names],
        hovertemplate="%{customdata}: %{z:.3f}<extra></extra>",
    )
    few = len(clients) <= NAMED_CLIENTS
    columns = {"tickvals": list(range(len(types))), "ticktext": named, "tickangle": -40}
    rows = _rows(clients, names, palette) if few else _groups(clients, palette)
    layout = {
        "xaxis": axis("", showgrid=False, **columns),
        "yaxis": axis("", autorange="reversed", showgrid=False, ticksuffix="  ", **rows),
    }
    return plot("", [heat], layout, height=160 + len(clients) * (18 if few else 5))


def _rows(clients: Sequence[ClientResult], names: Sequence[str], palette: Palette) -> dict[str, Any]:
    """Name every client, marked with the colour of its group."""
    texts = [
        f"{name} {_square(palette.colours[palette.entry(client.group)])}"
        for client, name in zip(clients, names, strict=True)
    ]
    return {"tickvals": list(range(len(clients))), "ticktext": texts}


def _groups(clients: Sequence[ClientResult], palette: Palette) -> dict[str, Any]:
    """Name every group in the middle of its clients."""
    places: dict[str, list[int]] = {}
    for place, client in enumerate(clients):
        places.setdefault(palette.entry(client.group), []).append(place)
    texts = [f"{label(group, 20)} {_square(palette.colours[group])}" for group in places]
    return {"tickvals": [held[len(held) // 2] for held in places.values()], "ticktext": texts}


def _square(colour: str) -> str:
    return f'<span style="color:{colour}">\N{BLACK SQUARE}</span>'
