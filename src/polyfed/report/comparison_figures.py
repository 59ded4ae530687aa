"""The plots that compare methods: curves with bands over seeds, bytes against the metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from polyfed.report.facts import MANY_TASKS
from polyfed.report.formats import label, lower_is_better, plain, scaled, short, size, unit
from polyfed.report.gains import LOCAL
from polyfed.report.history import Curve, EvaluationKey
from polyfed.report.palette import COLOURS, GREY
from polyfed.report.plotting import Card, Chip, Plot, axis, curve_trace, plot, rounds_axis
from polyfed.report.records import RunData
from polyfed.report.tables import Column, ComparisonTable, spread_of
from polyfed.report.variants import Variant

MANY_GROUPS = 8


def method_colours(found: Sequence[Variant]) -> dict[str, str]:
    """Give every variant a colour; local training is grey, as baselines are in all plots."""
    alone = [one.label for one in found if one.method == LOCAL]
    strangers = [one.label for one in found if [one.label] != alone]
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(strangers)}
    return {one.label: colours.get(one.label, GREY) for one in found}


def method_legend(colours: Mapping[str, str]) -> tuple[Chip, ...]:
    """Return the legend of the methods."""
    return tuple(Chip(short(name, 60), colour, name) for name, colour in colours.items())


def judged_columns(table: ComparisonTable) -> list[Column]:
    """Return the column of all clients for each of the first tasks."""
    return [column for column in table.columns if column.group is None][:MANY_TASKS]


# ------------------------------------------------------------------------------------------------ curves


def curve_cards(found: Sequence[Variant], table: ComparisonTable, colours: Mapping[str, str]) -> list[Card]:
    """Plot each task's metric over the rounds, one line per method, one tab per modality group."""
    cards = []
    for judged in judged_columns(table):
        columns = [column for column in table.columns if column[:2] == judged[:2]][: MANY_GROUPS + 1]
        plots = tuple(made for column in columns if (made := _curves(found, column, colours)))
        if plots:
            text = "Mean over clients, then over seeds; the band is one standard deviation over seeds."
            cards.append(Card(f"{short(judged.task)} over the rounds", text, plots, method_legend(colours)))
    return cards


def _curves(found: Sequence[Variant], column: Column, colours: Mapping[str, str]) -> Plot | None:
    from plotly import graph_objects

    traces: list[Any] = []
    for one in found:
        curves = [curve for run in one.runs if (curve := _curve(run, column)).rounds]
        if not curves:
            continue
        middle, low, high = _band(curves, column.metric)
        options = {"legendgroup": one.label, "line": {"color": colours[one.label], "width": 2}}
        if len(curves) > 1:
            outline = {
                "x": [*low.rounds, *reversed(high.rounds)],
                "y": [*low.values, *reversed(high.values)],
                "fillcolor": _faint(colours[one.label]),
            }
            band = graph_objects.Scatter(
                **outline, fill="toself", mode="lines", line={"width": 0}, legendgroup=one.label, hoverinfo="skip"
            )
            traces.append(band)
        traces.append(curve_trace(middle, name=label(one.label, 40), **options))
    if not traces:
        return None
    direction = ", lower is better" if lower_is_better(column.metric) else ""
    layout = {
        "xaxis": rounds_axis(one.runs[0].summary.rounds for one in found),
        "yaxis": axis(f"{label(column.metric)}{unit(column.metric)}{direction}"),
    }
    return plot(column.clients, traces, {**layout, "hovermode": "x unified"}, height=360)


def _curve(run: RunData, column: Column) -> Curve:
    """Return a run's curve on the test split, or on the split that was evaluated where there is no test."""
    task, metric, group = column
    splits = {key.split for key in run.history.evaluations if key[:2] == (task, metric)}
    split = "test" if "test" in splits or not splits else min(splits)
    if group is None:
        return run.history.metric(task, metric, split)
    key = EvaluationKey(task, metric, split, group)
    return run.history.metric(task, metric, split, lambda name: name == key.group)


def _band(curves: Sequence[Curve], metric: str) -> tuple[Curve, Curve, Curve]:
    """Return mean, mean − std and mean + std over the seeds that were evaluated in each round."""
    by_round: dict[int, list[float]] = {}
    for curve in curves:
        for number, value in zip(curve.rounds, curve.values, strict=True):
            by_round.setdefault(number, []).append(scaled(metric, value))
    rounds = tuple(sorted(by_round))
    rows = []
    for number in rounds:
        spread = spread_of(by_round[number])
        half = spread.std or 0.0
        rows.append((spread.mean, spread.mean - half, spread.mean + half))
    middle, low, high = (tuple(round(value, 4) for value in column) for column in zip(*rows, strict=True))
    return Curve(rounds, middle), Curve(rounds, low), Curve(rounds, high)


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.22)"


# ------------------------------------------------------------------------------------------------ cost


def cost_card(table: ComparisonTable, colours: Mapping[str, str]) -> Card | None:
    """Plot bytes against the metric: one point per method, one tab per task."""
    plots = tuple(_cost(table, column, colours) for column in judged_columns(table))
    text = (
        "All bytes of a run, both directions, against the metric at its end. Bars: one standard deviation over seeds."
    )
    return Card("Bytes against quality", text, plots, method_legend(colours)) if plots else None


def _cost(table: ComparisonTable, column: Column, colours: Mapping[str, str]) -> Plot:
    from plotly import graph_objects

    traces = []
    for row in (row for row in table.rows if column in row.cells):
        spread = row.cells[column]
        text = f"{label(row.method, 60)}: {spread.text(partial(plain, column.metric))} for {row.bytes.text(size)}"
        trace = graph_objects.Scatter(
            x=[row.bytes.mean],
            y=[scaled(column.metric, spread.mean)],
            error_y={"array": [scaled(column.metric, spread.std or 0.0)], "color": colours[row.method]},
            mode="markers",
            marker={"size": 13, "color": colours[row.method]},
            legendgroup=row.method,
            text=[text],
            hovertemplate="%{text}<extra></extra>",
        )
        traces.append(trace)
    layout = {
        "xaxis": axis("bytes, both directions", tickformat="~s", rangemode="tozero"),
        "yaxis": axis(f"{label(column.metric)}{unit(column.metric)}"),
    }
    return plot(short(column.task), traces, layout, height=360)
