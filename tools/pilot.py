"""Write docs/results/pilot.md: Pilot, its ablations and baselines in the tiny drawn world.

    python tools/pilot.py --runs runs/pilot

The tiny LLaVA is pre-trained first if there is none in checkpoints/tiny-llava (a few minutes). What is finished already
is not repeated, whatever has changed in polyfed or in the checkpoint since: begin with an empty folder of runs. For
every method the learning rate is chosen from one grid by the validation score with seed 0; an ablation has that of
Pilot. What follows from the tables is written by hand in docs/results/pilot.notes.md.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from sweep import ROOT, SEEDS, Found, Plan, Records, Sweep, table, write_page

import polyfed
from polyfed.experiment import config
from polyfed.experiment.config import Experiment

EXAMPLE = ROOT / "examples" / "pilot" / "tiny.yaml"
CHECKPOINT = Path("checkpoints/tiny-llava")
WORLDS = ("tiny",)
RATES = (0.001, 0.003, 0.01, 0.03)
TESTS = 300
"""Test samples of each task: three times those of the example, for a smaller error of the tables."""
TASKS = {"vqa": ("accuracy", 100.0), "caption": ("cider", 1.0), "grounding": ("accuracy", 100.0)}
HEADS = ("VQA (accuracy)", "captions (CIDEr)", "grounding (IoU ≥ 0.5)")
ROUNDS = 3
"""Of Pilot, each of two local epochs; the others have one epoch in each of twice as many."""

PLAIN: Mapping[str, object] = {
    "method.text.aggregate": "all",
    "model.pilot.cross_task": "none",
    "model.pilot.client_adapter": False,
    "method.router.balance": 0.0,
    "method.router.logits": 0.0,
    "method.client_init_noise": 0.0,
}
NEAREST = {**PLAIN, "method.text.aggregate": "nearest"}
CROSSING = {**NEAREST, "model.pilot.cross_task": "each"}
BALANCED = {key: value for key, value in CROSSING.items() if not key.startswith("method.router.")}

METHODS: Mapping[str, Mapping[str, object]] = {
    label: {"method": method, "rounds": 2 * ROUNDS}
    for label, method in {
        "Centralized": {"name": "centralized"},
        "Local": {"name": "local"},
        "FedAvg": {"name": "fedavg"},
        "FedProx": {"name": "fedprox"},
        "FedAdam": {"name": "fedadam"},
        "FedAdam, server rate 0.001": {"name": "fedadam", "server_lr": 0.001},
        "FedAdam, server rate 0.03": {"name": "fedadam", "server_lr": 0.03},
        "FedDPA": {"name": "feddpa"},
        "Shepherd": {"name": "shepherd"},
        "FedDAT": {"name": "feddat"},
    }.items()
} | {"Pilot": {}}
LADDER: Mapping[str, Mapping[str, object]] = {
    "none of them": PLAIN,
    "ATA": NEAREST,
    "ATA, ψᶜ": CROSSING,
    "ATA, ψᶜ, L_b + L_z": BALANCED,
    "all (with ψˢ and L_d)": {},
}
TEXTS: Mapping[str, Mapping[str, object]] = {
    "same-task clients": {"method.text.aggregate": "same_task"},
    "all clients": {"method.text.aggregate": "all"},
    "M = 5": {"method.text.neighbours": 5},
    "M = 6": {},
    "M = 7": {"method.text.neighbours": 7},
}
STARTS: Mapping[str, Mapping[str, object]] = {
    "random": {"method.cross_task_init": "random"},
    "from the task's adapter": {},
}
TOWER: Mapping[str, Mapping[str, object]] = {
    "Pilot": {},
    "with CT-CLIP": {"data.vision": "pixels", "model.pilot.tower": True},
}
OURS = "Pilot"
OWN = ("Local", "FedAvg", "FedDPA", OURS)
"""Methods that are judged on each client's own kind of scenes, too."""

