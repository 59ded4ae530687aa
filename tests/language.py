"""A tiny language model and a small federation of it, for tests."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from polyfed.experiment import config
from polyfed.experiment.config import Experiment
from polyfed.model.tiny_llava import Sizes, save_checkpoint, tiny_llava

SMALL = Sizes(vision_width=16, vision_layers=2, vision_heads=2, text_width=24, text_layers=1, text_heads=2)


def checkpoint(folder: Path) -> str:
    """Write a small checkpoint of drawn weights, once, and return its path."""
    place = folder / "checkpoint"
    if not place.exists():
        save_checkpoint(*tiny_llava(0, SMALL), place)
    return str(place)


@cache
def shared_checkpoint() -> str:
    """Write the small checkpoint for all tests of this process, and return its path."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return checkpoint(Path(folder))


def lawful(**changes: Any) -> Experiment:
    """Return the experiment that methods for language models are held against; ``a__b=1`` sets the key ``a.b``."""
    named = {key.replace("__", "."): value for key, value in changes.items()}
    quick = {"data.examples": 4, "data.test_examples": 1, "train.batch_size": 2, "engine.evaluate_every": 100}
    return experiment(shared_checkpoint(), {"seed": 3, "rounds": 3, **quick, **named})


def experiment(path: str, changes: Mapping[str, object] | None = None) -> Experiment:
    """Return an experiment of nine clients with three tasks and few examples."""
    values = {
        "version": 1,
        "name": "tiny",
        "seed": 0,
        "rounds": 2,
        "data": {"name": "tiny-scenes", "checkpoint": path, "examples": 6, "test_examples": 3},
        "scenario": {"clients": None, "partition": {"name": "natural", "field": "client"}, "validation": 0},
        "model": {"name": "llava", "path": path, "lora": {"rank": 2, "alpha": 4, "dropout": 0.0}, "answer_tokens": 4},
        "method": {"name": "pilot"},
        "train": {"optimizer": "adamw", "lr": 0.01, "epochs": 1, "batch_size": 3},
        "engine": {"workers": 1},
    }
    return config.parse(config.changed(values, changes or {}))
