"""Write docs/results/disentafl.md: DisentAFL, its ablations and baselines on scenario 1.

    python tools/disentafl.py --runs runs/disentafl

What is finished already is not repeated, whatever has changed in polyfed since: begin with an empty folder of runs. For
every method, and for local training of the mixture of experts, the learning rate is chosen from one grid by the
validation accuracy with seed 0; an ablation has that of the method which it varies. What follows from the tables is
written by hand in docs/results/disentafl.notes.md.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import mean, stdev

import torch
from sweep import ROOT, SEEDS, Found, Plan, Records, Sweep, in_percent, round_seconds, table, write_page

import polyfed
from polyfed.experiment import config
from polyfed.experiment.config import Experiment
from polyfed.experiment.summary import parameters
from polyfed.experiment.world import build_world

EXAMPLES = ROOT / "examples" / "disentafl"
SCENARIOS = ("scenario1", "uci_har")
STAND_IN, STAND_IN_RATE = "uci_har", 0.001
RATES = (0.001, 0.003, 0.01)
PLAIN: Mapping[str, object] = {"model.expert_grid": "module", "model.gate": "uniform"}
WIDE = "wide"
METHODS: Mapping[str, Mapping[str, object]] = {
    "Local": {"method.name": "local", **PLAIN},
    "FedAvg": {"method.name": "fedavg", "method.missing": "dilute", **PLAIN},
    "Multi-FedAvg": {"method.name": "multi-fedavg", **PLAIN},
    "FedMSplit": {"method.name": "fedmsplit", **PLAIN},
    "DisentAFL": {},
}
ABLATIONS: Mapping[str, Mapping[str, object]] = {
    "DisentAFL, no disentanglement loss": {"method.beta": 0.0},
    "DisentAFL, uniform gate": {"model.gate": "uniform"},
    "DisentAFL, experts by axis": {"model.expert_grid": "axes"},
    "DisentAFL, 8 bits": {"method.quantize_bits": 8},
    "Local, same experts": {"method.name": "local"},
    "Multi-FedAvg, wide": {**METHODS["Multi-FedAvg"], WIDE: True},
}
CONTENDERS = {**METHODS, **ABLATIONS}
OURS, LOCAL, LOCAL_EXPERTS = "DisentAFL", "Local", "Local, same experts"
TUNED = (*METHODS, LOCAL_EXPERTS)
SHARING = ("FedAvg", "Multi-FedAvg", "FedMSplit", OURS)
STAND_IN_TASKS = ("activity", "accuracy", 100.0, 1), ("moving", "accuracy", 100.0, 1), ("intensity", "mse", 1.0, 3)
NAMES = "accuracy", "accuracy", "mean squared error"
QUALITIES = {"mse": "MSE", "psnr": "PSNR (dB)", "ssim": "SSIM"}

PUBLISHED = """\
Average test accuracy on classification tasks, in percent, from the slides. Which of their two columns belongs to which
scenario cannot be read; this one is taken for scenario 1. **Different data construction and reconstructed method**:
only the order can be compared, if anything.

| | slides |
| --- | ---: |
| Local | 88.23 ± 0.72 |
| FedAvg | 84.63 ± 0.02 |
| Multi-FedAvg | 84.82 ± 0.29 |
| FedMSplit | 87.37 ± 0.03 |
| DisentAFL | 96.38 ± 0.41 |
"""


def contenders(scenario: str) -> Iterator[Plan]:
    """Every method and ablation."""
    for label, changes in CONTENDERS.items():
        yield Plan(scenario, "", label, changes)


def varied(label: str) -> str:
    """Name the method whose learning rate an ablation has."""
    return label if label in TUNED else label.split(",", maxsplit=1)[0]


def rates_of(scenario: str, sweep: Sweep) -> dict[str, float]:
    """Choose the learning rate of every method."""
    return sweep.tuned([plan for plan in contenders(scenario) if plan.label in TUNED], RATES)


def experiment_of(plan: Plan) -> Experiment:
    """Load a plan's experiment; a wide plain network has as many parameters as the mixture of experts."""
    changes = {key: value for key, value in plan.changes.items() if key != WIDE}
    if WIDE in plan.changes:
        changes["model.ratio"] = matching_ratio(plan.dataset)
    return config.load(EXAMPLES / f"{plan.dataset}.yaml", {**changes, "engine.diagnostics": True})


