"""Write docs/results/fedhgb.md: FedHGB, its ablations and baselines in every case of modality skew.

    python tools/fedhgb.py --datasets uci_har --runs runs/fedhgb

What is finished already is not repeated. For every dataset and method the learning rate is chosen from one grid by the
validation accuracy of a run in the case Mixed-B (seed 0). What follows from the tables is written by hand in
docs/results/fedhgb.notes.md.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import mean

import torch
from sweep import (
    ROOT,
    SEEDS,
    Found,
    Plan,
    Records,
    Sweep,
    curve,
    finals,
    in_percent,
    round_seconds,
    server_accuracies,
    table,
    validation_accuracy,
    write_page,
)

import polyfed
from polyfed.experiment import config
from polyfed.experiment.config import Experiment
from polyfed.experiment.world import build_world
from polyfed.report.convergence import convergence_rounds, rounds_to
from polyfed.report.correlation import correlation_within

EXAMPLES = ROOT / "examples" / "fedhgb"
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


FEDERATED = tuple(label for label in METHODS if label != "centralized")

PUBLISHED = """\
Slides of the INFOCOM 2022 talk, V@1 in percent. Data, models and clients are others, so only the order can be compared.

| | Kinetics Mixed-B | Kinetics 2M-B | Gym Mixed-B | Gym 2M-B |
| --- | ---: | ---: | ---: | ---: |
| FedAvg | 38.04 | 44.32 | 42.33 | 51.42 |
| FedAttn | 51.79 | 56.91 | 58.07 | 64.52 |
| FedNova | 55.12 | 58.76 | 63.92 | 68.3 |
| FedHGB | 62.97 | 64.39 | 71.66 | 73.34 |
| ΔCR of FedHGB to the fastest | 34 | 15 | 51 | 20 |
| best uni-modal (RGB) | 62.33 | 62.33 | 70.52 | 70.52 |

| | A | Mixed-B | 2M-B | 1M-B | C |
| --- | ---: | ---: | ---: | ---: | ---: |
| Kinetics: M-GB | 65.92 | 56.55 | 60.47 | 58.73 | 57.66 |
| Kinetics: C-GB | 63.83 | 55.91 | 57.02 | 58.64 | 52.81 |
| Kinetics: ΔCR, M-GB − C-GB | 25 | 48 | 66 | 95 | 67 |
| Gym: M-GB | 71.36 | 66.13 | 69.92 | 67.34 | 65.17 |
| Gym: C-GB | 70.03 | 64.4 | 66.1 | 66.38 | 58.93 |
| Gym: ΔCR, M-GB − C-GB | 41 | 36 | 69 | 87 | 46 |

| modalities (data set not named) | centralized | FedAvg | FedAvg: rounds |
| --- | ---: | ---: | ---: |
| RGB | 71.52 | 58.43 | 480 |
| audio + RGB | 72.17 | 49.91 | 519 |
| flow + RGB | 72.3 | 52.57 | 504 |
| audio + flow + RGB | 73.62 | 38.62 | 557 |
"""


def contenders(dataset: str, case: str) -> Iterator[Plan]:
    """Every method, and FedAvg on each modality alone."""
    for label, changes in METHODS.items():
        yield Plan(dataset, case, label, changes)
    for modality in MODALITIES[dataset]:
        changes = {"method.name": "fedavg", "scenario.keep": [modality]}
        yield Plan(dataset, case, f"only {modality}", changes)


def experiment_of(plan: Plan) -> Experiment:
    """Load a plan's experiment; where fewer clients hold a modality than are asked per round, all of them are asked."""
    file = EXAMPLES / f"{plan.dataset}_{plan.case}.yaml"
    experiment = config.load(file, plan.changes)
    if "scenario.keep" not in plan.changes:
        return experiment
    holders = len(build_world(experiment.with_({"select.name": "all"})).federation.cards)
    wanted = experiment.select.options["clients"]
    return experiment if holders >= int(str(wanted)) else experiment.with_({"select.clients": holders})


