"""What the global model tells from each modality alone, and how far the modalities are apart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from polyfed.report.facts import MANY_TASKS
from polyfed.report.formats import label, scaled, short, unit
from polyfed.report.history import Curve
from polyfed.report.palette import COLOURS, Palette
from polyfed.report.plotting import INK, Card, Chip, Plot, axis, curve_trace, plot, rounds_axis
from polyfed.report.records import RunData

ACCURACY, NEAREST, HEAD = "accuracy", "ncm_train", "zeroed_head"
FUSED = "all modalities"
IMBALANCE = "imbalance"
"""The number by which a method may note the imbalance it works with."""


def judged_alone(run: RunData) -> dict[str, list[str]]:
    """Return the modalities that were judged alone, by task; the first tasks only."""
    found: dict[str, set[str]] = {}
    for task, modality, _ in run.history.unimodal:
        found.setdefault(task, set()).add(modality)
    return {task: sorted(found[task]) for task in sorted(found)[:MANY_TASKS]}


# ------------------------------------------------------------------------------------------------ accuracy


def alone_card(run: RunData, palette: Palette) -> Card | None:
    """Plot the accuracy by each modality alone against that of all, one tab per task; None where not recorded."""
    tasks = judged_alone(run)
    if not tasks:
        return None
    colours = modality_colours({name for held in tasks.values() for name in held}, palette)
    plots = tuple(_alone(run, task, held, colours) for task, held in tasks.items())
    text = (
        "Accuracy of the global model on all test samples that have the modality. Solid: class of the nearest "
        "prototype, the mean of the features over all clients' training samples. Dashed: the ordinary head, with the "
        "other modalities absent."
    )
    fused = any(len(run.history.global_model(task, ACCURACY)) for task in tasks)
    everything = (Chip(FUSED, "currentColor", FUSED),) if fused else ()
    legend = (*everything, *(Chip(short(name), colour, name) for name, colour in colours.items()))
    note = "" if fused else "With engine.server_test: true the accuracy with all modalities stands beside these."
    return Card("Modalities alone", text, plots, legend, note)


def modality_colours(modalities: set[str], palette: Palette) -> dict[str, str]:
    """Give modalities the colour of the clients that hold nothing else, and the others one that is left."""
    left = [colour for colour in COLOURS if colour not in palette.colours.values()] or list(COLOURS)
    others = [name for name in sorted(modalities) if name not in palette.colours]
    more = {name: left[place % len(left)] for place, name in enumerate(others)}
    return {name: palette.colours.get(name) or more[name] for name in sorted(modalities)}


def _alone(run: RunData, task: str, modalities: list[str], colours: Mapping[str, str]) -> Plot:
    traces = list(_lines(run, task, modalities, colours))
    fused = run.history.global_model(task, ACCURACY)
    if len(fused):
        traces.append(_line(fused, name=FUSED, legendgroup=FUSED, line={"width": 3}, meta=INK))
    layout = {
        "xaxis": rounds_axis([run.summary.rounds]),
        "yaxis": axis(f"{ACCURACY}{unit(ACCURACY)}", rangemode="tozero"),
        "hovermode": "x unified",
    }
    return plot(short(task), traces, layout)


def _lines(run: RunData, task: str, modalities: list[str], colours: Mapping[str, str]) -> Iterator[Any]:
    for modality in modalities:
        for rule, dash, words in ((NEAREST, "solid", "nearest prototype"), (HEAD, "dash", "head")):
            curve = run.history.alone(task, modality, rule)
            if len(curve):
                look = {} if dash == "solid" else {"mode": "lines"}
                line = {"color": colours[modality], "dash": dash, "width": 2}
                yield _line(curve, name=f"{label(modality)}, {words}", legendgroup=modality, line=line, **look)


def _line(curve: Curve, **options: Any) -> Any:
    values = tuple(scaled(ACCURACY, value) for value in curve.values)
    return curve_trace(Curve(curve.rounds, values), **options)


# ------------------------------------------------------------------------------------------------ imbalance


def imbalance_card(run: RunData) -> Card | None:
    """Plot the best modality's accuracy over the weakest's, and what the method noted; None where there is neither."""
    curves = {task: imbalance(run, task, held) for task, held in judged_alone(run).items()}
    drawn = {task: curve for task, curve in curves.items() if len(curve)}
    noted = run.history.round_note(IMBALANCE)
    chips = [Chip(short(task), colour, f"imbalance {task}") for task, colour in zip(drawn, COLOURS, strict=False)]
    traces = [
        curve_trace(drawn[task], name=label(task), legendgroup=chip.group, line={"color": chip.colour, "width": 2})
        for task, chip in zip(drawn, chips, strict=True)
    ]
    parts = []
    if drawn:
        parts.append(
            "Accuracy by the best modality alone over that by the weakest (nearest prototype); at 1 they are level."
        )
    if len(noted):
        parts.append("Dashed: the imbalance noted in training, as the clients report it.")
        group = f"imbalance {IMBALANCE}"
        chips.append(Chip("noted by the method (dashed)", "currentColor", group))
        traces.append(curve_trace(noted, name="noted", legendgroup=group, line={"dash": "dash", "width": 2}, meta=INK))
    if not traces:
        return None
    layout = {
        "xaxis": rounds_axis([run.summary.rounds]),
        "yaxis": axis("best over weakest"),
        "hovermode": "x unified",
    }
    return Card("Imbalance", " ".join(parts), (plot("", traces, layout),), tuple(chips))


def imbalance(run: RunData, task: str, modalities: list[str]) -> Curve:
    """Return the best modality's accuracy over the weakest's, in rounds where that is a number.

    Empty for a single modality, which has none to be held against.
    """
    curves = [run.history.alone(task, modality, NEAREST) for modality in modalities]
    known = [dict(zip(curve.rounds, curve.values, strict=True)) for curve in curves if len(curve)]
    if len(known) < 2:
        return Curve((), ())
    found = {}
    for number in sorted(set.intersection(*map(set, known))):
        values = [held[number] for held in known]
        if min(values) > 0 and all(map(math.isfinite, values)):
            found[number] = max(values) / min(values)
    return Curve(tuple(found), tuple(found.values()))
