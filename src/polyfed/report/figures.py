"""The plots of one run over its rounds: metrics, training loss, bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import cycle
from typing import Any

from polyfed.report.facts import MANY_TASKS, judged_tasks
from polyfed.report.formats import label, lower_is_better, named, scaled, short, size, unit, whole
from polyfed.report.history import BESIDE, TEST, Curve
from polyfed.report.palette import COLOURS, GREY, Palette
from polyfed.report.plotting import (
    INK,
    MANY_ROUNDS,
    Card,
    Chip,
    Dash,
    Plot,
    Split,
    axis,
    curve_trace,
    plot,
    rounds_axis,
)
from polyfed.report.records import RunData

MANY_COMPONENTS = 15
MAIN_DASHES: Mapping[str, Dash] = {TEST: "solid", "validation": "dot"}
OTHER_DASHES: tuple[Dash, ...] = ("solid", "dash", "dot")
BASELINE = "the baseline"
UP, DOWN = "#4B5F82", "#A7B4CC"


def group_legend(palette: Palette, *, overall: bool = True, fleeting: bool = False) -> tuple[Chip, ...]:
    """Return the legend of the modality groups, with the mean over all clients where it is drawn.

    ``fleeting``: also of sets of modalities that clients only took part with at times.
    """
    shown = {name: colour for name, colour in palette.colours.items() if fleeting or name not in palette.fleeting}
    everyone = (Chip("all clients", "currentColor", "all"),) if overall and len(shown) > 1 else ()
    return (*everyone, *(Chip(whole(name), colour, name) for name, colour in shown.items()))


# ------------------------------------------------------------------------------------------------ metrics


def metric_cards(run: RunData, palette: Palette) -> list[Card]:
    """Plot every task's metrics over the rounds: one card per task, one tab per metric."""
    cards = []
    for task, main in list(judged_tasks(run))[:MANY_TASKS]:
        found = {key.metric: None for key in run.history.evaluations if key.task == task}
        plots = tuple(
            _metric_plot(run, task, metric, palette) for metric in sorted(found, key=lambda name: name != main)
        )
        splits = drawn_splits(key.split for key in run.history.evaluations if key.task == task)
        if plots:
            title, text = f"{short(task)} over the rounds", "Mean over the clients of each modality group."
            legend = group_legend(palette) + _baseline_chip(run, task, main)
            cards.append(Card(title, text, plots, legend, _rounds_note(run), splits if len(splits) > 1 else ()))
    return cards


def _rounds_note(run: RunData) -> str:
    if run.summary.rounds <= MANY_ROUNDS:
        return ""
    return f"The run has {run.summary.rounds:,} rounds; about {MANY_ROUNDS} evenly spaced ones are drawn."


def _metric_plot(run: RunData, task: str, metric: str, palette: Palette) -> Plot:
    splits = drawn_splits(key.split for key in run.history.evaluations if key[:2] == (task, metric))
    traces = [trace for split in splits for trace in _split_traces(run, task, metric, split, palette)]
    traces += _baseline_trace(run, task, metric)
    direction = ", lower is better" if lower_is_better(metric) else ""
    layout = {
        "xaxis": rounds_axis([run.summary.rounds]),
        "yaxis": axis(f"{label(named(metric))}{unit(metric)}{direction}"),
    }
    return plot(named(metric), traces, {**layout, "hovermode": "x unified"})


def drawn_splits(names: Iterable[str]) -> tuple[Split, ...]:
    """Say how splits are drawn, sorted: thin where the model is not the one that clients go by."""
    others = cycle(OTHER_DASHES)
    return tuple(
        Split(name, next(others), thin=True) if name.startswith(BESIDE) else Split(name, MAIN_DASHES.get(name, "dot"))
        for name in sorted(set(names))
    )


