"""Tables of what was measured, for the terminal and for a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.profile import CATEGORIES

if TYPE_CHECKING:
    from rich.table import Table as RichTable

Values = Mapping[str, Any]

RATIO_TARGETS = {
    ("W1", "default"): 0.50,
    ("W2", "default"): 0.50,
    ("W3", "default"): 0.25,
    ("W1", "one worker, one thread"): 0.80,
    ("W2", "one worker, one thread"): 0.80,
    ("W3", "one worker, one thread"): 0.25,
}


@dataclass(frozen=True)
class Table:
    """A title, a head and rows of text; the first ``words`` columns hold words, the others numbers."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1

    def rich(self) -> RichTable:
        """Return the table for the terminal."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as RichTable

        table = RichTable(title=self.title, title_justify="left", box=SIMPLE_HEAD)
        for number, name in enumerate(self.head):
            table.add_column(name, justify="left" if number < self.words else "right")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """Return the table for a page, without its title."""
        rules = ["---" if number < self.words else "---:" for number in range(len(self.head))]
        return "\n".join("| " + " | ".join(cells) + " |" for cells in [self.head, rules, *self.rows])


def seconds(values: Sequence[float]) -> str:
    """Median and quartiles of seconds, in milliseconds where that reads better."""
    if values[0] < 0.1:
        return "{:.2f} ms ({:.2f}–{:.2f})".format(*(1000 * value for value in values))
    return "{:.3f} s ({:.3f}–{:.3f})".format(*values)


def ratio(values: Sequence[float]) -> str:
    """Median and quartiles of a ratio."""
    return "{:.2f} ({:.2f}–{:.2f})".format(*values)


def megabytes(value: float) -> str:
    """Bytes in megabytes."""
    return f"{value / 1e6:.0f} MB"


def verdict(reached: bool) -> str:
    """Say whether a target is met."""
    return "met" if reached else "not met"


def workload_table(workloads: Sequence[Values]) -> Table:
    """Seconds, ratios, start-up and memory of all workloads."""
    rows = []
    for held in workloads:
        for number, row in enumerate(held["rows"]):
            target = RATIO_TARGETS.get((held["name"], row["label"]))
            wanted = "" if target is None else f"≤ {target:.2f}, {verdict(row['ratio'][0] <= target)}"
            cells = [held["name"] if number == 0 else "", row["label"], seconds(row["seconds"]), ratio(row["ratio"])]
            rows.append([*cells, wanted, f"{row['first']:.2f} s", megabytes(row["memory"])])
    head = ["workload", "system", "one round", "ratio to the bare loop", "target", "start to first round", "memory"]
    return Table("Rounds after the first: median (quartiles)", head, rows, words=2)


def profile_table(workloads: Sequence[Values]) -> Table:
    """Where the time goes, in percent."""
    rows = [[held["name"], *(f"{held['profile'][name]:.1f}" for name in CATEGORIES)] for held in workloads]
    return Table("Where the time goes, one worker (percent)", ["workload", *CATEGORIES], rows)


def reduction_table(measured: Values) -> Table:
    """The reduction beside its floor."""
    rows = [
        ["polyfed, `Fold`", f"{measured['seconds']:.3f} s", f"{measured['models']:.1f}"],
        ["floor: one add in place per reply", f"{measured['floor']:.3f} s", "1"],
    ]
    title = f"Averaging {measured['replies']} replies of {measured['parameters']:,} parameters, one thread"
    return Table(title, ["way", "time", "extra memory (models)"], rows)


def selection_table(measured: Sequence[Values]) -> Table:
    """Selections among many clients."""
    rows = []
    for row in measured:
        total = row["choose"] + row["renew"]
        times = (row["choose"], row["renew"], total)
        cells = [row["name"], str(row["clients"]), *(f"{value:.3f} s" for value in times), verdict(total < 1)]
        rows.append([*cells, f"{row['start']:.1f} s", megabytes(row["kept"]), megabytes(row["peak"])])
    head = ["selection", "per round", "choose", "renew", "both", "< 1 s", "start-up", "remembered", "peak"]
    return Table("One selection among 1,000 clients of 1,000,000 parameters, seconds of one core", head, rows)


def blending_table(measured: Values) -> Table:
    """A round of FedHGB beside one of FedAvg."""
    rows = [
        [name, f"{held['fedavg']:.3f} s", f"{held['fedhgb']:.3f} s", f"{held['ratio']:.2f}"]
        for name, held in measured.items()
    ]
    return Table("UCI-HAR, 10 of 30 clients, two local epochs", ["", "fedavg", "fedhgb", "ratio"], rows)


def checkpoint_table(measured: Values) -> Table:
    """A round with and without a checkpoint."""
    rows = [[row["label"], seconds(row["seconds"]), ratio(row["ratio"])] for row in measured["rows"]]
    return Table("W1 with checkpoints", ["", "one round", "ratio"], rows)


def points_table(title: str, x: str, measured: Values) -> Table:
    """One row per point of a scaling curve, one column per series."""
    series: Mapping[str, Sequence[Values]] = measured["series"]
    columns: list[tuple[str, Callable[[Values], str], str]] = []
    for label, points in series.items():
        columns.append((label, lambda point: seconds(point["seconds"]), label))
        if "ratio" in points[0] and label != "bare loop":
            columns.append((f"{label}: ratio", lambda point: ratio(point["ratio"]), label))
        if "memory" in points[0]:
            columns.append((f"{label}: memory", lambda point: megabytes(point["memory"]), label))
    longest: Sequence[Values] = next(iter(series.values()), ())
    rows = [
        [f"{point['x']:,}", *(text(series[label][number]) for _, text, label in columns)]
        for number, point in enumerate(longest)
    ]
    return Table(title, [x, *(name for name, _, _ in columns)], rows, words=0)


SCALING_TITLES = {
    "cohort": ("Clients per round (W3)", "clients per round"),
    "registered": ("Registered clients, 50 per round", "registered clients"),
    "model": ("Parameters of an MLP, 20 clients per round", "parameters"),
    "workers": ("Workers (seconds, and ratio to the bare loop)", "workers"),
}


def scaling_tables(measured: Values) -> list[Table]:
    """All scaling curves that were measured."""
    return [points_table(*SCALING_TITLES[name], held) for name, held in measured.items() if held["series"]]


def target_table(measured: Values) -> Table:
    """Targets beside what was measured, apart from the ratios."""
    rows = []

    def judge(name: str, target: str, text: str, reached: bool) -> None:
        rows.append([name, target, text, verdict(reached)])

    held = {one["name"]: one["rows"][1] for one in measured["workloads"]}
    for name in ("W1", "W2", "W3"):
        if name in held:
            first = held[name]["first"]
            judge(f"{name}: start-up to the end of the first round", "≤ 2.5 s", f"{first:.2f} s", first <= 2.5)
    if "W1" in held:
        peak = held["W1"]["memory"]
        judge("W1: peak memory, default settings", "≤ 600 MB", megabytes(peak), peak <= 600e6)
    if "reduction" in measured:
        fold = measured["reduction"]
        judge("reduction of 50 replies", "≤ 0.35 s", f"{fold['seconds']:.3f} s", fold["seconds"] <= 0.35)
        models = fold["models"]
        judge("extra memory of the reduction", "≤ 2 models", f"{models:.1f} models", round(models, 1) <= 2)
    if "checkpoint" in measured:
        cost = 100 * (measured["checkpoint"]["rows"][1]["ratio"][0] - 1)
        judge("a checkpoint every round of W1", "≤ 5 %", f"{cost:.1f} %", cost <= 5)
    if "scaling" in measured:
        few, *_, many = measured["scaling"]["registered"]["series"]["default"]
        growth, more = many["ratio"][0], many["memory"] - few["memory"]
        name = f"a round with {many['x']:,} registered clients, against {few['x']:,}"
        judge(name, "≤ 1.1", f"{growth:.2f}", growth <= 1.1)
        judge(f"memory that {many['x'] - few['x']:,} more clients take", "≤ 300 MB", megabytes(more), more <= 300e6)
    return Table("Other targets", ["what", "target", "measured", ""], rows, words=4)
