"""Compare runs in a table: one row per method, mean and standard deviation over seeds, the best in bold."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, stdev
from typing import Any, Literal, NamedTuple

from polyfed.errors import UserError
from polyfed.report.entries import Statistic
from polyfed.report.formats import duration, lower_is_better, main_metric, named, plain, size, span, unit, whole
from polyfed.report.gains import TaskGains, gains_over_local
from polyfed.report.records import RunData
from polyfed.report.variants import Variant, variants


class Column(NamedTuple):
    """What a column shows: a metric of a task, of all clients (``group`` None) or of one modality group."""

    task: str
    metric: str
    group: str | None = None

    @property
    def heading(self) -> str:
        """The column's heading: ``digit accuracy (%), image``."""
        return f"{whole(self.task)} {named(self.metric)}{unit(self.metric)}, {self.clients}"

    @property
    def clients(self) -> str:
        """Whose mean the column shows."""
        return "all clients" if self.group is None else whole(self.group)


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n − 1) of the values of several seeds; ``std`` is None for one seed."""

    mean: float
    std: float | None
    seeds: int

    def text(self, write: Callable[[float], str]) -> str:
        """Write as ``mean ± std``, or the mean alone for one seed."""
        return write(self.mean) if self.std is None else f"{write(self.mean)} ± {write(self.std)}"


@dataclass(frozen=True)
class Row:
    """One method: its seeds and how many rounds each was trained, its cells (only where it has values), the columns
    it wins, and what it costs.
    """

    method: str
    seeds: tuple[int, ...]
    rounds: tuple[int, ...]
    cells: Mapping[Column, Spread]
    wins: frozenset[Column]
    bytes: Spread
    seconds: Spread


@dataclass(frozen=True)
class ComparisonTable:
    """Methods by columns. Bytes are those of both directions over the whole run, seconds are wall time.

    ``gains`` are those of each client over local training, where that is among the methods or the runs' baseline.
    """

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    gains: tuple[TaskGains, ...] = ()

    @property
    def caution(self) -> str:
        """Say that the runs were trained for different numbers of rounds; empty if they were not."""
        rounds = {number for row in self.rows for number in row.rounds}
        if len(rounds) < 2:
            return ""
        return f"The runs differ in length ({span(rounds)} rounds): part of the differences may come from that."

    @property
    def headings(self) -> tuple[str, ...]:
        """Headings of ``lines``."""
        return ("method", "seeds", "rounds", *(column.heading for column in self.columns), "bytes", "time")

    def lines(self, *, bold: Callable[[str], str] = str, escape: Callable[[str], str] = str) -> list[tuple[str, ...]]:
        """Return the cells as text, row by row; ``bold`` marks wins, ``escape`` guards names. Costs are means."""
        return [self._line(row, bold, escape) for row in self.rows]

    def _line(self, row: Row, bold: Callable[[str], str], escape: Callable[[str], str]) -> tuple[str, ...]:
        cells = []
        for column in self.columns:
            spread = row.cells.get(column)
            text = "" if spread is None else spread.text(partial(plain, column.metric))
            cells.append(bold(text) if column in row.wins else text)
        return (
            escape(row.method),
            str(len(row.seeds)),
            span(row.rounds),
            *cells,
            size(row.bytes.mean),
            duration(row.seconds.mean),
        )

    def to_markdown(self) -> str:
        """Write as a Markdown table; wins are bold. Where runs differ in rounds, a sentence below says so."""
        head = [_markdown(heading) for heading in self.headings]
        rule = ["---"] + ["---:"] * (len(head) - 1)
        body = self.lines(bold=lambda text: f"**{text}**", escape=_markdown)
        table = "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *body))
        return f"{table}\n{self.caution}\n" if self.caution else table

    def to_csv(self) -> str:
        """Write one line per method and column, in raw units; an empty ``modalities`` means all clients."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(
            (
                *("method", "seeds", "rounds", "task", "metric", "modalities"),
                *("mean", "std", "best", "bytes_mean", "seconds_mean"),
            )
        )
        for row in self.rows:
            for column, spread in row.cells.items():
                measured = (spread.mean, "" if spread.std is None else spread.std, int(column in row.wins))
                address = (column.task, column.metric, column.group or "")
                front = (row.method, spread.seeds, span(row.rounds))
                writer.writerow((*front, *address, *measured, row.bytes.mean, row.seconds.mean))
        return stream.getvalue()

    def to_json(self) -> str:
        """Write as JSON, in raw units; what is not a number is null."""
        content = {"rows": [_row_json(row) for row in self.rows], "gains": [one.entry() for one in self.gains]}
        return json.dumps(content, indent=1, allow_nan=False)


