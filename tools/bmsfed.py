"""Write docs/results/bmsfed.md: BMSFed, its ablations, other selections and multi-modal baselines.

    python tools/bmsfed.py --datasets uci_har --runs runs/bmsfed

What is finished already is not repeated. For every dataset and method the learning rate is chosen from one grid by the
validation accuracy of a run with unequal labels (seed 0). What follows from the tables is written by hand in
docs/results/bmsfed.notes.md.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
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

EXAMPLES = ROOT / "examples" / "bmsfed"
RATES = (0.01, 0.03, 0.1)
TUNED_ON = "dirichlet"
CASES = {"iid": "IID", "dirichlet": "Dirichlet(3)"}
MODALITIES = {
    "cg_mnist": ("gray", "colour"),
    "av_mnist": ("image", "audio"),
    "uci_har": ("body_acceleration", "gravity", "gyroscope"),
}
TASK = {"cg_mnist": "digit", "av_mnist": "digit", "uci_har": "activity"}
BMS: Mapping[str, object] = {"select.name": "bms"}
RANDOM: Mapping[str, object] = {"select.name": "random"}
SELECTIONS: Mapping[str, Mapping[str, object]] = {
    "random (FedAvg)": {"method.name": "fedavg", **RANDOM},
    "round_robin": {"method.name": "fedavg", "select.name": "round_robin"},
    "pow-d": {"method.name": "fedavg", "select.name": "pow-d"},
    "divfl, stale": {"method.name": "fedavg", "select.name": "divfl"},
    "divfl, fresh": {"method.name": "fedavg", "select.name": "divfl", "select.fresh": True},
    "bms (no enhancement)": {"method.name": "fedavg", **BMS},
}
BASELINES: Mapping[str, Mapping[str, object]] = {
    "FedProx": {"method.name": "fedprox", **RANDOM},
    "SCAFFOLD": {"method.name": "scaffold", **RANDOM},
    "OGM-GE": {"method.name": "ogm-ge", **RANDOM},
    "AGM": {"method.name": "agm", **RANDOM},
    "PMR": {"method.name": "pmr", **RANDOM},
    "FedProto-style": {"method.name": "fedproto", **RANDOM},
    "modality drop": {"method.name": "modality-drop", **RANDOM},
}
BMSFED: Mapping[str, Mapping[str, object]] = {
    "enhancement only": {"method.name": "bmsfed", **RANDOM},
    "BMSFed": {"method.name": "bmsfed", **BMS},
    "BMSFed, authors' conflict rule": {"method.name": "bmsfed", **BMS, "select.conflict_rule": "code"},
}
CONTENDERS = {**SELECTIONS, **BASELINES, **BMSFED}
REFERENCE = "random (FedAvg)"


def contenders(dataset: str, case: str) -> Iterator[Plan]:
    """Every method and selection that the data set's modalities allow."""
    for label, changes in CONTENDERS.items():
        yield Plan(dataset, case, label, {**changes, "select.clients": 5})


def experiment_of(plan: Plan) -> Experiment:
    """Load a plan's experiment."""
    return config.load(EXAMPLES / f"{plan.dataset}_{plan.case}.yaml", plan.changes)


def digest(plan: Plan, records: Records) -> Found:
    """Keep of the records what the tables need."""
    task = TASK[plan.dataset]
    alone = [
        (record["round"], record["accuracy"][task])
        for record in records
        if record["kind"] == "unimodal_evaluation" and record["round"] > 0
    ]
    chosen = [
        record["numbers"]["uni_modal"]
        for record in records
        if record["kind"] == "note" and "uni_modal" in record["numbers"]
    ]
    uploaded = [record["bytes"]["up"] for record in records if record["kind"] == "round"]
    return {
        "server": server_accuracies(records, task),
        "validation": validation_accuracy(records, task),
        "alone": alone,
        "uni_modal": mean(chosen) if chosen else None,
        "uploaded": sum(uploaded),
        "seconds": round_seconds(records),
    }


AllFound = dict[tuple[str, str], list[Found]]
"""Case and label -> what each seed found."""


def alone(found: Found, modality: str, how: str) -> float:
    """Return the accuracy of one modality alone, mean of the last five evaluations."""
    values: list[float] = [held[modality][how] for _, held in found["alone"][-5:]]
    return mean(values)


def imbalance(found: Found, modalities: Sequence[str]) -> float:
    """Return the best modality's accuracy over the weakest's."""
    values = [alone(found, modality, "ncm_train") for modality in modalities]
    return max(values) / min(values)


def weakest(found: AllFound, dataset: str, case: str) -> str:
    """Name the modality that is worst under FedAvg."""
    return min(
        MODALITIES[dataset],
        key=lambda modality: mean(alone(each, modality, "ncm_train") for each in found[case, REFERENCE]),
    )


def results_table(dataset: str, case: str, found: AllFound) -> str:
    """Fused and uni-modal accuracy, imbalance and uni-modal participants by method."""
    modalities = MODALITIES[dataset]
    columns: dict[str, Callable[[Found], float]] = {"all modalities": lambda each: finals([each])[0]}
    for modality in modalities:
        columns[modality] = partial(alone, modality=modality, how="ncm_train")
    values = {
        (label, column): [read(each) for each in found[case, label]]
        for label in CONTENDERS
        for column, read in columns.items()
    }
    best = {column: max(CONTENDERS, key=lambda label: mean(values[label, column])) for column in columns}
    rows = []
    for label in CONTENDERS:
        texts = [in_percent(values[label, column]) for column in columns]
        marked = [f"**{text}**" if best[column] == label else text for column, text in zip(columns, texts, strict=True)]
        ratio = mean(imbalance(each, modalities) for each in found[case, label])
        counts = [each["uni_modal"] for each in found[case, label]]
        rows.append([label, *marked, f"{ratio:.2f}", "0" if None in counts else f"{mean(counts):.1f}"])
    return table(["", *columns, "imbalance", "uni-modal participants"], rows)


