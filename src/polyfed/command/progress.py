"""Progress on standard error: live bars in a terminal, a line now and then anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import fmean
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from polyfed.report.formats import duration, main_metric, short, shown, size

LINES = 10
"""Lines that a run prints where there is no terminal, besides the first."""

Record = Mapping[str, Any]


class Meter:
    """How far something is, and how long the rest will take."""

    def __init__(self, label: str, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.label, self.total, self.done = label, total, 0
        self._clock, self._begun, self._before = clock, clock(), 0

    def reach(self, done: int, *, skipped: bool = False) -> None:
        """Note that ``done`` of the total are done; what was skipped took no time and says nothing about the rest."""
        if skipped:
            self._before += done - self.done
        self.done = done

    @property
    def left(self) -> str:
        """Estimated time left; empty while nothing is known."""
        measured = self.done - self._before
        if measured <= 0 or self.done >= self.total:
            return ""
        each = (self._clock() - self._begun) / measured
        return f"{duration(round(each * (self.total - self.done), 1))} left"

    def row(self) -> tuple[RenderableType, ...]:
        """Return the cells of its line."""
        bar = ProgressBar(total=self.total, completed=self.done, width=24)
        return Text(self.label), bar, Text(f"{self.done}/{self.total}"), Text(self.left, style="dim")


class Scores:
    """The latest evaluation: means over clients of each task's main metric."""

    def __init__(self) -> None:
        self._round = -1
        self._found: dict[str, dict[str, list[Mapping[str, float]]]] = {}

    def add(self, record: Record) -> None:
        """Take in one evaluation record."""
        if record["round"] != self._round:
            self._round, self._found = record["round"], {}
        for task, metrics in record["metrics"].items():
            self._found.setdefault(task, {}).setdefault(record["split"], []).append(metrics)

    def lines(self) -> list[str]:
        """Return ``digit 81.2 % (validation 80.4 %)`` for each task."""
        return [f"{short(task)} {_scores(splits)}" for task, splits in sorted(self._found.items())]


def _scores(splits: Mapping[str, list[Mapping[str, float]]]) -> str:
    test, validation = (_mean(splits.get(split, [])) for split in ("test", "validation"))
    if not test:
        return f"{validation} in validation"
    return f"{test} (validation {validation})" if validation else test


def _mean(clients: list[Mapping[str, float]]) -> str:
    metric = main_metric(clients[0]) if clients else None
    if metric is None:
        return ""
    return shown(metric, fmean(metrics[metric] for metrics in clients if metric in metrics))


class Training:
    """One training under way: its rounds, its scores, its bytes."""

    def __init__(self, label: str, rounds: int) -> None:
        self.rounds = Meter(label, rounds)
        self.scores = Scores()
        self.bytes = 0
        self._started = False

    def add(self, record: Record) -> bool:
        """Take in one record; say whether a round has ended."""
        if record["kind"] == "evaluation":
            self.scores.add(record)
        if record["kind"] != "round":
            return False
        if not self._started:
            self._started = True
            self.rounds.reach(record["round"] - 1, skipped=True)  # rounds done before a resume
        self.rounds.reach(record["round"])
        self.bytes += sum(record["bytes"].values())
        return True

    def due(self) -> bool:
        """Whether this round deserves a line of its own."""
        done, total = self.rounds.done, self.rounds.total
        return done == 1 or done * LINES // total > (done - 1) * LINES // total

    def details(self, separator: str = ", ") -> str:
        """Return scores and bytes."""
        return separator.join([*self.scores.lines(), f"{size(self.bytes)} sent"])

    def line(self) -> str:
        """Return everything in one line."""
        meter = self.rounds
        parts = [f"{meter.label}: round {meter.done}/{meter.total}", self.details(), meter.left]
        return ", ".join(part for part in parts if part)


