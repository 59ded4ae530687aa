"""How far the clients' updates agree under each method, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from polyfed.report.comparison_figures import method_legend
from polyfed.report.component_kinds import is_expert, kinds_of
from polyfed.report.formats import label, short
from polyfed.report.palette import GREY
from polyfed.report.plotting import Card, Plot, Table, axis, plot
from polyfed.report.records import RunData
from polyfed.report.tables import Spread, spread_of
from polyfed.report.update_figures import ALIKE, SAME_WAY, WHOLE_UPDATES, cosine_text, mean_curve
from polyfed.report.variants import Variant

MANY_KINDS = 12

Bars = Mapping[str, Spread]
"""Kind of component -> mean cosine over seeds."""


def updates_card(found: Sequence[Variant], colours: Mapping[str, str]) -> Card | None:
    """Plot the mean cosine between clients' updates by kind of component and method; None where not recorded."""
    bars = {one.label: _bars(one) for one in found}
    names = sorted({kind for held in bars.values() for kind in held})
    if not names:
        return None
    text = (
        "Mean cosine between two clients' updates of the same component, over the components of a kind and all rounds; "
        f"{ALIKE}. {WHOLE_UPDATES} {SAME_WAY} Mean over seeds; bars: one standard deviation."
    )
    shown = {name: colours[name] for name, held in bars.items() if held}
    note = f"The first {MANY_KINDS} of {len(names)} kinds are drawn." if len(names) > MANY_KINDS else ""
    drawn = _plot(names[:MANY_KINDS], {name: bars[name] for name in shown}, colours)
    return Card("Agreement of updates", text, (drawn,), method_legend(shown), note, wide=True, table=_table(found))


def _bars(one: Variant) -> Bars:
    values: dict[str, list[float]] = {}
    for run in one.runs:
        for kind, components in kinds_of(run, run.history.agreement).items():
            values.setdefault(kind, []).append(fmean(mean_curve(map(run.history.agreed, components)).values))
    return {kind: spread_of(held) for kind, held in values.items()}


def _plot(names: Sequence[str], bars: Mapping[str, Bars], colours: Mapping[str, str]) -> Plot:
    from plotly import graph_objects

    traces = []
    for method, spreads in bars.items():
        held = [name for name in names if name in spreads]
        trace = graph_objects.Bar(
            x=[label(name, 40) for name in held],
            y=[round(spreads[name].mean, 4) for name in held],
            error_y={"array": [spreads[name].std or 0.0 for name in held], "color": GREY, "width": 3},
            legendgroup=method,
            marker={"color": colours[method]},
            text=[f"{label(method, 60)}, {label(name, 40)}: {spreads[name].text(cosine_text)}" for name in held],
            textposition="none",
            hovertemplate="%{text}<extra></extra>",
        )
        traces.append(trace)
    layout: dict[str, Any] = {
        "xaxis": axis("", type="category", categoryorder="array", categoryarray=[label(name, 40) for name in names]),
        "yaxis": axis("mean cosine", zeroline=True, rangemode="tozero"),
        "barmode": "group",
        "bargap": 0.25,
    }
    return plot("", traces, layout, height=360)


def _table(found: Sequence[Variant]) -> Table:
    """Tell the mean over all experts, and over all other components, of each method."""
    rows = []
    for one in found:
        figures = [_mean(one.runs, chosen) for chosen in (is_expert, lambda name: not is_expert(name))]
        if any(figures):
            rows.append((short(one.label, 60), *(held.text(cosine_text) if held else "none" for held in figures)))
    return Table(("method", "experts", "other components"), tuple(rows))


def _mean(runs: Sequence[RunData], chosen: Callable[[str], bool]) -> Spread | None:
    curves = [mean_curve(map(run.history.agreed, filter(chosen, run.history.agreement))) for run in runs]
    means = [fmean(curve.values) for curve in curves if len(curve)]
    return spread_of(means) if means else None
