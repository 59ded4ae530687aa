"""What the pages of results share: single runs that are not repeated, learning rates from one grid, tables."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import polyfed
from polyfed.experiment.config import Experiment
from polyfed.report.history import Curve

ROOT = Path(__file__).resolve().parent.parent
SEEDS = (0, 1, 2)

Records = Sequence[Mapping[str, Any]]
Found = dict[str, Any]
"""What is kept of one run."""


@dataclass(frozen=True)
class Plan:
    """One run."""

    dataset: str
    case: str
    label: str
    changes: Mapping[str, object]

    def with_(self, **changes: object) -> Plan:
        """Return the run with keys such as ``train__lr`` changed."""
        named = {key.replace("__", "."): value for key, value in changes.items()}
        return Plan(self.dataset, self.case, self.label, {**self.changes, **named})


@dataclass(frozen=True)
class Sweep:
    """Runs whose results are kept in a folder; ``load`` makes a plan's experiment, ``digest`` what is kept of a run."""

    runs: Path
    load: Callable[[Plan], Experiment]
    digest: Callable[[Plan, Records], Found]

    def results_of(self, plan: Plan) -> Found:
        """Train, unless the same experiment was trained before, and return what the tables need."""
        named = "-".join(f"{key}={value}" for key, value in sorted(plan.changes.items()) if key in ("seed", "train.lr"))
        file = self.runs / f"{plan.dataset}-{plan.case}-{plan.label.replace(' ', '_')}-{named}.json"
        experiment = self.load(plan)
        key = sha256(json.dumps(experiment.resolved, sort_keys=True).encode()).hexdigest()
        if file.exists():
            found: Found = json.loads(file.read_text())
            if found.get("experiment") == key:
                return found
        records: list[Mapping[str, Any]] = []
        polyfed.run(experiment, observers=[records.append])
        found = {**self.digest(plan, records), "experiment": key}
        self.runs.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found))
        print(file.name, f"validation accuracy {found['validation']:.3f}", flush=True)
        return found

    def tuned(self, plans: Iterable[Plan], rates: Sequence[float]) -> dict[str, float]:
        """Return each plan's learning rate: the best in validation accuracy with seed 0, the smaller of equals."""
        chosen = {}
        for plan in plans:
            scores = {rate: self.results_of(plan.with_(seed=0, train__lr=rate))["validation"] for rate in rates}
            chosen[plan.label] = max(rates, key=lambda rate: (scores[rate], -rate))
        return chosen

    def seeds(self, plan: Plan, rate: float) -> list[Found]:
        """Run a plan with every seed."""
        return [self.results_of(plan.with_(seed=seed, train__lr=rate)) for seed in SEEDS]


def server_accuracies(records: Records, task: str) -> list[tuple[int, float]]:
    """Return round and accuracy of every evaluation of the global model."""
    return [
        (record["round"], record["metrics"][task]["accuracy"])
        for record in records
        if record["kind"] == "server_evaluation"
    ]


def validation_accuracy(records: Records, task: str) -> float:
    """Return the last validation accuracy, mean over clients."""
    last = max((record["round"] for record in records if record["kind"] == "round"), default=0)
    values: list[float] = [
        record["metrics"][task]["accuracy"]
        for record in records
        if record["kind"] == "evaluation" and record["split"] == "validation" and record["round"] == last
    ]
    return mean(values)


def round_seconds(records: Records) -> float:
    """Return the median seconds of a round."""
    seconds = sorted(record["seconds"] for record in records if record["kind"] == "round")
    return seconds[len(seconds) // 2] if seconds else 0.0


def curve(found: Found) -> Curve:
    """Return the accuracy of the global model after training began."""
    points = [(number, value) for number, value in found["server"] if number > 0]
    return Curve(tuple(number for number, _ in points), tuple(value for _, value in points))


def final(found: Found) -> float:
    """Return the mean accuracy of the last five evaluations."""
    return mean(curve(found).values[-5:])


def in_percent(values: Sequence[float]) -> str:
    """Write mean ± standard deviation over seeds, in percent."""
    return f"{100 * mean(values):.1f} ± {100 * stdev(values):.1f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown; the first column holds words."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def finals(found: Iterable[Found]) -> list[float]:
    """Return the final accuracy of each seed."""
    return [final(each) for each in found]


def write_page(
    name: str, about: str | None, datasets: Mapping[str, object], page: Callable[[Path, Sequence[str]], str]
) -> None:
    """Read the command line, run what is missing and write docs/results/NAME.md."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs") / name, help="folder of the results of single runs")
    parser.add_argument("--datasets", nargs="+", choices=datasets, default=list(datasets), help="default: all")
    given = parser.parse_args()
    target = ROOT / "docs" / "results" / f"{name}.md"
    target.write_text(page(given.runs, given.datasets), encoding="utf-8")
    print(target)
