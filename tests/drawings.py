"""A small folder of samples with generation tasks, and an experiment on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from polyfed import rng
from polyfed.experiment import config
from polyfed.experiment.config import Experiment

ROWS = 60
PARTS: dict[str, dict[str, dict[str, Any]]] = {
    "modalities": {
        "photo": {"kind": "image", "shape": [3, 4, 6], "array": "photo.npy"},
        "sound": {"kind": "audio", "shape": [1, 5, 4], "array": "sound.npy"},
        "steps": {"kind": "sensor", "shape": [2, 5], "array": "steps.npy"},
    },
    "tasks": {
        "sign": {"kind": "classification", "classes": 2},
        "picture": {"kind": "generation", "shape": [1, 4, 4], "array": "picture.npy"},
        "voice": {"kind": "generation", "shape": [1, 4, 3], "array": "voice.npy", "seconds": 0.5},
    },
}
SETS = [["photo"], ["sound"], ["sound", "photo", "steps"], ["photo"]]
TASKS = [["picture", "sign"], ["voice"], ["picture", "voice"], ["picture", "sign"]]


def write_drawings(folder: Path) -> Path:
    """Write the samples; ``voice`` is in decibels, everything else from 0 to 1."""
    folder.mkdir(parents=True)
    draw = rng.numpy_generator("drawings")
    for name, part in {**PARTS["modalities"], **PARTS["tasks"]}.items():
        if "array" in part:
            values = draw.random((ROWS, *part["shape"])).astype(np.float32)
            np.save(folder / part["array"], -80 * values if name == "voice" else values)
    (folder / "dataset.yaml").write_text(yaml.safe_dump({"name": "drawings", **PARTS}))
    (folder / "samples.csv").write_text("sign\n" + "".join(f"{row % 2}\n" for row in range(ROWS)))
    return folder


def drawing(folder: Path, tasks: list[list[str]] | None = None, **changes: Any) -> Experiment:
    """Return an experiment on these samples with keys such as ``rounds`` changed."""
    chosen = tasks or TASKS
    base = {
        "name": "drawings",
        "rounds": 2,
        "data": {"name": "folder", "path": str(folder), "tasks": sorted({task for held in chosen for task in held})},
        "scenario": {
            "clients": 4,
            "modalities": {"name": "listed", "sets": SETS},
            "tasks": {"name": "listed", "sets": chosen},
        },
        "model": {
            "name": "modular",
            "width": 8,
            "encoders": {name: {"name": "mlp", "hidden": [8]} for name in ("photo", "sound", "steps")},
        },
        "engine": {"device": "cpu"},
    }
    return config.parse(config.changed(base, {key.replace("__", "."): value for key, value in changes.items()}))
