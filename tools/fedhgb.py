"""Write docs/results/fedhgb.md: FedHGB, its ablations and baselines in every case of modality skew.

    python tools/fedhgb.py --runs runs/fedhgb

What is finished already is not repeated. For every dataset and method the learning rate is chosen from one grid by the
validation accuracy of a run in the case Mixed-B (seed 0). What follows from the tables is written by hand in
docs/results/fedhgb.notes.md.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

import polyfed
from polyfed.experiment import config
from polyfed.report.convergence import convergence_rounds, rounds_to
from polyfed.report.history import Curve

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples" / "fedhgb"
SEEDS = (0, 1, 2)
RATES = (0.01, 0.03, 0.1, 0.3)
TUNED_ON = "mixed"
CASES = {"a": "A", "mixed": "Mixed-B", "2m": "2M-B", "1m": "1M-B", "c": "C"}
DATASETS = {
    "uci_har": ("a", "mixed", "2m", "1m", "c"),
    "av_mnist": ("a", "mixed"),
}
MODALITIES = {"uci_har": ("body_acceleration", "gravity", "gyroscope"), "av_mnist": ("image", "audio")}
TASK = {"uci_har": "activity", "av_mnist": "digit"}
METHODS: Mapping[str, Mapping[str, object]] = {
    "FedAvg": {"method.name": "fedavg"},
    "FedProx": {"method.name": "fedprox"},
    "FedAttn": {"method.name": "fedattn"},
    "FedNova": {"method.name": "fednova"},
    "equal heads": {"method.name": "fedhgb", "method.level": "none"},
    "M-GB": {"method.name": "fedhgb", "method.level": "modality"},
    "C-GB": {"method.name": "fedhgb", "method.level": "client"},
    "FedHGB": {"method.name": "fedhgb"},
    "centralized": {"method.name": "centralized"},
}


@dataclass(frozen=True)
class Plan:
    """One run."""

    dataset: str
    case: str
    label: str
    changes: Mapping[str, object]

    def with_(self, **changes: object) -> Plan:
        named = {key.replace("__", "."): value for key, value in changes.items()}
        return Plan(self.dataset, self.case, self.label, {**self.changes, **named})


def contenders(dataset: str, case: str) -> Iterator[Plan]:
    """Every method, and FedAvg on each modality alone."""
    for label, changes in METHODS.items():
        yield Plan(dataset, case, label, changes)
    for modality in MODALITIES[dataset]:
        changes = {"method.name": "fedavg", "scenario.keep": [modality]}
        yield Plan(dataset, case, f"only {modality}", changes)


def results_of(plan: Plan, runs: Path) -> dict[str, Any]:
    """Train, unless it was done before, and return what the tables need."""
    named = "-".join(f"{key}={value}" for key, value in sorted(plan.changes.items()) if key in ("seed", "train.lr"))
    file = runs / f"{plan.dataset}-{plan.case}-{plan.label.replace(' ', '_')}-{named}.json"
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text())
        return found
    records: list[Mapping[str, Any]] = []
    experiment = config.load(EXAMPLES / f"{plan.dataset}_{plan.case}.yaml", plan.changes)
    polyfed.run(experiment, observers=[records.append])
    found = digest(records, TASK[plan.dataset])
    runs.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found))
    print(file.name, f"accuracy {final(found):.3f}", flush=True)
    return found


def digest(records: Sequence[Mapping[str, Any]], task: str) -> dict[str, Any]:
    """Keep of the records what the tables and pictures need."""
    server = [
        (record["round"], record["metrics"][task]["accuracy"])
        for record in records
        if record["kind"] == "server_evaluation"
    ]
    last = max((record["round"] for record in records if record["kind"] == "round"), default=0)
    validation = [
        record["metrics"][task]["accuracy"]
        for record in records
        if record["kind"] == "evaluation" and record["split"] == "validation" and record["round"] == last
    ]
    gaps = {
        (record["round"], record["client"]): (record["notes"]["gap.fused"], record["notes"]["held_out.fused"])
        for record in records
        if record["kind"] == "client" and "gap.fused" in record.get("notes", {})
    }
    pairs = [
        (*gaps[record["round"], int(client)], held["weight"])
        for record in records
        if record["kind"] == "note"
        for client, held in record["clients"].items()
        if (record["round"], int(client)) in gaps and "weight" in held
    ]
    blends: dict[str, list[float]] = {}
    for record in records:
        for name, value in record.get("notes", {}).items():
            if name.startswith("blend."):
                blends.setdefault(name.removeprefix("blend."), []).append(value)
    seconds = sorted(record["seconds"] for record in records if record["kind"] == "round")
    return {
        "server": server,
        "validation": mean(validation),
        "pairs": pairs,
        "blends": {name: mean(values) for name, values in blends.items()},
        "seconds": seconds[len(seconds) // 2] if seconds else 0.0,
    }


def curve(found: Mapping[str, Any]) -> Curve:
    """Return the accuracy of the global model after training began."""
    points = [(number, value) for number, value in found["server"] if number > 0]
    return Curve(tuple(number for number, _ in points), tuple(value for _, value in points))


def final(found: Mapping[str, Any]) -> float:
    """Return the mean accuracy of the last five evaluations."""
    return mean(curve(found).values[-5:])


def tuned(dataset: str, runs: Path) -> dict[str, float]:
    """Return each contender's learning rate: the best in validation accuracy in one case, with seed 0."""
    chosen = {}
    for plan in contenders(dataset, TUNED_ON):
        scores = {rate: results_of(plan.with_(seed=0, train__lr=rate), runs)["validation"] for rate in RATES}
        chosen[plan.label] = max(RATES, key=lambda rate: (scores[rate], -rate))
    return chosen