def _markdown(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*")


def _row_json(row: Row) -> dict[str, Any]:
    cells = [
        {**column._asdict(), **_spread_json(spread), "best": column in row.wins} for column, spread in row.cells.items()
    ]
    costs = {"bytes": _spread_json(row.bytes), "seconds": _spread_json(row.seconds)}
    return {"method": row.method, "seeds": list(row.seeds), "rounds": list(row.rounds), "cells": cells, **costs}


def _spread_json(spread: Spread) -> dict[str, float | int | None]:
    mean = spread.mean if math.isfinite(spread.mean) else None
    std = spread.std if spread.std is not None and math.isfinite(spread.std) else None
    return {"mean": mean, "std": std, "seeds": spread.seeds}


# ------------------------------------------------------------------------------------------------ building


def comparison_table(runs: Sequence[RunData], *, metrics: Literal["main", "all"] = "main") -> ComparisonTable:
    """Compare runs: seeds of one method (with the same settings) become one row.

    ``metrics`` "main" keeps the metric each task is judged by. Raises UserError without runs, or if two runs are the
    same method, settings and seed.
    """
    if not runs:
        raise UserError("there is no run to compare: name at least one run folder")
    found = variants(runs)
    columns = _columns(runs, metrics)
    cells = [{column: spread for column in columns if (spread := _spread(one, column))} for one in found]
    wins = _wins(columns, cells)
    rows = tuple(
        Row(
            one.label,
            tuple(run.summary.seed for run in one.runs),
            tuple(run.summary.rounds for run in one.runs),
            held,
            won,
            spread_of([float(run.summary.bytes.both) for run in one.runs]),
            spread_of([run.summary.wall_seconds for run in one.runs]),
        )
        for one, held, won in zip(found, cells, wins, strict=True)
    )
    judged = [(column.task, column.metric) for column in columns if column.group is None]
    return ComparisonTable(columns, rows, gains_over_local(found, judged))


def spread_of(values: Sequence[float]) -> Spread:
    """Return mean and sample standard deviation of at least one value."""
    if not all(math.isfinite(value) for value in values):
        return Spread(math.nan, None, len(values))
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def _columns(runs: Sequence[RunData], metrics: str) -> tuple[Column, ...]:
    """Columns in the order in which tasks and metrics first appear: all clients first, then the groups by name."""
    found: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        for task, held in run.summary.tasks.items():
            chosen = [main_metric(held)] if metrics == "main" else list(held)
            for metric in (name for name in chosen if name is not None):
                found.setdefault((task, metric), set()).update(held[metric].by_modalities)
    columns: list[Column] = []
    for (task, metric), groups in found.items():
        columns.append(Column(task, metric))
        named = sorted(groups, key=lambda name: (name.count("+"), name)) if len(groups) > 1 else []
        columns += [Column(task, metric, group) for group in named]
    return tuple(columns)


def _spread(variant: Variant, column: Column) -> Spread | None:
    statistics = [run.summary.tasks.get(column.task, {}).get(column.metric) for run in variant.runs]
    values = [value for one in statistics if one and (value := _value(one, column.group)) is not None]
    return spread_of(values) if values else None


def _value(statistic: Statistic, group: str | None) -> float | None:
    return statistic.mean if group is None else statistic.by_modalities.get(group)


def _wins(columns: Sequence[Column], cells: Sequence[Mapping[Column, Spread]]) -> list[frozenset[Column]]:
    """Say for each row which columns it wins; with one row there is nothing to win, ties are won by all."""
    best = {}
    for column in columns:
        means = [held[column].mean for held in cells if column in held and math.isfinite(held[column].mean)]
        if len(means) > 1:
            best[column] = min(means) if lower_is_better(column.metric) else max(means)
    return [
        frozenset(column for column, spread in held.items() if column in best and _tied(spread.mean, best[column]))
        for held in cells
    ]


def _tied(mean: float, best: float) -> bool:
    # means that differ only by rounding in their last bits are the same result
    return math.isclose(mean, best, rel_tol=1e-12, abs_tol=1e-15)