PUBLISHED = """\
Mean over the three clients of a task, visual understanding on LLaVA-1.5-7B: GQA accuracy, COCO CIDEr, RefCOCO accuracy
at IoU 0.5. Other data, another model: only the order can be compared.

| | GQA | COCO | RefCOCO |
| --- | ---: | ---: | ---: |
| Centralized | 52.8 | 130.3 | 65.3 |
| Local | 48.2 | 120.3 | 32.0 |
| FedAvg | 46.7 | 97.7 | 29.3 |
| FedProx | 47.4 | 104.3 | 40.3 |
| FedAdam | 50.0 | 119.5 | 46.2 |
| FedDPA | 48.9 | 115.7 | 47.2 |
| Shepherd | 42.7 | 87.5 | 27.7 |
| Pilot | 50.4 | 124.0 | 51.0 |

| ablation | GQA | COCO | RefCOCO |
| --- | ---: | ---: | ---: |
| none of them | 46.9 | 105.7 | 30.6 |
| ATA | 47.5 | 110.6 | 39.8 |
| ATA, ψᶜ | 49.3 | 114.5 | 47.5 |
| ATA, ψᶜ, L_b + L_z | 49.8 | 120.7 | 48.2 |
| all | 50.4 | 124.0 | 51.0 |
| text adapters: same-task clients | 49.6 | 120.2 | 50.3 |
| text adapters: all clients | 47.9 | 109.7 | 45.2 |
| M = 5 / 6 / 7 | 49.7 / 50.4 / 50.3 | 122.8 / 124.0 / 123.2 | 50.6 / 51.0 / 51.7 |
| ψᶜ random | 50.1 | 122.7 | 50.3 |
| with CT-CLIP | 51.6 | 126.1 | 52.7 |
"""


def plan_of(label: str, changes: Mapping[str, object]) -> Plan:
    """Return the run of a method or variant."""
    return Plan("tiny", "", label.replace("/", "-"), changes)


def own_plan(label: str) -> Plan:
    """Return the run of a method that is judged on scenes of the client's own kind."""
    return plan_of(f"{label} on own scenes", {**METHODS[label], "data.test": "own"})


def experiment_of(plan: Plan) -> Experiment:
    """Load a plan's experiment; the seed draws the scenes, too, and only what the tables need is judged."""
    fixed = {
        "data.seed": plan.changes.get("seed", 0),
        "data.test_examples": TESTS,
        "engine.evaluate_every": ROUNDS,
        "engine.diagnostics": False,
    }
    return config.load(EXAMPLE, {**plan.changes, **fixed})


def digest(plan: Plan, records: Records) -> Found:
    """Keep of the records what the tables need."""
    rounds = sorted({record["round"] for record in records if record["kind"] == "evaluation"})
    traffic = [record["bytes"] for record in records if record["kind"] == "round"]
    return {
        "validation": validation_score(records, rounds[-1]),
        "clients": by_round(records, "evaluation"),
        "deployed": by_round(records, "other_evaluation"),
        "up": sum(each["up"] for each in traffic),
        "down": sum(each["down"] for each in traffic),
        "seconds": sum(record["seconds"] for record in records if record["kind"] == "round"),
        "apart": [
            record["numbers"]["difference"]
            for record in records
            if record["kind"] == "client" and "difference" in record["numbers"]
        ],
    }


def by_round(records: Records, kind: str) -> dict[str, dict[str, float]]:
    """Return each client's figure on its test samples, by round and client."""
    found: dict[str, dict[str, float]] = {}
    for record in records:
        if record["kind"] == kind and record["split"] == "test" and record.get("model", "deployed") == "deployed":
            found.setdefault(str(record["round"]), {})[str(record["client"])] = figure(record["metrics"])
    return found


def figure(metrics: Mapping[str, Mapping[str, float]]) -> float:
    """Return the figure of a client's one task: percent, or CIDEr from 0 to 1000."""
    ((task, held),) = metrics.items()
    metric, scale = TASKS[task]
    return scale * held[metric]