class Display:
    """Shows meters and some details while inside: live, or as lines, or not at all (``quiet``)."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console, self.quiet = console, quiet
        self.live = console.is_terminal and not console.is_dumb_terminal and not quiet
        self._meters: list[Meter] = []
        self._details = ""
        self._shown = Live(console=console, transient=True, get_renderable=self.render, refresh_per_second=8)

    def __enter__(self) -> Self:
        if self.live:
            self._shown.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self._shown.stop()

    def show(self, meters: list[Meter], details: str) -> None:
        """Show these from now on, where there is a live display."""
        self._meters, self._details = list(meters), details

    def say(self, line: str) -> None:
        """Print a line, where there is no live display."""
        if not self.live and not self.quiet:
            self.console.print(line, soft_wrap=True)

    def warn(self, record: Record) -> None:
        """Tell of a worker that died, above the live display if there is one."""
        if record["kind"] == "worker" and not self.quiet:
            then = "a new one tries again" if record["tried_again"] else "its clients' replies count as lost"
            self.console.print(f"{record['reason']}; {then}", soft_wrap=True, highlight=False)

    def render(self) -> RenderableType:
        """Return what the live display shows."""
        table = Table.grid(padding=(0, 2, 0, 0))
        for meter in self._meters:
            table.add_row(*meter.row())
        return Group(table, Text(self._details, style="dim"))


class RunProgress(Display):
    """Progress of one run and of the baseline that is trained before it. Call it with records."""

    def __init__(self, console: Console, method: str, baseline: str, rounds: int, *, quiet: bool = False) -> None:
        super().__init__(console, quiet=quiet)
        self._labels = {True: f"{baseline} (baseline)", False: method}
        self._total = rounds
        self._trainings: dict[bool, Training] = {}

    def __call__(self, record: Record) -> None:
        """Take in one record."""
        self.warn(record)
        key = bool(record.get("baseline"))
        if key not in self._trainings:
            self._trainings[key] = Training(self._labels[key], self._total)
        training = self._trainings[key]
        if training.add(record) and training.due():
            self.say(training.line())
        self.show([one.rounds for one in self._trainings.values()], training.details("\n"))


class ComparisonProgress(Display):
    """Progress of a comparison: all its rounds, and the run under way. Call it with records."""

    def __init__(self, console: Console, runs: int, rounds: int, *, quiet: bool = False) -> None:
        super().__init__(console, quiet=quiet)
        self._all = Meter("all runs", runs * rounds)
        self._runs, self._rounds, self._number = runs, rounds, 0
        self._training = Training("", rounds)

    def __call__(self, record: Record) -> None:
        """Take in one record."""
        if record["kind"] == "run":
            self._run(record)
            return
        self.warn(record)
        before = self._training.rounds.done
        if self._training.add(record):
            start = (self._number - 1) * self._rounds
            if record["round"] - before > 1:
                self._all.reach(start + record["round"] - 1, skipped=True)
            self._all.reach(start + record["round"])
        self.show([self._all, self._training.rounds], self._training.details("\n"))

    def _run(self, record: Record) -> None:
        if record["state"] == "started":
            self._number += 1
            self._training = Training(f"{record['method']}, seed {record['seed']}", self._rounds)
            return
        trained = self._training.rounds.done
        # A run that was finished before, failed or stopped early leaves rounds out.
        self._all.reach(self._number * self._rounds, skipped=True)
        told = f"run {self._number}/{self._runs}: {self._training.rounds.label}: {record['state']}"
        if record["state"] == "finished":
            told += f", {self._training.details()}" if trained else " earlier"
        self.say(", ".join(part for part in (told, self._all.left) if part))


class StageProgress(Display):
    """Progress of a training in several stages, each of so many steps. Call it with stage, steps done and loss."""

    def __init__(self, console: Console, stages: Mapping[str, int], *, quiet: bool = False) -> None:
        super().__init__(console, quiet=quiet)
        self._total = dict(stages)
        self._meters_of: dict[str, Meter] = {}

    def __call__(self, stage: str, done: int, loss: float) -> None:
        """Take in one step."""
        new = stage not in self._meters_of
        meter = self._meters_of.setdefault(stage, Meter(stage, self._total[stage]))
        meter.reach(done, skipped=new)  # how long the first step took is not known
        if done * LINES // meter.total > (done - 1) * LINES // meter.total:
            parts = [f"{stage}: step {done}/{meter.total}, loss {loss:.3f}", meter.left]
            self.say(", ".join(part for part in parts if part))
        self.show(list(self._meters_of.values()), f"loss {loss:.3f}")
