"""How many parameters a client's model has in each step, how many of them are trained, and how many travel."""

from __future__ import annotations

from collections.abc import Mapping

from polyfed.report.component_kinds import kinds_of
from polyfed.report.entries import StepSize
from polyfed.report.formats import count, listed, plural, short, whole
from polyfed.report.plotting import Card, Table
from polyfed.report.records import RunData

WAYS = ("present", "trained", "down", "up")
MANY_ROWS = 60

Line = tuple[str, ...]
Sums = dict[str, tuple[int, ...]]
"""By kind of component: parameters present, trained, received and sent."""


def sizes_card(run: RunData) -> Card | None:
    """Show the parameters of each step by kind of component; None where none were counted."""
    found: dict[tuple[str, tuple[tuple[str, tuple[int, ...]], ...]], list[StepSize]] = {}
    for size in run.summary.parameters.steps:
        found.setdefault((size.step, tuple(_sums(run, size).items())), []).append(size)
    if not found:
        return None
    alone = {step: sum(name == step for name, _ in found) == 1 for step, _ in found}
    rows: list[Line] = []
    for (step, sums), alike in found.items():
        who = "" if alone[step] else f", as client {alike[0].client}"
        rows += [(f"{whole(step)}{who}", kind, *map(count, numbers)) for kind, numbers in sums]
        totals = [sum(numbers[way] for _, numbers in sums) for way in range(len(WAYS))]
        rows.append((f"{whole(step)}{who}", "together", *map(count, totals)))
    text = (
        "Parameters of a client's model in each step of a round, by kind of component: in the model, trained, and as "
        "they travel to the client and back in one exchange. Each was counted at the first client of its kind."
    )
    head = ("step", "component", "in the model", "trained", "received", "sent")
    return Card(
        "Parameters", text, (), note=_note(run, len(rows)), wide=True, table=Table(head, tuple(rows[:MANY_ROWS]), 2)
    )


def _sums(run: RunData, size: StepSize) -> Sums:
    """Sum up the parameters by kind of component; what travels and is no component has its own name."""
    held: list[Mapping[str, int]] = [getattr(size, way) for way in WAYS]
    kinds = kinds_of(run, {name for counts in held for name in counts})
    return {
        short(kind): tuple(sum(counts.get(name, 0) for name in names) for counts in held)
        for kind, names in kinds.items()
    }


def _note(run: RunData, rows: int) -> str:
    frozen = run.summary.parameters.frozen
    parts = []
    if frozen:
        named = listed(f"{short(name.replace('_', ' '))} {count(held)}" for name, held in sorted(frozen.items()))
        parts.append(f"Besides, every model has parts that are never trained and never travel: {named} parameters.")
    if rows > MANY_ROWS:
        parts.append(f"The first {MANY_ROWS} of {plural(rows, 'line')} are shown.")
    return " ".join(parts)
