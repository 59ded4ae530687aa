"""How many rounds methods take: to their own plateau, and to what the best of them reaches nearly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from polyfed.report.comparison_figures import judged_columns, method_legend
from polyfed.report.convergence import PLATEAU, WINDOW, convergence_rounds, rounds_to, smoothed
from polyfed.report.formats import label, lower_is_better, plain, short, unit
from polyfed.report.history import Curve
from polyfed.report.plotting import Card, Plot, Table, axis, plot
from polyfed.report.records import RunData
from polyfed.report.tables import Column, ComparisonTable
from polyfed.report.variants import Variant

NEAR = 0.95
"""Share of the best method's plateau that the others are timed to."""

Curves = Mapping[str, list[Curve]]
"""By method, a curve per seed."""


def rounds_card(found: Sequence[Variant], table: ComparisonTable, colours: Mapping[str, str]) -> Card | None:
    """Plot the rounds each method takes; None without a metric of which more is better, measured in several rounds."""
    plots, rows, note = [], [], ""
    for column in judged_columns(table):
        curves = {one.label: [curve_of(run, column) for run in one.runs] for one in found}
        curves = {name: held for name, held in curves.items() if all(len(curve) > 1 for curve in held)}
        if lower_is_better(column.metric) or not curves:
            continue
        goal = NEAR * max(fmean(max(smoothed(curve).values) for curve in held) for held in curves.values())
        plots.append(_bars(column, curves, colours))
        rows += [_row(column, name, held, goal) for name, held in curves.items()]
        if any(run.history.server for one in found for run in one.runs):
            note = "Of the global model on all test samples, where that was evaluated."
    if not plots:
        return None
    text = (
        f"Rounds until the mean of the last {WINDOW} evaluations reaches {PLATEAU:.0%} of its own maximum, mean over "
        f"seeds. The table also has the rounds to {NEAR:.0%} of the best method's plateau."
    )
    head = ("task", "method", "rounds", f"rounds to {NEAR:.0%} of the best", "plateau")
    return Card(
        "Rounds to convergence",
        text,
        tuple(plots),
        method_legend(colours),
        note,
        table=Table(head, tuple(rows), texts=2),
    )


def curve_of(run: RunData, column: Column) -> Curve:
    """Return a run's metric over the rounds: of the global model if it was evaluated, else the mean over clients."""
    curve = run.history.global_model(column.task, column.metric)
    if not len(curve):
        curve = run.history.metric(column.task, column.metric, "test")
    trained = [(number, value) for number, value in zip(curve.rounds, curve.values, strict=True) if number > 0]
    return Curve(tuple(number for number, _ in trained), tuple(value for _, value in trained))


def _bars(column: Column, curves: Curves, colours: Mapping[str, str]) -> Plot:
    from plotly import graph_objects

    traces = [
        graph_objects.Bar(
            x=[fmean(convergence_rounds(curve) or 0 for curve in held)],
            y=[label(name, 40)],
            orientation="h",
            marker={"color": colours[name]},
            legendgroup=name,
            hovertemplate="%{x:.1f} rounds<extra></extra>",
        )
        for name, held in curves.items()
    ]
    layout = {"xaxis": axis("rounds", rangemode="tozero"), "yaxis": axis("", autorange="reversed", ticksuffix="  ")}
    return plot(short(column.task), traces, layout, height=90 + 30 * len(traces))


def _row(column: Column, name: str, held: Sequence[Curve], goal: float) -> tuple[str, ...]:
    reached = [rounds_to(curve, goal) for curve in held]
    times = [number for number in reached if number is not None]
    return (
        short(column.task),
        short(name, 60),
        f"{fmean(convergence_rounds(curve) or 0 for curve in held):.1f}",
        f"{fmean(times):.1f}" if len(times) == len(held) else "not reached",
        plain(column.metric, fmean(max(smoothed(curve).values) for curve in held)) + unit(column.metric),
    )
