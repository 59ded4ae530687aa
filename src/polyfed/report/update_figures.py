"""Whether the clients' updates of a component point the same way."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean

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


def agreement_card(run: RunData) -> Card | None:
    """Plot the mean cosine between clients' updates over the rounds; None where it was not recorded."""
    components = sorted(run.history.agreement)
    if not components:
        return None
    kinds = kinds_of(run, components) if len(components) > MANY_COMPONENTS else {name: [name] for name in components}
    drawn = dict(list(kinds.items())[:MANY_COMPONENTS])
    legend = tuple(
        Chip(short(kind, 40), colour, f"agreement {kind}") for kind, colour in zip(drawn, COLOURS, strict=False)
    )
    traces = [
        curve_trace(
            agreed(run, held), name=label(kind, 40), legendgroup=chip.group, line={"color": chip.colour, "width": 2}
        )
        for (kind, held), chip in zip(drawn.items(), legend, strict=True)
    ]
    layout = {
        "xaxis": rounds_axis([run.summary.rounds]),
        "yaxis": axis("mean cosine of two clients' updates", zeroline=True),
        "hovermode": "x unified",
    }
    text = f"Whether clients move a component the same way: mean over the pairs of clients that trained it. {SAME_WAY}"
    grouped = "Each line is the mean over the components of a kind." if len(components) > MANY_COMPONENTS else ""
    more = f"{plural(len(kinds) - len(drawn), 'more kind')}: see the records." if len(kinds) > len(drawn) else ""
    note = f"{grouped} {more}".strip()
    return Card("Agreement of updates", text, (plot("", traces, layout),), legend, note, table=_table(run, components))


def agreed(run: RunData, components: Iterable[str]) -> Curve:
    """Return the mean over these components of their cosines, round by round."""
    values: dict[int, list[float]] = {}
    for component in components:
        curve = run.history.agreed(component)
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
