"""Synthetic run folders: small, made up, in the form a run leaves behind."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import yaml

from polyfed.rng import numpy_generator

GROUPS = (("image",), ("audio",), ("audio", "image"))
LEVEL = {"local": 0.80, "fedavg": 0.86, "fedprox": 0.88}


def write_run(  # one synthetic run has this many knobs
    folder: Path,
    *,
    method: str = "fedavg",
    seed: int = 0,
    rounds: int = 5,
    clients: int = 6,
    tasks: tuple[str, ...] = ("digit",),
    baseline: bool = False,
    refused: int = 0,
    name: str = "demo",
    options: dict[str, Any] | None = None,
    evaluate: bool = True,
    fraction: float = 0.6,
) -> Path:
    """Write experiment.yaml, records.jsonl and summary.json of a made-up run."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = numpy_generator("synthetic run", method, seed)
    cards = [
        {
            "id": k,
            "name": f"client {k}",
            "modalities": list(GROUPS[k % 3]),
            "tasks": list(tasks),
            "examples": 80 + 7 * k,
        }
        for k in range(clients)
    ]
    skill = {k: 0.02 * float(draw.standard_normal()) + (0.0, -0.12, 0.07)[k % 3] for k in range(clients)}

    def accuracy(client: int, number: int, level: float) -> float:
        grown = 0.1 + (level + skill[client] - 0.1) * (1 - math.exp(-4 * number / max(rounds, 1)))
        return round(min(max(grown + 0.02 * float(draw.standard_normal()), 0.0), 1.0), 4)

    def metrics(client: int, number: int, level: float) -> dict[str, dict[str, float]]:
        found = {}
        for index, task in enumerate(tasks):
            value = accuracy(client, number, level - 0.06 * index)
            found[task] = {"accuracy": value, "loss": round(2.3 * (1 - value), 4)}
        return found

    lines, last = _records(cards, metrics, draw, method, rounds, tasks, evaluate, fraction)
    refusals = [
        {"round": 1 + i, "client": i % clients, "component": "encoder.image", "reason": "NaN in weight"}
        for i in range(refused)
    ]
    lines += [{"kind": "refused", **each} for each in refusals]
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ended = [{**card, "metrics": last.get(card["id"], {})} for card in cards]
    alone = [{**card, "metrics": metrics(card["id"], rounds, LEVEL["local"])} for card in cards]
    totals = {
        way: sum(sum(line["bytes"][way].values()) for line in lines if line["kind"] == "client")
        for way in ("up", "down")
    }
    summary = {
        "polyfed": "0.1.0",
        "experiment": name,
        "method": method,
        "seed": seed,
        "rounds": rounds,
        "wall_seconds": 12.3 + seed,
        "bytes": totals,
        "parameters": {"server": 21012, "client_mean": 13400.5},
        "tasks": by_task(ended),
        "clients": ended,
        "refused": refusals,
        "digest": sha256(repr((method, name, seed, rounds, options)).encode()).hexdigest(),
        "best": {"round": rounds, "split": "validation", "score": 0.9, "tasks": by_task(ended)},
        "baseline": {"method": "local", "tasks": by_task(alone), "clients": alone} if baseline else None,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    experiment = {
        "version": 1,
        "name": name,
        "seed": seed,
        "rounds": rounds,
        "data": {"name": "avdigits"},
        "scenario": {
            "clients": clients,
            "partition": {"name": "dirichlet", "alpha": 0.5},
            "modalities": {"name": "groups"},
            "tasks": {"name": "all"},
            "validation": 0.15,
        },
        "model": {"name": "modular", "width": 32},
        "method": {"name": method, **(options or {})},
        "select": {"name": "fraction", "fraction": fraction},
        "train": {"optimizer": "sgd", "lr": 0.1, "epochs": 2, "batch_size": 16},
        "engine": {"device": "cpu"},
        "resolved_with": {"polyfed": "0.1.0", "torch": "2.13.0", "python": "3.11.9"},
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))
    return folder


def _records(
    cards: list[dict[str, Any]],
    metrics: Callable[[int, int, float], dict[str, dict[str, float]]],
    draw: Any,
    method: str,
    rounds: int,
    tasks: tuple[str, ...],
    evaluate: bool,
    fraction: float,
) -> tuple[list[dict[str, Any]], dict[int, dict[str, dict[str, float]]]]:
    lines: list[dict[str, Any]] = []
    last: dict[int, dict[str, dict[str, float]]] = {}
    for number in range(rounds + 1):
        cohort = [card for card in cards if number and (card["id"] % 3 == number % 3 or draw.random() < fraction)]
        silent = cohort[:1] if number % 7 == 5 else []
        for card in (card for card in cohort if card not in silent):
            held = {f"encoder.{m}": 40_000 for m in card["modalities"]}
            travelled = {**held, "fusion": 9_000, **{f"head.{task}": 2_600 for task in tasks}, "envelope": 420}
            loss = round(2.2 * math.exp(-3 * number / rounds) + 0.1 * float(draw.random()) + 0.2, 4)
            lines.append(
                {
                    "kind": "client",
                    "round": number,
                    "exchange": 0,
                    "step": "train",
                    "client": card["id"],
                    "modalities": card["modalities"],
                    "examples": card["examples"],
                    "numbers": {"loss": loss, **{f"loss.{task}": loss / len(tasks) for task in tasks}, "steps": 8},
                    "bytes": {"up": travelled, "down": {name: 2 * size for name, size in travelled.items()}},
                    "seconds": 0.01,
                }
            )
        for card in cards if evaluate else []:
            for split in ("validation", "test"):
                last[card["id"]] = metrics(card["id"], number, LEVEL[method])
                counts = dict.fromkeys(tasks, 30)
                entry = {"client": card["id"], "examples": counts, "metrics": last[card["id"]]}
                lines.append({"kind": "evaluation", "round": number, "split": split, **entry})
        if number:
            ids = [card["id"] for card in cohort]
            replied = [card["id"] for card in cohort if card not in silent]
            size = {"up": 60_000 * len(ids), "down": 120_000 * len(ids)}
            line = {"kind": "round", "round": number, "cohort": ids, "replied": replied, "seconds": 0.4, "bytes": size}
            lines.append(line)
    return lines, last


def by_task(clients: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Average the clients' metrics as a run's summary does."""
    found: dict[str, dict[str, Any]] = {}
    for task, metric in {(t, m): None for c in clients for t, held in c["metrics"].items() for m in held}:
        values = [client["metrics"][task][metric] for client in clients]
        groups = {"+".join(client["modalities"]): None for client in clients}
        means = {
            group: fmean(c["metrics"][task][metric] for c in clients if "+".join(c["modalities"]) == group)
            for group in groups
        }
        spread = stdev(values) if len(values) > 1 else 0.0
        found.setdefault(task, {})[metric] = {"mean": fmean(values), "std": spread, "by_modalities": means}
    return found


@pytest.fixture
def make_run() -> Callable[..., Path]:
    """Return the writer of synthetic runs."""
    return write_run
