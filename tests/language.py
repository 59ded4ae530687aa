"""A tiny language model and a small federation of it, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from polyfed.experiment import config
from polyfed.experiment.config import Experiment
from polyfed.model.tiny_llava import Sizes, save_checkpoint, tiny_llava

SMALL = Sizes(vision_width=16, vision_layers=2, vision_heads=2, text_width=24, text_layers=2, text_heads=2)


def checkpoint(folder: Path) -> str:
    """Write a small checkpoint of drawn weights, once, and return its path."""
    place = folder / "checkpoint"
    if not place.exists():
        save_checkpoint(*tiny_llava(0, SMALL), place)
    return str(place)


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