def heads_table(dataset: str, case: str, found: AllFound) -> str:
    """The head's accuracy with single modalities, and the authors' figure with prototypes of the test samples."""
    modalities = MODALITIES[dataset]
    rows = []
    for label in (REFERENCE, "enhancement only", "BMSFed"):
        texts = [
            in_percent([alone(each, modality, how) for each in found[case, label]])
            for how in ("zeroed_head", "ncm_test")
            for modality in modalities
        ]
        rows.append([label, *texts])
    head = [f"{modality}: {how}" for how in ("head alone", "prototypes of test samples") for modality in modalities]
    return table(["", *head], rows)


def claims_table(dataset: str, found: AllFound) -> str:
    """Differences seed by seed: what enhancement and selection add, to the weakest modality and to the fused model."""
    pairs = {
        "enhancement, over FedAvg": ("enhancement only", REFERENCE),
        "BMSFed, over FedAvg": ("BMSFed", REFERENCE),
        "selection, over random, with enhancement": ("BMSFed", "enhancement only"),
        "selection, over random, without enhancement": ("bms (no enhancement)", REFERENCE),
    }
    rows = []
    for text, (one, other) in pairs.items():
        cells = []
        for case in CASES:
            weak = weakest(found, dataset, case)
            both = list(zip(found[case, one], found[case, other], strict=True))
            fused = [finals([left])[0] - finals([right])[0] for left, right in both]
            single = [alone(left, weak, "ncm_train") - alone(right, weak, "ncm_train") for left, right in both]
            cells += [in_points(fused), in_points(single)]
        rows.append([text, *cells])
    head = [
        text
        for case, name in CASES.items()
        for text in (f"{name}: fused", f"{name}: weakest ({weakest(found, dataset, case)})")
    ]
    return table(["", *head], rows)


def rates_table(dataset: str, sweep: Sweep) -> str:
    """Fused accuracy and that of the weakest modality with every learning rate, in the case that is tuned on."""
    runs = {
        (plan.label, rate): sweep.results_of(plan.with_(seed=0, train__lr=rate))
        for plan in contenders(dataset, TUNED_ON)
        for rate in RATES
    }
    weak = min(MODALITIES[dataset], key=lambda modality: alone(runs[REFERENCE, RATES[0]], modality, "ncm_train"))
    rows = []
    for label in CONTENDERS:
        held = [runs[label, rate] for rate in RATES]
        fused, single = finals(held), [alone(each, weak, "ncm_train") for each in held]
        rows.append([label, *(f"{100 * value:.1f}" for value in [*fused, *single])])
    return table(["", *(f"{what} at {rate:g}" for what in ("fused", weak) for rate in RATES)], rows)


def in_points(values: Sequence[float]) -> str:
    """Write mean and range of differences, in points of a percent."""
    return f"{100 * mean(values):+.1f} ({100 * min(values):+.1f} to {100 * max(values):+.1f})"


def page(runs: Path, datasets: Sequence[str]) -> str:
    """Run everything and return the page."""
    sweep = Sweep(runs, experiment_of, digest)
    chosen = "" if list(datasets) == list(MODALITIES) else f" --datasets {' '.join(datasets)}"
    parts = [
        "# BMSFed: balanced modality selection",
        f"Generated by `python tools/bmsfed.py{chosen}` with polyfed {polyfed.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, from the experiments in `examples/bmsfed`. One of the runs by hand:",
        "```bash\npolyfed run examples/bmsfed/uci_har_dirichlet.yaml\n```",
        "All figures are of the global model on all clients' test samples, in percent: the mean of the last five "
        f"evaluations, then mean ± standard deviation over {len(SEEDS)} seeds. A modality alone is judged by the "
        "nearest class prototype of its features, prototypes being means over the clients' **training** samples. "
        "Imbalance is the best modality's accuracy over the weakest's. 20 clients, 5 per round.",
    ]
    for dataset in datasets:
        rates = sweep.tuned(contenders(dataset, TUNED_ON), RATES)
        found = {
            (case, plan.label): sweep.seeds(plan, rates[plan.label])
            for case in CASES
            for plan in contenders(dataset, case)
        }
        parts.append(f"## {dataset}")
        for case, name in CASES.items():
            parts += [f"### {name}", results_table(dataset, case, found)]
        parts += [
            "### What enhancement and selection add",
            "Points of a percent, mean (smallest to largest over the seeds, same seed on both sides).",
            claims_table(dataset, found),
            f"### Single modalities, judged otherwise ({CASES[TUNED_ON]})",
            heads_table(dataset, TUNED_ON, found),
            f"### Every learning rate ({CASES[TUNED_ON]}, seed 0)",
            rates_table(dataset, sweep),
            "Learning rates chosen: " + ", ".join(f"{label} {rate:g}" for label, rate in rates.items()) + ".",
        ]
    notes = ROOT / "docs" / "results" / "bmsfed.notes.md"
    if notes.exists():
        parts.append(notes.read_text(encoding="utf-8").strip())
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    write_page("bmsfed", __doc__, MODALITIES, page)
