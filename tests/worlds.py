"""A tiny federation that every method can be held against."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyfed.engine.loop import Outcome
from polyfed.engine.simulator import Deliver, untouched
from polyfed.experiment import config
from polyfed.experiment.config import Experiment
from polyfed.experiment.world import build_world

TINY: Mapping[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "rounds": 3,
    "data": {"name": "avdigits"},
    "scenario": {
        "clients": 4,
        "partition": {"name": "dirichlet", "alpha": 1.0, "minimum": 20},
        "modalities": {"name": "listed", "sets": [["image"], ["audio"], ["audio", "image"], ["image"]]},
        "tasks": {"name": "listed", "sets": [["digit"], ["digit", "parity"], ["parity", "digit"], ["parity"]]},
    },
    "model": {
        "name": "modular",
        "width": 8,
        "encoders": {"image": {"name": "mlp", "hidden": [16]}, "audio": {"name": "mlp", "hidden": [16]}},
    },
    "train": {"lr": 0.05, "batch_size": 64},
    "engine": {"device": "cpu"},
}

EXPERTS: dict[str, Any] = {
    "name": "experts",
    "width": 8,
    "heads": 2,
    "layers": 1,
    "ratio": 2,
    "queries": 2,
    "stems": {"image": {"patch": 4}, "audio": {"patch": 12}},
}
"""A small mixture of experts for the tiny world."""


def tiny(**changes: Any) -> Experiment:
    """Return the tiny experiment with keys such as ``method__name="fedprox"`` changed."""
    return config.parse(config.changed(TINY, {key.replace("__", "."): value for key, value in changes.items()}))


def train(
    experiment: Experiment, folder: Path | None = None, *, resume: bool = False, deliver: Deliver = untouched
) -> Outcome:
    """Train an experiment in this process."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    return build_world(experiment).loop(folder, deliver=deliver).run(resume=resume)