@cache
def sizes(scenario: str, label: str, ratio: float | None = None) -> Mapping[str, float]:
    """Count the parameters of all components in use, and of a client's model on average."""
    changes = {key: value for key, value in CONTENDERS[label].items() if key != WIDE}
    widened = {} if ratio is None else {"model.ratio": ratio}
    return parameters(build_world(config.load(EXAMPLES / f"{scenario}.yaml", {**changes, **widened})))


@cache
def matching_ratio(scenario: str) -> float:
    """Return the ratio of hidden to model width with which the plain network is as large as the mixture of experts."""
    narrow, wide = (sizes(scenario, "Multi-FedAvg", ratio)["server"] for ratio in (1.0, 2.0))
    return round(1.0 + (sizes(scenario, OURS)["server"] - narrow) / (wide - narrow), 4)


def digest(plan: Plan, records: Records) -> Found:
    """Keep of the records what the tables need."""
    found = [record for record in records if record["kind"] == "evaluation"]
    rounds = sorted({record["round"] for record in found})
    last = {
        record["client"]: record["metrics"]
        for record in found
        if record["split"] == "test" and record["round"] == rounds[-1]
    }
    traffic = [record["bytes"] for record in records if record["kind"] == "round"]
    agreements = [record["cosine"] for record in records if record["kind"] == "agreement"]
    trained = [record["numbers"] for record in records if record["kind"] == "client" and record["round"] == rounds[-1]]
    entangled = [numbers["disentanglement"] for numbers in trained if "disentanglement" in numbers]
    return {
        "validation": mean(accuracies(found, "validation", rounds[-1]).values()),
        "curve": [(number, mean(accuracies(found, "test", number).values())) for number in rounds],
        "clients": {str(client): metrics for client, metrics in last.items()},
        "uploaded": sum(each["up"] for each in traffic),
        "downloaded": sum(each["down"] for each in traffic),
        "agreement": expert_agreement(agreements),
        "entangled": mean(entangled) if entangled else None,
        "seconds": round_seconds(records),
    }


def accuracies(found: Records, split: str, number: int) -> dict[int, float]:
    """Return each client's accuracy, mean over its classification tasks; clients without such a task are left out."""
    values = {}
    for record in found:
        if record["split"] == split and record["round"] == number:
            value = accuracy(record["metrics"])
            if value is not None:
                values[record["client"]] = value
    return values


def accuracy(metrics: Mapping[str, Mapping[str, float]]) -> float | None:
    """Return the mean accuracy over classification tasks; None where there is none."""
    values = [held["accuracy"] for held in metrics.values() if "accuracy" in held]
    return mean(values) if values else None