def validation_score(records: Records, last: int) -> float:
    """Return the mean over tasks of the mean over clients of accuracy or CIDEr / 1000, on validation samples."""
    values: dict[str, list[float]] = {}
    for record in records:
        if record["kind"] == "evaluation" and record["split"] == "validation" and record["round"] == last:
            for task, held in record["metrics"].items():
                values.setdefault(task, []).append(held["accuracy"] if "accuracy" in held else held["cider"] / 1000)
    return mean(mean(held) for held in values.values())


def task_means(found: Found, number: str, kind: str = "clients") -> list[float]:
    """Return the mean over the three clients of each task after a round."""
    held = found[kind][number]
    return [mean(held[str(client)] for client in range(first, first + 3)) for first in (0, 3, 6)]


def cells(runs: Sequence[Found], number: str, kind: str = "clients") -> list[str]:
    """Write mean ± standard deviation over seeds of the three tasks."""
    values = zip(*(task_means(found, number, kind) for found in runs), strict=True)
    return [f"{mean(held):.1f} ± {stdev(held):.1f}" for held in values]


def last_of(found: Found) -> str:
    """Return the number of the last round, as a key."""
    return max(found["clients"], key=int)


AllFound = Mapping[str, Sequence[Found]]


def methods_table(found: AllFound) -> str:
    """Mean over the clients of each task by method, after as many local epochs, and in as many rounds."""
    rows = [["pre-trained only", "0", *cells(found["FedAvg"], "0"), "0.0", ""]]
    for label, runs in found.items():
        last = last_of(runs[0])
        traffic = mean((each["up"] + each["down"]) / 1e6 for each in runs)
        rows.append(
            [label, last, *cells(runs, last), f"{traffic:.1f}", f"{mean(each['seconds'] for each in runs):.0f}"]
        )
        if label != OURS:
            half = str(int(last) // 2)
            rows.append([f"{label}, half the epochs", half, *cells(runs, half), f"{traffic / 2:.1f}", ""])
    return table(["", "rounds", *HEADS, "MB sent", "seconds"], rows)


def clients_table(found: AllFound) -> str:
    """Each client's figure, as in the paper's Table 1."""
    rows = []
    for label, runs in found.items():
        last = last_of(runs[0])
        rows.append([label, *(f"{mean(each['clients'][last][str(k)] for each in runs):.1f}" for k in range(9))])
    return table(["client", *(str(k + 1) for k in range(9))], rows)


def deployed_table(found: AllFound) -> str:
    """What the server deploys after the last aggregation, of methods that are judged by what clients trained."""
    rows = [[label, *cells(runs, last_of(runs[0]), "deployed")] for label, runs in found.items() if runs[0]["deployed"]]
    return table(["", *HEADS], rows)


def own_table(found: AllFound) -> str:
    """Mean over the clients of each task, on scenes of the client's own kind."""
    rows = []
    for label, runs in found.items():
        last = last_of(runs[0])
        rows.append([label, *cells(runs, last)])
        if runs[0]["deployed"]:
            rows.append([f"{label}, deployed", *cells(runs, last, "deployed")])
    return table(["", *HEADS], rows)


def variants_table(found: AllFound, labels: Iterable[str]) -> str:
    """Mean over the clients of each task by variant of Pilot: as trained last, and as deployed."""
    rows = []
    for label in labels:
        last = last_of(found[label][0])
        rows.append([label, *cells(found[label], last), *cells(found[label], last, "deployed")])
    return table(["", *HEADS, *(f"deployed: {head}" for head in HEADS)], rows)


def sizes_table(found: AllFound) -> str:
    """Pilot with and without adapters in the vision tower: results, and parameters that are held, trained and sent."""
    rows = []
    for label, changes in TOWER.items():
        few = {"rounds": 1, "data.examples": 4, "data.test_examples": 1, "engine.workers": 1}
        counted = polyfed.run(config.load(EXAMPLE, {**changes, **few})).summary["parameters"]
        steps: Sequence[Mapping[str, Any]] = counted["steps"]
        counts = [
            " / ".join(f"{sum(step[key].values()):,}" for step in steps if step["client"] == 0)
            for key in ("present", "trained", "down", "up")
        ]
        rows.append([label, *cells(found[label], last_of(found[label][0])), *counts])
    return table(["", *HEADS, "present", "trained", "received", "sent"], rows)


def variants() -> Iterator[tuple[str, Mapping[str, object]]]:
    """All variants of Pilot but Pilot itself."""
    for held in (LADDER, TEXTS, STARTS, TOWER):
        yield from ((label, changes) for label, changes in held.items() if changes)


def page(runs: Path, worlds: Sequence[str]) -> str:
    """Run everything and return the page."""
    if not CHECKPOINT.exists():
        subprocess.run([sys.executable, "-m", "polyfed", "pretrain", "tiny-llava", str(CHECKPOINT)], check=True)
    sweep = Sweep(runs, experiment_of, digest)
    plans = [plan_of(label, changes) for label, changes in METHODS.items()]
    rates = sweep.tuned(plans, RATES)
    found = {plan.label: sweep.seeds(plan, rates[plan.label]) for plan in plans}
    more = {label: sweep.seeds(plan_of(label, changes), rates[OURS]) for label, changes in variants()}
    own = {label: sweep.seeds(own_plan(label), rates[label]) for label in OWN}
    for held in (LADDER, TEXTS, STARTS, TOWER):
        more |= {label: found[OURS] for label, changes in held.items() if not changes}
    parts = [
        "# Pilot: federated multimodal instruction tuning",
        f"Generated by `python tools/pilot.py` with polyfed {polyfed.__version__}, torch {torch.__version__}, Python "
        f"{platform.python_version()}, from `examples/pilot/tiny.yaml`. One of the runs by hand:",
        "```bash\npolyfed pretrain tiny-llava checkpoints/tiny-llava\npolyfed run examples/pilot/tiny.yaml\n```",
        "Nine clients of a drawn world, three for each task, each with scenes of its own kind; tests are scenes of the "
        f"whole world, {TESTS} for each task and the same for its three clients. All start from one tiny LLaVA, "
        f"pre-trained on a part of that world. Mean ± standard deviation over {len(SEEDS)} seeds (of scenes, order and "
        "adapters; the checkpoint is the same). Accuracies in percent, CIDEr from 0 to 1000. Pilot, FedDPA, FedDAT and "
        "Local are judged by the model that a client trained last, the others by the aggregated one.",
        "## Methods (Table 1)",
        f"Pilot trains two local epochs in each of {ROUNDS} rounds; the others have one epoch in each of {2 * ROUNDS} "
        "rounds, which is as much training, and are shown after half of them, too. Centralized has as many passes over "
        "all samples.",
        methods_table(found),
        "### By client",
        clients_table(found),
        "### What the server deploys",
        "For methods whose clients are judged by what they trained last: the same after the last aggregation.",
        deployed_table({**found}),
        "### On scenes of their own",
        "The same training, judged on scenes of the kind that the client trains on.",
        own_table(own),
        "## Parts of Pilot (Table 3)",
        "ATA: text adapters from the nearest clients, else plain averaging. ψᶜ: cross-task adapters. L_b + L_z: the "
        "router's losses. ψˢ and L_d: the client's adapter and the difference loss.",
        variants_table(more, LADDER),
        "## Adapters in the vision tower (Table 4)",
        "Parameters of a client's model in the first / the second stage.",
        sizes_table(more),
        "## Whose text adapters (Table 5)",
        variants_table(more, TEXTS),
        "## How cross-task adapters start (Table 6)",
        variants_table(more, STARTS),
        "Options that are not named have their default values, which were not tuned: FedAdam's server rate is 0.01 "
        "where nothing is said, FedProx's mu 0.01. Learning rates chosen: "
        + "; ".join(f"{label}: {rate:g}" for label, rate in rates.items())
        + ".",
        "## What was published",
        PUBLISHED.strip(),
    ]
    notes = ROOT / "docs" / "results" / "pilot.notes.md"
    if notes.exists():
        parts.append(notes.read_text(encoding="utf-8").strip())
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    write_page("pilot", __doc__, dict.fromkeys(WORLDS), page)
