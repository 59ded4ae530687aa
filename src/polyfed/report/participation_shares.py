"""The map of who took part in which round where clients or rounds are too many for a cell each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from polyfed.report.entries import ClientResult
from polyfed.report.formats import label
from polyfed.report.history import NO_REPLY
from polyfed.report.palette import COLOURS, Palette
from polyfed.report.plotting import Plot, axis, plot, rounds_axis
from polyfed.report.records import RunData

BLOCKS, SPANS = 80, 150
"""Most blocks of clients and spans of rounds that the map shows."""

ALONE, AMONG = 0.04, 0.25
"""Opacity of the smallest share, with one colour and with several, which pale ones would not tell apart."""

Shares = Mapping[str, float]
"""The modalities used -> the share of clients and rounds that used them."""


class Block(NamedTuple):
    """Some clients of one modality group, and what they used in each span of rounds."""

    name: str
    spans: tuple[Shares, ...]


def used_modalities(run: RunData, palette: Palette) -> list[str]:
    """Return the sets of modalities with which clients took part, as the palette shows and orders them."""
    groups = {group for asked in run.history.active.values() for group in asked.values()} - {NO_REPLY}
    shown = {palette.entry(group) for group in groups}
    return [name for name in palette.colours if name in shown]


def share_map(run: RunData, clients: Sequence[ClientResult], rounds: Sequence[int], palette: Palette) -> Plot:
    """Map the share of a block of clients that took part in a span of rounds, by the modalities most of them used.

    ``clients`` are sorted by their groups. With one set of modalities alone there is one colour.
    """
    per_span = -(-len(rounds) // SPANS)
    spans = [rounds[i : i + per_span] for i in range(0, len(rounds), per_span)]
    blocks = list(_blocks(run, clients, spans, palette.entry))
    names = used_modalities(run, palette)
    # one set of modalities needs no colour of its own, and nobody at all still is a map
    colours = {name: palette.colours[name] for name in names} if len(names) > 1 else {"": COLOURS[0]}
    strongest = max((sum(shares.values()) for block in blocks for shares in block.spans), default=0.0)
    heats = [
        _heat(blocks, [span[0] for span in spans], name, colour, strongest, several=len(names) > 1)
        for name, colour in colours.items()
    ]
    groups = [block.name.rsplit(":", maxsplit=1)[0] for block in blocks]
    starts = [index for index, group in enumerate(groups) if index == 0 or group != groups[index - 1]]
    ticks = {"tickvals": starts, "ticktext": [groups[index] for index in starts]}
    yaxis = axis("", autorange="reversed", showgrid=False, ticksuffix="  ", **ticks)
    layout = {"xaxis": {**rounds_axis(rounds), "rangemode": "normal", "showgrid": False}, "yaxis": yaxis}
    return plot("", heats, layout, height=100 + 5 * len(blocks))


def _blocks(
    run: RunData, clients: Sequence[ClientResult], spans: Sequence[Sequence[int]], shown: Callable[[str], str]
) -> Iterator[Block]:
    size = -(-len(clients) // BLOCKS)
    for group, members in groupby(clients, key=lambda client: client.group):
        chosen = list(members)
        for start in range(0, len(chosen), size):
            block = chosen[start : start + size]
            name = f"{label(group, 20)}: {block[0].id} to {block[-1].id}"
            yield Block(name, tuple(_shares(run, block, span, shown) for span in spans))


def _shares(
    run: RunData, clients: Sequence[ClientResult], rounds: Sequence[int], shown: Callable[[str], str]
) -> Shares:
    counts = Counter(
        shown(group)
        for client in clients
        for number in rounds
        if (group := run.history.active.get(client.id, {}).get(number, NO_REPLY)) != NO_REPLY
    )
    return {name: count / (len(clients) * len(rounds)) for name, count in counts.most_common()}


def _heat(
    blocks: Sequence[Block], starts: Sequence[int], name: str, colour: str, strongest: float, *, several: bool
) -> Any:
    """Draw the cells in which most used these modalities; with one set of them, all cells."""
    from plotly import graph_objects

    def drawn(shares: Shares) -> bool:
        return not several or next(iter(shares), None) == name

    def told(block: Block, shares: Shares) -> str:
        parts = [f"{label(held)} {share:.1%}" for held, share in shares.items()]
        return f"{block.name}<br>{', '.join(parts)}" if several else block.name

    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    faint = AMONG if several else ALONE
    shown = "" if several else ": %{z:.1%}"
    return graph_objects.Heatmap(
        x=starts,
        y=list(range(len(blocks))),
        z=[[round(sum(held.values()), 3) if drawn(held) else None for held in block.spans] for block in blocks],
        colorscale=[[0, f"rgba({red},{green},{blue},{faint})"], [1, f"rgb({red},{green},{blue})"]],
        zmin=0,
        zmax=strongest or 1,
        showscale=False,
        hoverongaps=False,
        customdata=[[told(block, held) if drawn(held) else "" for held in block.spans] for block in blocks],
        hovertemplate="clients %{customdata}<br>from round %{x}" + shown + "<extra></extra>",
    )