def expert_agreement(cosines: Sequence[Mapping[str, float]]) -> float | None:
    """Return the mean cosine between clients' updates of one expert, over experts and the last half of the rounds."""
    late = cosines[len(cosines) // 2 :]
    values = [value for held in late for component, value in held.items() if component.startswith("expert.")]
    return mean(values) if values else None


AllFound = Mapping[str, Sequence[Found]]
"""Label -> what each seed found."""


def finals(found: Sequence[Found]) -> list[float]:
    """Return each seed's mean accuracy after the last round."""
    return [each["curve"][-1][1] for each in found]


def results_table(scenario: str, found: AllFound) -> str:
    """Accuracy, generation, what travelled and the size of models by method."""
    rows = []
    best = max(found, key=lambda label: mean(finals(found[label])))
    for label, runs in found.items():
        text = in_percent(finals(runs))
        counts = sizes(scenario, label, matching_ratio(scenario) if WIDE in CONTENDERS[label] else None)
        rows.append(
            [
                label,
                f"**{text}**" if label == best else text,
                in_points([ours - alone for ours, alone in zip(finals(runs), finals(found[LOCAL]), strict=True)]),
                f"{mean(each['uploaded'] + each['downloaded'] for each in runs) / 1e6:.0f}",
                f"{counts['server'] / 1e3:,.0f}",
                f"{100 * counts['client_mean'] / counts['server']:.0f} %",
                f"{mean(each['seconds'] for each in runs):.1f}",
            ]
        )
    head = ["", "accuracy", "over Local", "MB sent", "parameters (thousands)", "a client's share", "seconds a round"]
    return table(head, rows)


def in_points(values: Sequence[float]) -> str:
    """Write mean and range of differences, in points of a percent."""
    return f"{100 * mean(values):+.1f} ({100 * min(values):+.1f} to {100 * max(values):+.1f})"


def generation_table(found: AllFound) -> str:
    """Quality of what is generated, by method and task; mean over clients and seeds."""
    metrics = next(iter(found.values()))[0]["clients"].values()
    tasks = sorted({task for held in metrics for task, values in held.items() if "psnr" in values})
    rows = []
    for label, runs in found.items():
        cells = []
        for task in tasks:
            held = [client[task] for each in runs for client in each["clients"].values() if task in client]
            cells += [f"{mean(client[name] for client in held):.4g}" for name in QUALITIES]
        rows.append([label, *cells])
    return table(["", *(f"{task}: {name}" for task in tasks for name in QUALITIES.values())], rows)


def rows_of(scenario: str) -> list[tuple[str, list[int]]]:
    """Return a name of each group of clients with its clients' numbers."""
    groups = config.load(EXAMPLES / f"{scenario}.yaml").resolved["scenario"]["groups"]
    named, first = [], 0
    for number, group in enumerate(groups, start=1):
        text = f"{number}: {group['domain']} {'+'.join(group['modalities'])} → {'+'.join(group['tasks'])}"
        named.append((text, list(range(first, first + group["clients"]))))
        first += group["clients"]
    return named


def sizes_table(scenario: str) -> str:
    """Parameters of the server and a client's share of them, by grid: measured, in this size and that of the slides."""
    rows = []
    for size in (scenario, f"{scenario}_paper_size"):
        for grid in ("pairs", "axes", "module"):
            gate = {} if grid != "module" else {"model.gate": "uniform"}
            few = {"data.parts.av.limit": 600, "data.parts.fm.limit": 300}
            changes = {"model.expert_grid": grid, "method.disentanglement": "none", **gate, **few}
            counts = parameters(build_world(config.load(EXAMPLES / f"{size}.yaml", changes)))
            share = 100 * counts["client_mean"] / counts["server"]
            rows.append([f"{size}, `{grid}`", f"{counts['server']:,.0f}", f"{share:.1f} %", f"{share / 4:.1f} %"])
    return table(["", "server", "average client / server", "divided by 4"], rows)


def groups_table(scenario: str, found: AllFound) -> str:
    """Accuracy of each row of the scenario by method."""
    rows = []
    for name, clients in rows_of(scenario):
        if accuracy(found[LOCAL][0]["clients"][str(clients[0])]) is None:
            continue
        cells = [
            in_percent([mean(accuracy(each["clients"][str(client)]) or 0.0 for client in clients) for each in runs])
            for label, runs in found.items()
            if label in METHODS
        ]
        rows.append([name, *cells])
    return table(["", *METHODS], rows)


def transfer_table(scenario: str, found: AllFound) -> str:
    """Who gains and who loses against local training of the same network with the same seed, by row of the scenario."""
    rows = []
    for name, clients in rows_of(scenario):
        for metric, scale, unit in (("accuracy", 100.0, "points"), ("psnr", 1.0, "dB")):
            cells = [transfer(found[label], found[alone_of(label)], clients, metric, scale) for label in SHARING]
            if all(cells):
                rows.append([f"{name} ({unit})", *cells])
    return table(["", *SHARING], rows)


def alone_of(label: str) -> str:
    """Name the local training of a method's network."""
    return LOCAL_EXPERTS if label == OURS else LOCAL


def transfer(runs: Sequence[Found], alone: Sequence[Found], clients: Sequence[int], metric: str, scale: float) -> str:
    """Write the mean gain of some clients in a metric, and how many lose by more than the spread over seeds.

    Empty where they have no task with this metric.
    """
    gains = []
    for client in map(str, clients):
        tasks = [task for task, held in alone[0]["clients"][client].items() if metric in held]
        if not tasks:
            return ""
        gains.append(
            [
                scale
                * mean(one["clients"][client][task][metric] - other["clients"][client][task][metric] for task in tasks)
                for one, other in zip(runs, alone, strict=True)
            ]
        )
    losers = sum(mean(held) < -stdev(held) for held in gains)
    return f"{mean(value for held in gains for value in held):+.1f} ({losers} of {len(gains)} lose)"


def purification_table(found: AllFound) -> str:
    """What the disentanglement loss does to the latents and to the agreement of clients' updates."""
    rows = []
    for label, runs in found.items():
        if all(each["agreement"] is not None and each["entangled"] is not None for each in runs):
            cosine, entangled = ([f"{each[key]:.3f}" for each in runs] for key in ("agreement", "entangled"))
            rows.append([label, " / ".join(entangled), " / ".join(cosine)])
    return table(["", "mean squared cosine of latents", "mean cosine of clients' updates of an expert"], rows)


def stand_in_table(sweep: Sweep) -> str:
    """Results by task on the stand-in for scenario 2, all methods with one learning rate."""
    rows = []
    for label, changes in METHODS.items():
        runs = sweep.seeds(Plan(STAND_IN, "", label, changes), STAND_IN_RATE)
        row = [label]
        for task, metric, scale, digits in STAND_IN_TASKS:
            values = [
                scale * mean(held[task][metric] for held in each["clients"].values() if task in held) for each in runs
            ]
            row.append(f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}")
        rows.append([*row, f"{mean(each['uploaded'] + each['downloaded'] for each in runs) / 1e6:.0f}"])
    return table(
        ["", *(f"{task}: {name}" for (task, *_), name in zip(STAND_IN_TASKS, NAMES, strict=True)), "MB sent"], rows
    )


def page(runs: Path, scenarios: Sequence[str]) -> str:
    """Run everything and return the page."""
    sweep = Sweep(runs, experiment_of, digest)
    parts = [
        "# DisentAFL: asymmetrical knowledge transfer",
        f"Generated by `python tools/disentafl.py` with polyfed {polyfed.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, from the experiments in `examples/disentafl`. One of the runs by hand:",
        "```bash\npolyfed run examples/disentafl/scenario1.yaml\n```",
        "DisentAFL here is a **reconstruction** from the abstract, the slides and a third party's re-implementation. "
        "Router: ownership; grid: pairs of modality and task; beta 0.5; unless a row says otherwise. Accuracy is the "
        "mean over clients that classify of the mean over their classification tasks, on their own test samples after "
        f"the last round, in percent, with mean ± standard deviation over {len(SEEDS)} seeds. All methods see the same "
        "samples as often. Baselines use the plain network of the same width; *wide* ones have hidden layers that "
        "make it as large as the mixture of experts, and the learning rate of the narrow ones. FedAvg averages the "
        "union of all models naively (`missing: dilute`); the bytes given for it are of the components that clients "
        "use, though naive clients would hold and send the whole union. On the plain network DisentAFL is "
        "Multi-FedAvg, bit for bit. Pictures and spectrograms have 28 × 28 values here.",
    ]
    for scenario in (name for name in scenarios if name != STAND_IN):
        rates = rates_of(scenario, sweep)
        found = {plan.label: sweep.seeds(plan, rates[varied(plan.label)]) for plan in contenders(scenario)}
        parts += [
            f"## {scenario}",
            results_table(scenario, found),
            "### Sizes",
            "Parameters in use; the slides say 22M on the server, a client's share of 63 % on average, and 15 % with "
            "quantisation, which we read as 8 bits in place of 32.",
            sizes_table(scenario),
            "### By row of the scenario",
            groups_table(scenario, found),
            "### Who gains, who loses",
            "By how much clients are better than by local training of the same network (DisentAFL: the mixture of "
            "experts) with the same seed; mean over their tasks, clients and seeds. A client loses if its mean over "
            "the seeds is below zero by more than one standard deviation over seeds.",
            transfer_table(scenario, found),
            "### Generation",
            generation_table(found),
            "### Purification",
            "One figure per seed, of the last round and of the later half of the rounds. Updates are what a round of "
            "local training changes; every expert that at least two clients hold weighs alike.",
            purification_table(found),
            "Learning rates chosen: " + ", ".join(f"{label} {rate:g}" for label, rate in rates.items()) + ".",
        ]
    if STAND_IN in scenarios:
        parts += [
            "## uci_har",
            "The groups of scenario 2 (34 clients, ρ = 0.5) on UCI HAR: a stand-in for its structure, as the original "
            f"data cannot be downloaded. Learning rate {STAND_IN_RATE:g} for all, 20 rounds; mean over the clients "
            "with the task, ± standard deviation over seeds.",
            stand_in_table(sweep),
        ]
    parts += ["## What was published", PUBLISHED.strip()]
    notes = ROOT / "docs" / "results" / "disentafl.notes.md"
    if notes.exists():
        parts.append(notes.read_text(encoding="utf-8").strip())
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    write_page("disentafl", __doc__, dict.fromkeys(SCENARIOS), page)
