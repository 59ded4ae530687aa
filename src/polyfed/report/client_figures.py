"""Where every client ends: plots and tables of the final metrics, beside the baseline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from polyfed.report.facts import MANY_TASKS, ClientScore, client_scores, gains_in_words, judged_tasks
from polyfed.report.figures import group_legend
from polyfed.report.formats import (
    label,
    lower_is_better,
    named,
    plain,
    plural,
    scaled,
    short,
    shown,
    shown_gain,
    unit,
    whole,
)
from polyfed.report.palette import GREY, Palette
from polyfed.report.plotting import Card, Chip, Plot, Table, axis, plot
from polyfed.report.records import RunData

DUMBBELLS = 40
"""Up to this many clients, each has a line of its own in the plot and in the table."""

MANY_POINTS = 2000
EXTREMES = 15
"""Of more clients than ``DUMBBELLS``, the table shows this many from either end."""


def client_cards(run: RunData, palette: Palette) -> list[Card]:
    """Plot where every client ends on every task, beside the baseline where there is one."""
    cards = []
    for task, metric in list(judged_tasks(run))[:MANY_TASKS]:
        scores = client_scores(run, task, metric)
        if scores:
            cards.append(_scores_card(run, task, scores, palette))
    if len(cards) % 2:  # the last of an odd number has the row to itself
        cards[-1] = replace(cards[-1], wide=True)
    return cards


def _scores_card(run: RunData, task: str, scores: list[ClientScore], palette: Palette) -> Card:
    metric = scores[0].metric
    method = short(run.baseline.method) if run.baseline else ""
    compared = any(math.isfinite(score.reference) for score in scores)
    legend = group_legend(palette, overall=False)
    text, note = gains_in_words(scores, method), ""
    table = _table(scores, metric, method if compared else "")
    if len(scores) <= DUMBBELLS:
        drawn = _dumbbells(scores, metric, method if compared else "", palette)
        legend += (Chip(f"{method} (open)", GREY),) if compared else ()
    else:
        if len(scores) > MANY_POINTS:
            stride = -(-len(scores) // MANY_POINTS)
            note = f"Drawn: every {stride}th of {plural(len(scores), 'client')}."
            scores = scores[::stride]
        drawn = _against(scores, metric, method, palette) if compared else _strips(scores, metric, palette)
        place = "below" if lower_is_better(metric) else "above"
        text += f" Clients {place} the line are better off than with {method}." if compared else ""
    return Card(f"{short(task)}, client by client", text.strip(), (drawn,), legend, note, table=table)


def _hover(score: ClientScore) -> str:
    reference = f", {shown(score.metric, score.reference)} with the baseline" if math.isfinite(score.reference) else ""
    return f"{label(score.name)} ({label(score.group)}): {shown(score.metric, score.value)}{reference}"


def _by_group(scores: Sequence[ClientScore], palette: Palette) -> dict[str, list[ClientScore]]:
    found: dict[str, list[ClientScore]] = {}
    for score in scores:
        found.setdefault(palette.entry(score.group), []).append(score)
    return {name: found[name] for name in palette.colours if name in found}


def _dots(scores: Sequence[ClientScore], **options: Any) -> Any:
    from plotly import graph_objects

    text = [_hover(score) for score in scores]
    return graph_objects.Scatter(mode="markers", text=text, hovertemplate="%{text}<extra></extra>", **options)


def _dumbbells(scores: Sequence[ClientScore], metric: str, baseline: str, palette: Palette) -> Plot:
    from plotly import graph_objects

    groups = _by_group(scores, palette)
    ordered = [score for members in groups.values() for score in sorted(members, key=lambda score: -score.value)]
    row = {score.id: index for index, score in enumerate(ordered)}
    traces = []
    if baseline:
        for better, dash in ((True, "solid"), (False, "dot")):
            pairs = [score for score in ordered if (score.gain >= 0) is better and math.isfinite(score.gain)]
            x = [end for s in pairs for end in (scaled(metric, s.reference), scaled(metric, s.value), None)]
            y = [end for s in pairs for end in (row[s.id], row[s.id], None)]
            line = {"color": GREY, "width": 2, "dash": dash}
            traces.append(graph_objects.Scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip"))
        known = [score for score in ordered if math.isfinite(score.reference)]
        marker = {"color": GREY, "symbol": "circle-open", "size": 9, "line": {"width": 2}}
        x = [scaled(metric, score.reference) for score in known]
        traces.append(_dots(known, x=x, y=[row[score.id] for score in known], marker=marker))
    for group, members in groups.items():
        marker = {"color": palette.colours[group], "size": 10}
        x, y = [scaled(metric, score.value) for score in members], [row[score.id] for score in members]
        traces.append(_dots(members, x=x, y=y, marker=marker, legendgroup=group))
    ticks = {"tickvals": list(range(len(ordered))), "ticktext": [label(score.name, 20) for score in ordered]}
    yaxis = axis("", autorange="reversed", ticksuffix="  ", **ticks)
    layout = {"xaxis": axis(f"{label(named(metric))}{unit(metric)}"), "yaxis": yaxis}
    return plot("", traces, layout, height=90 + 20 * len(ordered))


def _against(scores: Sequence[ClientScore], metric: str, baseline: str, palette: Palette) -> Plot:
    from plotly import graph_objects

    known = [score for score in scores if math.isfinite(score.gain)]
    ends = [scaled(metric, value) for score in known for value in (score.reference, score.value)]
    line = {"color": GREY, "dash": "longdash", "width": 1.5}
    corners = [min(ends), max(ends)]
    traces = [graph_objects.Scatter(x=corners, y=corners, mode="lines", line=line, hoverinfo="skip")]
    for group, members in _by_group(known, palette).items():
        x = [scaled(metric, score.reference) for score in members]
        y = [scaled(metric, score.value) for score in members]
        marker = {"color": palette.colours[group], "size": 7, "opacity": 0.75}
        traces.append(_dots(members, x=x, y=y, marker=marker, legendgroup=group))
    titled = f"{label(named(metric))}{unit(metric)}"
    layout = {"xaxis": axis(f"{titled} with {label(baseline)}"), "yaxis": axis(f"{titled} with this run")}
    return plot("", traces, layout, height=420)


def _strips(scores: Sequence[ClientScore], metric: str, palette: Palette) -> Plot:
    from plotly import graph_objects

    traces = [
        graph_objects.Box(
            y=[scaled(metric, score.value) for score in members],
            text=[_hover(score) for score in members],
            name=label(group, 20),
            legendgroup=group,
            boxpoints="all",
            jitter=0.6,
            pointpos=0,
            line={"color": palette.colours[group], "width": 1.5},
            marker={"size": 4, "opacity": 0.6},
            fillcolor="rgba(0,0,0,0)",
            hovertemplate="%{text}<extra></extra>",
        )
        for group, members in _by_group(scores, palette).items()
    ]
    return plot(
        "", traces, {"xaxis": axis("", type="category"), "yaxis": axis(f"{label(named(metric))}{unit(metric)}")}
    )


def _table(scores: Sequence[ClientScore], metric: str, baseline: str) -> Table:
    ordered = sorted(scores, key=_advantage, reverse=True)
    note = ""
    if len(ordered) > DUMBBELLS:
        ordered = [*ordered[:EXTREMES], *ordered[-EXTREMES:]]
        what = f"gain most and least over {baseline}" if baseline else "do best and worst"
        note = f"The {EXTREMES} clients each that {what}, of {len(scores):,}."
    head = ["client", "modalities", "examples", f"{named(metric)}{unit(metric)}"]
    rows = [[whole(s.name), whole(s.group), f"{s.examples:,}", plain(metric, s.value)] for s in ordered]
    if baseline:
        head += [baseline, "gain"]
        rows = [
            [*row, plain(metric, s.reference), shown_gain(metric, s.gain)] for row, s in zip(rows, ordered, strict=True)
        ]
    return Table(tuple(head), tuple(tuple(row) for row in rows), texts=2, note=note)


def _advantage(score: ClientScore) -> float:
    value = -score.value if lower_is_better(score.metric) else score.value
    advantage = score.gain if math.isfinite(score.reference) else value
    return advantage if math.isfinite(advantage) else -math.inf
