"""The files of CMU-MOSEI: one ``.npz`` file of plain arrays per split, which its user makes of the published features.

The published features are pickles or HDF5 files, in several versions that name their content differently. polyfed opens
no pickle, since it may run any program; with one conversion by the user (docs/datasets.md) all versions read alike, and
no further library is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from polyfed.data.arrays import Array, check_range, read_npz
from polyfed.data.dataset import Root
from polyfed.data.source import Layout, locate
from polyfed.errors import UserError

SPLITS = ("train", "valid", "test")
MODALITIES = ("text", "audio", "video")
LABELS = ("sentiment", "happiness", "sadness", "anger", "surprise", "disgust", "fear")
LAYOUTS = (Layout("packed", tuple((f"cmu_mosei/{split}.npz",) for split in SPLITS)),)
HIGHEST = 3  # of the size of a sentiment, and of an emotion
BLOCK = 512  # rows that are worked on at once, so that no second copy of 1 GB of text is made
SLACK = 1e-4  # means of annotators' scores are stored as float32


@dataclass(frozen=True)
class Part:
    """A split: ``features[m]`` (rows, steps, features of m) as stored; ``labels`` (rows, 7 or 1) as in ``LABELS``."""

    path: Path
    features: dict[str, Array]
    labels: npt.NDArray[np.float64]


def parts(root: Root) -> tuple[Part, Part, Part]:
    """Read train, valid and test; raises UserError where a file is missing, damaged or unlike the others."""
    found = locate("CMU-MOSEI", "cmu-mosei", root, LAYOUTS)
    train, valid, test = (read_part(path) for path in found.paths)
    for path, part in zip(found.paths[1:], (valid, test), strict=True):
        for name in MODALITIES:
            _check_alike(path, name, part.features[name].shape, train.features[name].shape)
        _check_alike(path, "labels", part.labels.shape, train.labels.shape)
    return train, valid, test


def read_part(path: Path) -> Part:
    """Read one split; raises UserError naming the file and the array for whatever does not fit."""
    read = read_npz(path, dict.fromkeys((*MODALITIES, "labels"), "fiu"))
    labels = read.pop("labels")
    rows = len(labels) if labels.ndim else 0
    columns = labels.size // rows if rows else 0
    if columns not in (1, len(LABELS)):
        raise UserError(
            f"{path}: array 'labels' has the shape {labels.shape}, expected (rows, {len(LABELS)}):"
            f" {', '.join(LABELS)}; or (rows, 1): sentiment alone"
        )
    for name, values in read.items():
        if values.ndim != 3 or len(values) != rows or not values.size:
            raise UserError(
                f"{path}: array {name!r} has the shape {values.shape}, expected ({rows}, steps, features), as many"
                " rows as 'labels'"
            )
        for row in range(0, rows, BLOCK):
            check_range(path, name, values[row : row + BLOCK])
    return Part(path, read, _checked(path, labels.reshape(rows, columns).astype(np.float64)))


def _check_alike(path: Path, name: str, shape: tuple[int, ...], first: tuple[int, ...]) -> None:
    """Refuse an array whose rows are shaped otherwise than those of the training split."""
    if shape[1:] != first[1:]:
        expected = ", ".join(map(str, first[1:]))
        raise UserError(f"{path}: array {name!r} has the shape {shape}, expected (rows, {expected}) as in train.npz")


def _checked(path: Path, labels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Refuse scores that cannot be; return them within their bounds."""
    low = np.array([-HIGHEST, *[0] * (labels.shape[1] - 1)])
    sound = (labels >= low - SLACK) & (labels <= HIGHEST + SLACK)
    if not sound.all():
        row, column = np.argwhere(~sound)[0]
        raise UserError(
            f"{path}: array 'labels', row {row}: {LABELS[column]} is {labels[row, column]:g}, expected a number"
            f" {low[column]} to {HIGHEST}"
        )
    return np.clip(labels, low, HIGHEST)