Found = dict[tuple[str, str], list[dict[str, Any]]]
"""Case and label -> what each seed found."""


def measured(dataset: str, rates: Mapping[str, float], runs: Path) -> Found:
    """Run every case, contender and seed."""
    return {
        (case, plan.label): [results_of(plan.with_(seed=seed, train__lr=rates[plan.label]), runs) for seed in SEEDS]
        for case in DATASETS[dataset]
        for plan in contenders(dataset, case)
    }


def in_percent(values: Sequence[float]) -> str:
    """Write mean ± standard deviation over seeds, in percent."""
    return f"{100 * mean(values):.1f} ± {100 * stdev(values):.1f}"


def rounds_text(values: Sequence[int | None]) -> str:
    """Write the mean number of rounds; a dash where a seed never got there."""
    known = [value for value in values if value is not None]
    return f"{mean(known):.0f}" if len(known) == len(values) and known else "–"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown; the first column holds words."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def accuracy_table(dataset: str, found: Found) -> str:
    """Top-1 accuracy by method and case; the best federated method of a case is bold."""
    cases = DATASETS[dataset]
    best = {
        case: max(METHODS.keys() - {"centralized"}, key=lambda label: mean(map(final, found[case, label])))
        for case in cases
    }
    unimodal = [f"only {modality}" for modality in MODALITIES[dataset]]
    rows = []
    for label in [*METHODS, *unimodal]:
        texts = [in_percent([final(each) for each in found[case, label]]) for case in cases]
        rows.append(
            [label, *(f"**{text}**" if best[case] == label else text for case, text in zip(cases, texts, strict=True))]
        )
    best_unimodal = []
    for case in cases:
        winner = max(unimodal, key=lambda label: mean(map(final, found[case, label])))
        best_unimodal.append(in_percent([final(each) for each in found[case, winner]]))
    rows.append(["best uni-modal", *best_unimodal])
    return table(["", *(CASES[case] for case in cases)], rows)


