"""What blending did: the weights of the heads over the rounds, and of the clients against what they fail to learn."""

from __future__ import annotations

import math
from statistics import median

from polyfed.report.correlation import correlation_within
from polyfed.report.formats import label, short
from polyfed.report.history import Curve
from polyfed.report.palette import COLOURS
from polyfed.report.plotting import Card, Chip, Plot, axis, curve_trace, plot, rounds_axis
from polyfed.report.records import RunData

BLEND, WEIGHT, GAP = "blend.", "weight", "gap.fused"
MANY_POINTS = 4000

PARTS = {
    "blend": ("weights", "weight of the head, mean over clients"),
    "ogr": ("overfitting to generalisation", "|O / G|, median over clients"),
    "held_out": ("held-out loss", "held-out loss after training, mean over clients"),
}


def heads_card(run: RunData) -> Card | None:
    """Plot what clients noted of their heads over the rounds; None where nothing was blended."""
    heads = [name.removeprefix(BLEND) for name in sorted(run.history.noted) if name.startswith(BLEND)]
    if not heads:
        return None
    colours = dict(zip(heads, COLOURS * (1 + len(heads) // len(COLOURS)), strict=False))
    plots = tuple(_heads(run, part, title, named, colours) for part, (title, named) in PARTS.items())
    text = "How much each head counted in the clients' training, and how it fared."
    return Card("Heads", text, plots, tuple(Chip(short(head), colour, head) for head, colour in colours.items()))


def _heads(run: RunData, part: str, title: str, named: str, colours: dict[str, str]) -> Plot:
    traces = []
    for head, colour in colours.items():
        name = f"{part}.{head}"
        curve = _median(run, name) if part == "ogr" else run.history.note(name)
        if curve.rounds:
            traces.append(curve_trace(curve, name=label(head), legendgroup=head, line={"color": colour, "width": 2}))
    layout = {
        "xaxis": rounds_axis([run.summary.rounds]),
        "yaxis": axis(named, rangemode="tozero", **({"type": "log"} if part == "ogr" else {})),
        "hovermode": "x unified",
    }
    return plot(title, traces, layout)


def _median(run: RunData, name: str) -> Curve:
    """Return the median over clients: ratios have no useful mean."""
    values: dict[int, list[float]] = {}
    for (number, _), held in run.history.client_notes.items():
        if name in held and math.isfinite(held[name]):
            values.setdefault(number, []).append(held[name])
    rounds = tuple(sorted(values))
    return Curve(rounds, tuple(median(values[number]) for number in rounds))


def clients_card(run: RunData) -> Card | None:
    """Plot the clients' weights against their generalisation error; None where the server did not weight them."""
    pairs = run.history.pairs(WEIGHT, GAP)
    if len(pairs) < 2:
        return None
    from plotly import graph_objects

    together = correlation_within((number, weight, gap) for number, _, weight, gap in pairs)
    stride = -(-len(pairs) // MANY_POINTS)
    drawn = pairs[::stride]
    trace = graph_objects.Scatter(
        x=[round(gap, 6) for *_, gap in drawn],
        y=[round(weight, 6) for *_, weight, _ in drawn],
        mode="markers",
        marker={
            "size": 6,
            "opacity": 0.7,
            "color": [number for number, *_ in drawn],
            "colorscale": "Viridis",
            "colorbar": {"title": {"text": "round"}, "thickness": 10, "outlinewidth": 0},
        },
        text=[f"round {number}, client {client}" for number, client, *_ in drawn],
        hovertemplate="%{text}: error %{x:.3g}, weight %{y:.3g}<extra></extra>",
    )
    layout = {"xaxis": axis("held-out loss − training loss"), "yaxis": axis("weight of the client", rangemode="tozero")}
    text = (
        "Each dot is a client in a round: its weight in the average against its generalisation error after training. "
        + ("" if together is None else f"Correlation within a round: {together:+.2f}, mean over the rounds.")
    )
    note = f"Every {stride}th dot is drawn." if stride > 1 else ""
    return Card("Clients' weights", text.strip(), (plot("", [trace], layout),), note=note)
