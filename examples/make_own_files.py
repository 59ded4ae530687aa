"""Write a small folder of files in the form the dataset ``folder`` reads: made-up machines at six sites.

Each machine has a picture (an .npy file of its own) and a vibration (a row of one array). Two sites have no camera, and
some pictures are missing elsewhere. The tasks are the machine's state and its age. docs/datasets.md has the format.

    python examples/make_own_files.py own_files
    polyfed run examples/own_files.yaml
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np

DESCRIPTION = """\
modalities:
  picture: {kind: image, shape: [1, 16, 16]}
  vibration: {kind: sensor, shape: [2, 64], array: vibration.npy}
tasks:
  state: {kind: classification, labels: [fine, worn, broken]}
  age: {kind: regression}
"""
STATES = ("fine", "worn", "broken")
SITES = ("north", "south", "east", "west", "harbour", "airport")
WITHOUT_CAMERA = ("harbour", "airport")
MACHINES = 100
"""Machines per site."""


def write(folder: Path) -> None:
    draw = np.random.default_rng(0)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    rows, vibrations = [], []
    for number, site in enumerate(site for site in SITES for _ in range(MACHINES)):
        state, age = int(draw.integers(3)), float(draw.uniform(0, 2))
        vibrations.append(vibration(draw, state, age))
        file = ""
        if site not in WITHOUT_CAMERA and draw.random() > 0.1:
            file = f"pictures/{number}.npy"
            np.save(folder / file, picture(draw, state))
        rows.append([file, STATES[state], f"{age:.3f}", site])
    np.save(folder / "vibration.npy", np.stack(vibrations).astype(np.float32))
    (folder / "dataset.yaml").write_text(DESCRIPTION, encoding="utf-8")
    with (folder / "samples.csv").open("w", newline="", encoding="utf-8") as sheet:
        csv.writer(sheet).writerows([["picture", "state", "age", "site"], *rows])


def picture(draw: np.random.Generator, state: int) -> np.ndarray:
    """A bar in noise that leans the further the worse the state is, (1, 16, 16)."""
    y, x = np.mgrid[-1:1:16j, -1:1:16j]
    bar: np.ndarray = np.exp(-20 * (x - 0.6 * state * y) ** 2)
    return (bar + draw.normal(scale=0.8, size=(16, 16)))[None].astype(np.float32)


def vibration(draw: np.random.Generator, state: int, age: float) -> np.ndarray:
    """A wave on two axes that grows with age and hums higher the worse the state is, (2, 64)."""
    time = np.linspace(0, 1, 64)
    wave: np.ndarray = (0.5 + age) * np.sin(2 * np.pi * ((4 + 2 * state) * time + draw.random((2, 1))))
    return wave + draw.normal(scale=1.0, size=(2, 64))


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "own_files"))
