"""Clients' updates of each component: whether they point the same way, and how far they go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from polyfed.report.component_kinds import kinds_of
from polyfed.report.formats import count, label, plural, short
from polyfed.report.history import Curve
from polyfed.report.palette import COLOURS
from polyfed.report.plotting import Card, Chip, Table, axis, curve_trace, plot, rounds_axis
from polyfed.report.records import RunData

MANY_COMPONENTS = len(COLOURS)
"""Up to this many components each has a line of its own; of more, their kinds have."""

MANY_ROWS = 60

SAME_WAY = "1: all clients pull the same way; 0: their directions have nothing to do with each other; below: apart."
WHOLE_UPDATES = "An update is all that local training changed, not a single gradient."
ALIKE = "each component counts alike, however many clients hold it"


def agreement_card(run: RunData) -> Card | None:
    """Plot the mean cosine between clients' updates over the rounds; None where it was not recorded."""
    components = sorted(run.history.agreement)
    if not components:
        return None
    text = (
        "Whether local training moves a component the same way at the clients: mean over the pairs of clients that "
        f"trained it. {WHOLE_UPDATES} {SAME_WAY}"
    )
    drawn = _lines(run, components, run.history.agreed, "agreement")
    yaxis = axis("mean cosine of two clients' updates", zeroline=True)
    return drawn.card(run, "Agreement of updates", text, yaxis, _table(run, components))


def divergence_card(run: RunData) -> Card | None:
    """Plot how far clients went from the model they were sent; None where that was not recorded."""
    components = sorted(run.history.divergence)
    if not components:
        return None
    text = "How far local training takes each component from the server's parameters."
    drawn = _lines(run, components, run.history.diverged, "divergence")
    return drawn.card(run, "Divergence", text, axis("‖client − server‖, mean over clients", rangemode="tozero"))


@dataclass(frozen=True)
class _Lines:
    """Curves of components or, where there are many, of their kinds, with what tells them apart."""

    traces: tuple[Any, ...]
    legend: tuple[Chip, ...]
    note: str

    def card(self, run: RunData, title: str, text: str, yaxis: Mapping[str, Any], table: Table | None = None) -> Card:
        layout = {"xaxis": rounds_axis([run.summary.rounds]), "yaxis": yaxis, "hovermode": "x unified"}
        return Card(title, text, (plot("", self.traces, layout),), self.legend, self.note, table=table)


def _lines(run: RunData, components: Sequence[str], curve_of: Callable[[str], Curve], what: str) -> _Lines:
    by_kind = len(components) > MANY_COMPONENTS
    kinds = kinds_of(run, components) if by_kind else {name: [name] for name in components}
    legend = tuple(
        Chip(short(kind, 40), colour, f"{what} {kind}") for kind, colour in zip(kinds, COLOURS, strict=False)
    )
    traces = tuple(
        curve_trace(
            mean_curve(map(curve_of, held)),
            name=label(kind, 40),
            legendgroup=chip.group,
            line={"color": chip.colour, "width": 2},
        )
        for (kind, held), chip in zip(kinds.items(), legend, strict=False)
    )
    left_out = len(kinds) - len(legend)
    grouped = f"Each line is the mean over the components of a kind; {ALIKE}." if by_kind else ""
    more = f"{plural(left_out, 'more kind')}: see the records." if left_out else ""
    return _Lines(traces, legend, f"{grouped} {more}".strip())


def mean_curve(curves: Iterable[Curve]) -> Curve:
    """Return the mean over the curves, round by round; a curve without a round does not count in it."""
    values: dict[int, list[float]] = {}
    for curve in curves:
        for number, value in zip(curve.rounds, curve.values, strict=True):
            values.setdefault(number, []).append(value)
    rounds = tuple(sorted(values))
    return Curve(rounds, tuple(fmean(values[number]) for number in rounds))


def _table(run: RunData, components: list[str]) -> Table:
    rows = []
    for component in components[:MANY_ROWS]:
        curve, clients = run.history.agreed(component), run.history.agreeing[component]
        figures = (fmean(curve.values), curve.values[-1])
        rows.append((short(component, 60), count(clients.value), *(cosine_text(value) for value in figures)))
    note = f"The first {MANY_ROWS} of {len(components):,} components." if len(components) > MANY_ROWS else ""
    head = ("component", "clients, mean over rounds", "cosine, mean over rounds", "cosine, last round")
    return Table(head, tuple(rows), note=note)


def cosine_text(value: float) -> str:
    """Write a cosine: ``0.413``, ``−0.020``."""
    return f"{value:.3f}".replace("-", "\N{MINUS SIGN}")
