"""Vehicle Sensor (SensIT): which of two vehicles drives by, from what 23 sensor nodes heard and felt.

Source: Duarte and Hu, "Vehicle classification in distributed sensor networks", Journal of Parallel and Distributed
Computing 64, 2004. The set is handed out as text files or as a Matlab file; its user makes one ``.npz`` file of plain
arrays of these (docs/datasets.md), so that no further library is needed to read it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from polyfed.data.arrays import Array, check_range, read_npz, same_length
from polyfed.data.columns import TensorColumn
from polyfed.data.dataset import Dataset, Root
from polyfed.data.samples import Table
from polyfed.data.schema import Modality, Task
from polyfed.data.source import Layout, locate
from polyfed.errors import UserError

LAYOUTS = (Layout("packed", (("vehicle_sensor.npz",),)),)
ARRAYS = {"audio": "acoustic", "seismic": "seismic"}  # by modality; ``audio`` shares knowledge with that of other sets
TRAINING = 0.75

Features = npt.NDArray[np.float32]
Rows = npt.NDArray[np.bool_]


def vehicle_sensor(root: Root) -> Dataset:
    """Two kinds of vehicles in 23,000 passages, recorded by the microphones and geophones of 23 sensor nodes.

    Modalities ``audio`` (50,) and ``seismic`` (50,): spectral features. Task ``vehicle`` (2 classes); field ``node``.
    Of every node the first 75 % of the rows are training rows and the rest are test rows, in the order of the file;
    each feature is standardised by the node's own training rows.
    """
    (path,) = locate("Vehicle Sensor", "vehicle-sensor", root, LAYOUTS).paths
    read = read_npz(path, {**dict.fromkeys((*ARRAYS.values(), "label"), "fiu"), "node": "iu"})
    if read["node"].ndim != 1 or not read["node"].size:
        raise UserError(f"{path}: array 'node' has the shape {read['node'].shape}, expected (rows,)")
    same_length(path, read, len(read["node"]), ("label", "node"))
    node, label = read["node"].astype(np.int64), checked_label(path, read["label"])
    training = first_rows(path, node)
    inputs = {
        name: standardised(checked(path, array, read[array], len(node)), node, training)
        for name, array in ARRAYS.items()
    }

    def table(chosen: Rows) -> Table:
        return Table(
            {name: TensorColumn(torch.from_numpy(values[chosen])) for name, values in inputs.items()},
            {"vehicle": TensorColumn(torch.from_numpy(label[chosen]))},
            {"node": torch.from_numpy(node[chosen])},
        )

    return Dataset(
        "vehicle-sensor",
        {name: Modality(name, "vector", values.shape[1:]) for name, values in inputs.items()},
        {"vehicle": Task("vehicle", "classification", classes=2)},
        table(training),
        table(~training),
    )


def checked(path: Path, name: str, values: Array, rows: int) -> Array:
    """Refuse features of another shape or that are not finite."""
    if values.ndim != 2 or len(values) != rows or not values.size:
        raise UserError(f"{path}: array {name!r} has the shape {values.shape}, expected ({rows}, features)")
    wrong = ~np.isfinite(values).all(axis=1)
    if wrong.any():
        raise UserError(f"{path}: array {name!r}, row {int(wrong.argmax())} holds a value that is not finite")
    check_range(path, name, values)
    return values


def checked_label(path: Path, label: Array) -> npt.NDArray[np.int64]:
    """Return the labels as 0 and 1; they may be -1 and 1."""
    found = set(np.unique(label).tolist())
    if not (found <= {-1, 1} or found <= {0, 1}):
        wrong = ~np.isin(label, (-1, 1) if -1 in found else (0, 1))
        row = int(wrong.argmax())
        raise UserError(f"{path}: array 'label', row {row} is {label[row]:g}, expected -1 and 1, or 0 and 1")
    return (label > 0).astype(np.int64)


def first_rows(path: Path, node: npt.NDArray[np.int64]) -> Rows:
    """Mark the first 75 % (rounded down) of each node's rows, (rows,)."""
    order = np.argsort(node, kind="stable")
    values, first, count = np.unique(node[order], return_index=True, return_counts=True)
    if count.min() < 2:
        raise UserError(
            f"{path}: node {values[count.argmin()]} has one row, but needs two or more: some to train on, some to test"
        )
    rank = np.arange(len(node)) - np.repeat(first, count)
    found = np.empty(len(node), dtype=bool)
    found[order] = rank < np.repeat(np.floor(TRAINING * count), count)
    return found


def standardised(values: Array, node: npt.NDArray[np.int64], training: Rows) -> Features:
    """Standardise each feature by mean and deviation of its node's training rows; a constant becomes 0."""
    found = np.empty(values.shape, dtype=np.float32)
    for each in np.unique(node):
        mine = node == each
        known = values[mine & training].astype(np.float64)
        deviation = known.std(0)
        found[mine] = (values[mine] - known.mean(0)) / np.where(deviation > 0, deviation, 1.0)
    return found
