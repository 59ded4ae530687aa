"""What a run or a comparison prints at its end."""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from polyfed.command.console import add_columns, fault, plain_table
from polyfed.errors import PolyfedError
from polyfed.experiment.comparing import Comparison
from polyfed.report.facts import client_scores, gains_in_words, judged_tasks
from polyfed.report.formats import duration, gain, plain, plural, shown, shown_gain, size, span, unit, whole
from polyfed.report.records import RunData, load_run
from polyfed.report.tables import Column, ComparisonTable, Row

MOST_GROUPS = 6
"""Client groups beyond this many get no column of their own in a terminal."""


def show_run(console: Console, folder: Path) -> None:
    """Print the result of a finished run."""
    run = load_run(folder)
    summary = run.summary
    console.print()
    console.print(
        f"{summary.experiment}: {summary.method}, seed {summary.seed}, {plural(summary.rounds, 'round')}, "
        f"{plural(len(summary.clients), 'client')}"
    )
    if summary.stopped:
        console.print(f"stopped early: {summary.stopped}")
    if summary.tasks:
        console.print(run_table(run))
        console.print("test metrics, mean over the clients")
    for line in _gains(run):
        console.print(line)
    if summary.refused:
        console.print(f"refused replies: {len(summary.refused):,}; the report says which and why")
    console.print(f"sent: {size(summary.bytes.up)} up, {size(summary.bytes.down)} down", end="; ")
    name, digest = summary.told_digest
    console.print(f"time: {duration(summary.wall_seconds)}; {name}: {digest[:12]}")
    console.print(f"report: {folder / 'report.html'}", soft_wrap=True)


def run_table(run: RunData) -> Table:
    """Return test metrics by task and modality group, beside the baseline's where there is one."""
    table = plain_table()
    add_columns(table, "task", "clients")
    add_columns(table, "number", whole(run.summary.method), right=True)
    if run.baseline:
        add_columns(table, whole(run.baseline.method), "gain", right=True)
    for task, metric in judged_tasks(run):
        for row in _run_rows(run, task, metric):
            table.add_row(*row)
        table.add_section()
    return table


def _run_rows(run: RunData, task: str, metric: str) -> Iterator[list[str | Text]]:
    statistic = run.summary.tasks[task][metric]
    reference = run.baseline.tasks.get(task, {}).get(metric) if run.baseline else None
    scores = client_scores(run, task, metric)
    groups: list[str | None] = [None, *(statistic.by_modalities if len(statistic.by_modalities) > 1 else ())]
    for group in groups:
        value = statistic.mean if group is None else statistic.by_modalities[group]
        number = sum(group in (None, score.group) for score in scores)
        heading = f"{whole(task)} {metric}" if group is None else ""
        row: list[str | Text] = [heading, whole(group or "all"), str(number), shown(metric, value)]
        if run.baseline:
            other = math.nan
            if reference is not None:
                other = reference.mean if group is None else reference.by_modalities.get(group, math.nan)
            change = gain(metric, value, other)
            style = "green" if change > 0 else "red" if change < 0 else ""
            row += [shown(metric, other), Text(shown_gain(metric, change), style)]
        yield row


def _gains(run: RunData) -> Iterator[str]:
    if not run.baseline:
        return
    for task, metric in judged_tasks(run):
        words = gains_in_words(client_scores(run, task, metric), run.baseline.method)
        if words:
            yield f"{whole(task)}: {words}"


# ------------------------------------------------------------------------------------------------ comparisons


def show_comparison(console: Console, comparison: Comparison) -> None:
    """Print the tables of a comparison, and what failed."""
    if comparison.table is not None:
        console.print()
        for table in comparison_tables(comparison.table):
            console.print(table)
        console.print("test metrics, mean over clients; ± standard deviation over seeds; best in bold")
        if comparison.table.caution:
            console.print(comparison.table.caution)
        console.print(f"written: comparison.html, .md, .csv and .json in {comparison.folder}", soft_wrap=True)


def failures(comparison: Comparison, *, traced: bool) -> Iterator[str]:
    """Yield one message per failed run; a bug has its traceback before it, any other error if ``traced``."""
    for failure in comparison.failures:
        known = isinstance(failure.error, PolyfedError)
        if traced or not known:
            yield "".join(traceback.format_exception(failure.error)).rstrip()
        told = str(failure.error) if known else fault(failure.error)
        yield f"{failure.planned.contender.label}, seed {failure.planned.seed} failed: {told}"


def comparison_tables(table: ComparisonTable) -> Iterator[Table]:
    """Yield one table per task and metric, methods by client groups, and one of what the methods cost."""
    kinds = dict.fromkeys((column.task, column.metric) for column in table.columns)
    for task, metric in kinds:
        columns = [column for column in table.columns if (column.task, column.metric) == (task, metric)]
        yield _task_table(table.rows, f"{whole(task)} {whole(metric)}{unit(metric)}", columns)
    costs = plain_table("cost, mean over seeds")
    add_columns(costs, "method")
    add_columns(costs, "seeds", "rounds", "sent", "time", right=True)
    for row in table.rows:
        costs.add_row(
            row.method, str(len(row.seeds)), span(row.rounds), size(row.bytes.mean), duration(row.seconds.mean)
        )
    yield costs


def _task_table(rows: tuple[Row, ...], title: str, columns: list[Column]) -> Table:
    kept = columns[: MOST_GROUPS + 1]
    left_out = len(columns) - len(kept)
    found = plain_table(title + (f", {plural(left_out, 'more group')} in comparison.md" if left_out else ""))
    add_columns(found, "method")
    found.add_column("rounds", justify="right", no_wrap=True)
    for column in kept:
        # long names of groups are folded anywhere, but a number never within its digits
        widest = max(len(word) for row in rows for word in _cell(row, column).plain.split() or [""])
        found.add_column(column.clients, justify="right", overflow="fold", min_width=widest)
    for row in rows:
        found.add_row(row.method, span(row.rounds), *(_cell(row, column) for column in kept))
    return found


def _cell(row: Row, column: Column) -> Text:
    spread = row.cells.get(column)
    text = "" if spread is None else spread.text(lambda value: plain(column.metric, value))
    return Text(text, "bold" if column in row.wins else "")