def digest(plan: Plan, records: Records) -> Found:
    """Keep of the records what the tables and pictures need."""
    gaps = {
        (record["round"], record["client"]): (record["notes"]["gap.fused"], record["notes"]["held_out.fused"])
        for record in records
        if record["kind"] == "client" and "gap.fused" in record.get("notes", {})
    }
    pairs = [
        (record["round"], *gaps[record["round"], int(client)], held["weight"])
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
    task = TASK[plan.dataset]
    return {
        "server": server_accuracies(records, task),
        "validation": validation_accuracy(records, task),
        "pairs": pairs,
        "blends": {name: mean(values) for name, values in blends.items()},
        "seconds": round_seconds(records),
    }


AllFound = dict[tuple[str, str], list[Found]]
"""Case and label -> what each seed found."""


def measured(dataset: str, rates: Mapping[str, float], sweep: Sweep) -> AllFound:
    """Run every case, contender and seed."""
    return {
        (case, plan.label): sweep.seeds(plan, rates[plan.label])
        for case in DATASETS[dataset]
        for plan in contenders(dataset, case)
    }


def rounds_text(values: Sequence[int | None]) -> str:
    """Write the mean number of rounds; a dash where a seed never got there."""
    known = [value for value in values if value is not None]
    return f"{mean(known):.0f}" if len(known) == len(values) and known else "–"


def accuracy_table(dataset: str, found: AllFound) -> str:
    """Top-1 accuracy by method and case; the best federated method of a case is bold."""
    cases = DATASETS[dataset]
    best = {case: max(FEDERATED, key=lambda label: mean(finals(found[case, label]))) for case in cases}
    unimodal = [f"only {modality}" for modality in MODALITIES[dataset]]
    rows = []
    for label in [*METHODS, *unimodal]:
        texts = [in_percent(finals(found[case, label])) for case in cases]
        rows.append(
            [label, *(f"**{text}**" if best[case] == label else text for case, text in zip(cases, texts, strict=True))]
        )
    best_unimodal = []
    for case in cases:
        winner = max(unimodal, key=lambda label: mean(finals(found[case, label])))
        best_unimodal.append(in_percent(finals(found[case, winner])))
    rows.append(["best uni-modal", *best_unimodal])
    return table(["", *(CASES[case] for case in cases)], rows)


def rounds_table(dataset: str, found: AllFound) -> str:
    """Rounds to convergence by method and case, and how far FedHGB is ahead of the fastest other and C-GB of M-GB."""
    cases, federated = DATASETS[dataset], FEDERATED
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
    goal = {case: 0.95 * mean(finals(found[case, "FedAvg"])) for case in cases}
    for label in federated:
        texts = [rounds_text([rounds_to(curve(each), goal[case]) for each in found[case, label]]) for case in cases]
        rows.append([f"to 95 % of FedAvg's end: {label}", *texts])
    return table(["", *(CASES[case] for case in cases)], rows)


def modalities_table(dataset: str, rates: Mapping[str, float], sweep: Sweep) -> str:
    """Accuracy with ever more modalities, of one model on all data and of FedAvg (the slides' Table I)."""
    rows = []
    names = MODALITIES[dataset]
    for chosen in (held for size in range(1, len(names) + 1) for held in combinations(names, size)):
        found: dict[str, list[Found]] = {}
        for label in ("centralized", "FedAvg"):
            keep = {} if len(chosen) == len(names) else {"scenario.keep": list(chosen)}
            named = label if not keep else f"{label}-{'-'.join(chosen)}"
            plan = Plan(dataset, TUNED_ON, named, {**METHODS[label], **keep})
            found[label] = sweep.seeds(plan, rates[label])
        rounds = [convergence_rounds(curve(each)) for each in found["FedAvg"]]
        accuracies = [in_percent(finals(found[label])) for label in ("centralized", "FedAvg")]
        rows.append([" + ".join(chosen), *accuracies, rounds_text(rounds)])
    return table(["modalities", "centralized", "FedAvg", "FedAvg: rounds"], rows)


def weights_table(dataset: str, found: AllFound) -> str:
    """What blending did: mean weights of the heads, and the correlation of clients' weights with their losses."""
    cases = DATASETS[dataset]
    heads = [*MODALITIES[dataset], "fused"]
    rows = []
    for head in heads:
        held = [[each["blends"].get(head, 0.0) for each in found[case, "FedHGB"]] for case in cases]
        rows.append([f"weight of head {head}", *(f"{mean(values):.2f}" for values in held)])
    for place, text in ((1, "generalisation error"), (2, "held-out loss")):
        texts = []
        for case in cases:
            pairs = [
                ((seed, pair[0]), pair[place], pair[3])
                for seed, each in enumerate(found[case, "FedHGB"])
                for pair in each["pairs"]
            ]
            together = correlation_within(pairs)
            texts.append("–" if together is None else f"{together:+.2f}")
        rows.append([f"correlation of client weight and {text}", *texts])
    return table(["", *(CASES[case] for case in cases)], rows)


def page(runs: Path, datasets: Sequence[str]) -> str:
    """Run everything and return the page."""
    sweep = Sweep(runs, experiment_of, digest)
    chosen = "" if list(datasets) == list(DATASETS) else f" --datasets {' '.join(datasets)}"
    parts = [
        "# FedHGB: gradient blending under modality skew",
        f"Generated by `python tools/fedhgb.py{chosen}` with polyfed {polyfed.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, from the experiments in `examples/fedhgb`. One of the runs by hand:",
        "```bash\npolyfed run examples/fedhgb/uci_har_mixed.yaml\n```",
        f"Accuracy is that of the global model on all clients' test samples with all modalities, in percent: the mean "
        f"of the last five evaluations, then mean ± standard deviation over {len(SEEDS)} seeds. Rounds (CR) are those "
        "until the mean of the last five evaluations reaches 98 % of its own maximum (evaluations are two rounds "
        "apart on UCI-HAR, four on AV-MNIST).",
    ]
    for dataset in datasets:
        rates = sweep.tuned(contenders(dataset, TUNED_ON), RATES)
        found = measured(dataset, rates, sweep)
        parts += [
            f"## {dataset}",
            "### Accuracy",
            accuracy_table(dataset, found),
            "### Rounds",
            rounds_table(dataset, found),
            f"### More modalities ({CASES[TUNED_ON]})",
            modalities_table(dataset, rates, sweep),
            "### What blending did",
            weights_table(dataset, found),
            "Learning rates chosen: " + ", ".join(f"{label} {rate:g}" for label, rate in rates.items()) + ".",
        ]
    parts += ["## What was published", PUBLISHED.strip()]
    notes = ROOT / "docs" / "results" / "fedhgb.notes.md"
    if notes.exists():
        parts.append(notes.read_text(encoding="utf-8").strip())
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    write_page("fedhgb", __doc__, DATASETS, page)