def rounds_table(dataset: str, found: Found) -> str:
    """Rounds to convergence by method and case, and how far FedHGB is ahead of the fastest other and C-GB of M-GB."""
    cases, federated = DATASETS[dataset], [label for label in METHODS if label != "centralized"]
    needed = {
        (case, label): [convergence_rounds(curve(each)) or 0 for each in found[case, label]]
        for case in cases
        for label in federated
    }
    rows = [[label, *(f"{mean(needed[case, label]):.0f}" for case in cases)] for label in federated]
    others = ("FedAvg", "FedProx", "FedAttn", "FedNova")
    ahead = [min(mean(needed[case, label]) for label in others) - mean(needed[case, "FedHGB"]) for case in cases]
    rows.append(["ΔCR: fastest other − FedHGB", *(f"{value:+.0f}" for value in ahead)])
    rows.append(["ΔCR: M-GB − C-GB", *(f"{mean(needed[c, 'M-GB']) - mean(needed[c, 'C-GB']):+.0f}" for c in cases)])
    goal = {case: 0.95 * mean(map(final, found[case, "FedAvg"])) for case in cases}
    for label in federated:
        texts = [rounds_text([rounds_to(curve(each), goal[case]) for each in found[case, label]]) for case in cases]
        rows.append([f"to 95 % of FedAvg's end: {label}", *texts])
    return table(["", *(CASES[case] for case in cases)], rows)


def weights_table(dataset: str, found: Found) -> str:
    """What blending did: mean weights of the heads, and the correlation of clients' weights with their losses."""
    from statistics import correlation

    cases = DATASETS[dataset]
    heads = [*MODALITIES[dataset], "fused"]
    rows = []
    for head in heads:
        held = [[each["blends"].get(head, 0.0) for each in found[case, "FedHGB"]] for case in cases]
        rows.append([f"weight of head {head}", *(f"{mean(values):.2f}" for values in held)])
    for place, text in ((0, "generalisation error"), (1, "held-out loss")):
        texts = []
        for case in cases:
            pairs = [pair for each in found[case, "FedHGB"] for pair in each["pairs"]]
            texts.append(f"{correlation([pair[place] for pair in pairs], [pair[2] for pair in pairs]):+.2f}")
        rows.append([f"correlation of client weight and {text}", *texts])
    return table(["", *(CASES[case] for case in cases)], rows)


def page(runs: Path) -> str:
    """Run everything and return the page."""
    parts = [
        "# FedHGB: gradient blending under modality skew",
        f"Generated by `python tools/fedhgb.py` with polyfed {polyfed.__version__}, torch {torch.__version__}, Python "
        f"{platform.python_version()}, from the experiments in `examples/fedhgb`. One of the runs by hand:",
        "```bash\npolyfed run examples/fedhgb/uci_har_mixed.yaml\n```",
        f"Accuracy is that of the global model on all clients' test samples with all modalities, in percent: the mean "
        f"of the last five evaluations, then mean ± standard deviation over {len(SEEDS)} seeds. Rounds (CR) are those "
        "until the mean of the last five evaluations reaches 98 % of its own maximum (evaluations are two rounds "
        "apart).",
    ]
    for dataset in DATASETS:
        rates = tuned(dataset, runs)
        found = measured(dataset, rates, runs)
        parts += [
            f"## {dataset}",
            "### Accuracy",
            accuracy_table(dataset, found),
            "### Rounds",
            rounds_table(dataset, found),
            "### What blending did",
            weights_table(dataset, found),
            "Learning rates chosen: " + ", ".join(f"{label} {rate:g}" for label, rate in rates.items()) + ".",
        ]
    notes = ROOT / "docs" / "results" / "fedhgb.notes.md"
    if notes.exists():
        parts.append(notes.read_text(encoding="utf-8").strip())
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/fedhgb"), help="folder of the results of single runs")
    given = parser.parse_args()
    target = ROOT / "docs" / "results" / "fedhgb.md"
    target.write_text(page(given.runs), encoding="utf-8")
    print(target)


if __name__ == "__main__":
    main()
