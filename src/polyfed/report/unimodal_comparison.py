"""What the methods' global models tell from each modality alone, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from polyfed.report.comparison_figures import method_legend
from polyfed.report.formats import label, plain, scaled, short, unit
from polyfed.report.history import Curve
from polyfed.report.palette import GREY
from polyfed.report.plotting import Card, Plot, Table, axis, plot
from polyfed.report.tables import Spread, spread_of
from polyfed.report.unimodal_figures import ACCURACY, FUSED, HEAD, NEAREST, judged_alone
from polyfed.report.variants import Variant

Bars = Mapping[str, Spread]
"""Modality (or all of them) -> accuracy over seeds."""


def unimodal_card(found: Sequence[Variant], colours: Mapping[str, str]) -> Card | None:
    """Plot the accuracy by each modality alone at the end, by method, one tab per task; None where not recorded."""
    judged: dict[str, set[str]] = {}
    for run in (run for one in found for run in one.runs):
        for task, held in judged_alone(run).items():
            judged.setdefault(task, set()).update(held)
    plots, rows = [], []
    for task, modalities in judged.items():
        names = sorted(modalities)
        near = {one.label: _bars(one, task, names, NEAREST) for one in found}
        head = {one.label: _bars(one, task, names, HEAD) for one in found}
        plots.append(_plot(task, [FUSED, *names], near, colours))
        rows += [_row(task, method, name, near, head) for method in near for name in names if name in near[method]]
    if not plots:
        return None
    text = (
        "Accuracy of the global model at the end: by the nearest prototype on one modality, and by its head on all of "
        "them where that was evaluated. Mean over seeds; bars: one standard deviation."
    )
    shown = {one.label: colours[one.label] for one in found if any(run.history.unimodal for run in one.runs)}
    heading = ("task", "method", "modality", "nearest prototype (%)", "head (%)")
    return Card("Modalities alone", text, tuple(plots), method_legend(shown), table=Table(heading, tuple(rows), 3))


def _bars(one: Variant, task: str, modalities: Sequence[str], rule: str) -> Bars:
    """Return a variant's accuracy at the end of its runs."""
    found = {name: _ends([run.history.alone(task, name, rule) for run in one.runs]) for name in modalities}
    whole = _ends([run.history.global_model(task, ACCURACY) for run in one.runs if run.history.unimodal])
    return {name: spread_of(values) for name, values in {FUSED: whole, **found}.items() if values}


def _ends(curves: Sequence[Curve]) -> list[float]:
    return [curve.values[-1] for curve in curves if len(curve)]


def _plot(task: str, names: Sequence[str], near: Mapping[str, Bars], colours: Mapping[str, str]) -> Plot:
    from plotly import graph_objects

    traces = []
    for method, bars in near.items():
        held = [name for name in names if name in bars]
        if not set(held) - {FUSED}:
            continue
        texts = [f"{label(method, 60)}, {label(name)}: {_text(bars[name])}" for name in held]
        trace = graph_objects.Bar(
            x=[label(name) for name in held],
            y=[round(scaled(ACCURACY, bars[name].mean), 4) for name in held],
            error_y={"array": [scaled(ACCURACY, bars[name].std or 0.0) for name in held], "color": GREY, "width": 3},
            legendgroup=method,
            marker={"color": colours[method]},
            text=texts,
            textposition="none",
            hovertemplate="%{text}<extra></extra>",
        )
        traces.append(trace)
    order = [label(name) for name in names if any(name in bars for bars in near.values())]
    layout: dict[str, Any] = {
        "xaxis": axis("", type="category", categoryorder="array", categoryarray=order),
        "yaxis": axis(f"{ACCURACY}{unit(ACCURACY)}", rangemode="tozero"),
        "barmode": "group",
        "bargap": 0.25,
    }
    return plot(short(task), traces, layout, height=360)


def _text(spread: Spread) -> str:
    return spread.text(partial(plain, ACCURACY))


def _row(task: str, method: str, modality: str, near: Mapping[str, Bars], head: Mapping[str, Bars]) -> tuple[str, ...]:
    figures = [_text(bars[method][modality]) if modality in bars[method] else "n/a" for bars in (near, head)]
    return (short(task), short(method, 60), short(modality), *figures)
