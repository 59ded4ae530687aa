"""Made-up files laid out as ``cmu-mosei`` and ``vehicle-sensor`` want them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SIZES = {"text": 6, "audio": 5, "video": 4}
STEPS = 8


def mosei_part(rows: int, seed: int) -> dict[str, npt.NDArray[Any]]:
    """One split: random features with two steps of padding in front, and scores as means of three annotators'."""
    draw = np.random.default_rng(seed)
    part: dict[str, npt.NDArray[Any]] = {}
    for name, size in SIZES.items():
        part[name] = draw.normal(2, 3, size=(rows, STEPS, size)).astype(np.float32)
        part[name][:, :2] = 0
    sentiments = draw.integers(-9, 10, size=(rows, 1)) / 3
    part["labels"] = np.concatenate([sentiments, draw.integers(0, 10, size=(rows, 6)) / 3], axis=1)
    return part


def write_mosei(root: Path, rows: int, **changes: Any) -> None:
    """Write the three splits: ``rows``, a quarter of them and a half; ``changes`` are arrays of the test split."""
    (root / "cmu_mosei").mkdir(exist_ok=True)
    for seed, (split, share) in enumerate((("train", 1), ("valid", 4), ("test", 2))):
        part = mosei_part(rows // share, seed)
        np.savez(root / "cmu_mosei" / f"{split}.npz", **(part | changes if split == "test" else part))


def vehicle_rows(nodes: int, rows: int) -> dict[str, npt.NDArray[Any]]:
    """Rows of every node, nodes in turn; sound and vibration tell the vehicle, each node at a level of its own."""
    draw = np.random.default_rng(0)
    node = np.tile(np.arange(1, nodes + 1), rows)
    label = draw.integers(0, 2, size=len(node)) * 2 - 1
    level = (node + label)[:, None]
    features = [draw.normal(level, 1, size=(len(node), size)).astype(np.float32) for size in (10, 7)]
    return {"acoustic": features[0], "seismic": features[1], "label": label, "node": node}


def write_vehicle(root: Path, nodes: int, rows: int, **changes: Any) -> None:
    """Write the file; ``changes`` are arrays in place of those made up."""
    np.savez(root / "vehicle_sensor.npz", **(vehicle_rows(nodes, rows) | changes))
