"""P22 of DisentAFL's specification: what it gains where the structure that it looks for is in the data."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from polyfed.data.catalog import DATASETS
from polyfed.experiment import config
from tests.method.planted import planted
from tests.worlds import train

PLAIN = {"expert_grid": "module", "gate": "uniform"}
CLIENTS = [
    {"clients": 2, "modalities": ["a"], "tasks": ["x"]},
    {"clients": 2, "modalities": ["a"], "tasks": ["y"]},
    {"clients": 2, "modalities": ["b"], "tasks": ["x"]},
    {"clients": 1, "modalities": ["a", "b"], "tasks": ["x", "y"]},
    {"clients": 1, "modalities": ["b"], "tasks": ["y"]},
]
SEEDS, ROUNDS = range(3), 10


def accuracy(method: str, seed: int, folder: Path) -> float:
    """Train on a data set of this seed; the mean over the clients of the mean test accuracy over their tasks."""
    model = {"name": "experts", "width": 8, "heads": 2, "layers": 1, "ratio": 2, "queries": 2}
    raw: dict[str, Any] = {
        "name": "planted",
        "seed": seed,
        "rounds": ROUNDS,
        "data": {"name": "planted", "seed": seed},
        "scenario": {"groups": CLIENTS, "partition": {"name": "iid"}, "validation": 0.0},
        "model": model if method == "disentafl" else model | PLAIN,
        "method": {"name": method},
        "train": {"optimizer": "adamw", "lr": 0.02, "epochs": 2, "batch_size": 40},
        "engine": {"device": "cpu", "workers": 1, "evaluate_every": ROUNDS},
    }
    train(config.parse(raw), folder)
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    ends = [line for line in lines if line["kind"] == "evaluation" and line["round"] == ROUNDS]
    found = [line["metrics"] for line in ends if line["split"] == "test"]
    assert len(found) == 8
    return fmean(fmean(task["accuracy"] for task in metrics.values()) for metrics in found)


def test_it_is_as_good_as_multi_fedavg_and_better_than_local_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Measured: 0.844, 0.845 and 0.812; of six seeds 0.832, 0.832 and 0.797, so it is not ahead of Multi-FedAvg.

    With twice the epochs at half the learning rate, of ten seeds: 0.838, 0.833 and 0.800 (ahead in five of the ten).
    """
    monkeypatch.setattr(DATASETS, "_builders", {**DATASETS._builders, "planted": planted})
    monkeypatch.setattr(DATASETS, "_options", dict(DATASETS._options))
    found = {
        method: fmean(accuracy(method, seed, tmp_path / f"{method}{seed}") for seed in SEEDS)
        for method in ("local", "multi-fedavg", "disentafl")
    }
    assert found["local"] > 0.7
    assert found["disentafl"] > found["local"] + 0.015
    assert found["disentafl"] > found["multi-fedavg"] - 0.01