def _split_traces(run: RunData, task: str, metric: str, split: Split, palette: Palette) -> Iterator[Any]:
    width = 1 if split.thin else 2
    # markers only on the thick solid line: two sets of dots could not be told apart
    marked = (split.dash, split.thin) == ("solid", False)
    look = {"meta": {"split": split.name}, **({} if marked else {"mode": "lines"})}
    for group, colour in palette.colours.items():
        curve = run.history.metric(task, metric, split.name, palette.belongs(group))
        if curve.rounds:
            name = f"{label(group)}, {label(split.name)}"
            line = {"color": colour, "dash": split.dash, "width": width}
            yield _shown_curve(curve, metric, name=name, legendgroup=group, line=line, **look)
    if len(palette.colours) - len(palette.fleeting) > 1:
        curve = run.history.metric(task, metric, split.name)
        name, line = f"all clients, {label(split.name)}", {"dash": split.dash, "width": width + 1}
        yield _shown_curve(
            curve, metric, name=name, legendgroup="all", line=line, **{**look, "meta": {"split": split.name, **INK}}
        )


def _shown_curve(curve: Curve, metric: str, **options: Any) -> Any:
    values = tuple(scaled(metric, value) for value in curve.values)
    return curve_trace(Curve(curve.rounds, values), **options)


def _baseline_trace(run: RunData, task: str, metric: str) -> list[Any]:
    reference = run.baseline.tasks.get(task, {}).get(metric) if run.baseline else None
    rounds = [number for key, series in run.history.evaluations.items() if key.task == task for number in series]
    if run.baseline is None or reference is None or not rounds:
        return []
    ends = Curve((min(rounds), max(rounds)), (reference.mean, reference.mean))
    line = {"color": GREY, "dash": "longdash", "width": 2}
    name = f"{label(run.baseline.method)} at its end, all clients"
    return [_shown_curve(ends, metric, name=name, legendgroup=BASELINE, line=line, mode="lines")]


def _baseline_chip(run: RunData, task: str, metric: str) -> tuple[Chip, ...]:
    if run.baseline is None or metric not in run.baseline.tasks.get(task, {}):
        return ()
    return (Chip(f"{short(run.baseline.method)} (dashed)", GREY, BASELINE),)


def global_card(run: RunData) -> Card | None:
    """Plot the global model on the server's test samples; None where it was not evaluated."""
    plots = []
    for task, metric in sorted(run.history.server):
        curve = run.history.global_model(task, metric)
        yaxis = axis(f"{label(named(metric))}{unit(metric)}", rangemode="tozero")
        layout = {"xaxis": rounds_axis([run.summary.rounds]), "yaxis": yaxis}
        trace = _shown_curve(curve, metric, name=label(named(metric)), line={"color": COLOURS[0], "width": 2})
        plots.append(plot(f"{short(task)}: {named(metric)}", [trace], layout))
    if not plots:
        return None
    text = "The model of all components on all clients' test samples, with every modality the data has of them."
    return Card("Global model", text, tuple(plots))


# ------------------------------------------------------------------------------------------------ training loss


def training_card(run: RunData, palette: Palette) -> Card | None:
    """Plot the loss that clients logged while training; None where no step logged one."""
    steps = {key.step: None for key in run.history.training if key.number == "loss"}
    plots = []
    for step in list(steps)[:MANY_TASKS]:
        several = f"{short(step)}: " if len(steps) > 1 else ""
        plots.append(_loss_by_group(run, step, f"{several}by modality group", palette))
        parts = {key.number: None for key in run.history.training if key.step == step and key.number[:5] == "loss."}
        if len(parts) > 1:
            plots.append(_loss_by_part(run, step, f"{several}by part", sorted(parts)))
    if not plots:
        return None
    text = "Mean over the batches and clients of a round, weighted by examples."
    return Card("Training loss", text, tuple(plots), group_legend(palette), _rounds_note(run))


def _loss_by_group(run: RunData, step: str, tab: str, palette: Palette) -> Plot:
    traces = []
    for group, colour in palette.colours.items():
        curve = run.history.trained(step, "loss", palette.belongs(group))
        if curve.rounds:
            line = {"color": colour, "width": 2}
            traces.append(curve_trace(curve, name=label(group), legendgroup=group, line=line))
    if len(palette.colours) - len(palette.fleeting) > 1:
        curve = run.history.trained(step, "loss")
        traces.append(curve_trace(curve, name="all clients", legendgroup="all", line={"width": 3}, meta=INK))
    return plot(
        tab,
        traces,
        {
            "xaxis": rounds_axis([run.summary.rounds]),
            "yaxis": axis("training loss", rangemode="tozero"),
            "hovermode": "x unified",
        },
    )


def _loss_by_part(run: RunData, step: str, tab: str, parts: list[str]) -> Plot:
    traces = [
        curve_trace(
            run.history.trained(step, part),
            name=label(part),
            line={"color": colour, "width": 2},
            showlegend=True,
        )
        for part, colour in zip(parts, COLOURS, strict=False)
    ]
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    layout = {
        "xaxis": rounds_axis([run.summary.rounds]),
        "yaxis": axis("part of the loss", rangemode="tozero"),
        "hovermode": "x unified",
    }
    return plot(tab, traces, {**layout, "showlegend": True, "legend": legend})


# ------------------------------------------------------------------------------------------------ bytes


def bytes_card(run: RunData) -> Card | None:
    """Plot what travelled, by component and over the rounds; None where nothing was counted."""
    plots = tuple(part for part in (_bytes_by_component(run), _bytes_over_rounds(run)) if part)
    if not plots:
        return None
    legend = (Chip("up: clients to server", UP), Chip("down: server to clients", DOWN))
    text = "Bytes as they travel. An envelope holds the names and headers around the tensors."
    return Card("What travelled", text, plots, legend)


def _bytes_by_component(run: RunData) -> Plot | None:
    from plotly import graph_objects

    up, down = run.history.up, run.history.down
    names = sorted({*up, *down}, key=lambda name: -(up.get(name, 0) + down.get(name, 0)))
    if not names:
        return None
    kept, rest = names[:MANY_COMPONENTS], names[MANY_COMPONENTS:]
    labels = [label(name) for name in kept] + ([f"{len(rest):,} smaller ones"] if rest else [])
    traces = []
    for name, counts, colour in (("down", down, DOWN), ("up", up, UP)):
        sizes = [counts.get(part, 0) for part in kept] + ([sum(counts.get(part, 0) for part in rest)] if rest else [])
        texts = [size(value) for value in sizes]
        hover = "%{y}, " + name + ": %{text}<extra></extra>"
        bar = graph_objects.Bar(
            x=sizes, y=labels, text=texts, textposition="none", orientation="h", name=name, hovertemplate=hover
        )
        bar.marker.color = colour
        traces.append(bar)
    layout = {
        "xaxis": axis("bytes", tickformat="~s", rangemode="tozero"),
        "yaxis": axis("", type="category", autorange="reversed", ticksuffix="  "),
        "barmode": "group",
        "bargap": 0.3,
    }
    return plot("by component", traces, layout, height=110 + 34 * len(labels))


def _bytes_over_rounds(run: RunData) -> Plot | None:
    rounds = tuple(sorted(run.history.traffic))
    if not rounds:
        return None
    traces = []
    for name, colour in (("down", DOWN), ("up", UP)):
        total, values = 0, []
        for number in rounds:
            total += getattr(run.history.traffic[number], name)
            values.append(float(total))
        line = {"color": colour, "width": 2}
        traces.append(curve_trace(Curve(rounds, tuple(values)), name=name, line=line, hovertemplate="%{y:.3s}B"))
    layout = {
        "xaxis": rounds_axis([run.summary.rounds]),
        "yaxis": axis("bytes so far", tickformat="~s", rangemode="tozero"),
    }
    return plot("over the rounds", traces, {**layout, "hovermode": "x unified"})
