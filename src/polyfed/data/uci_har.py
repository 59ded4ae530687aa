"""UCI HAR: human activities from the motion sensors of a smartphone, 30 people, 50 Hz.

Source: Anguita, Ghio, Oneto, Parra and Reyes-Ortiz, "A public domain dataset for human activity recognition using
smartphones", ESANN 2013. Reading the files is in ``uci_har_files``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from polyfed.data.columns import TensorColumn
from polyfed.data.dataset import Dataset, Root
from polyfed.data.samples import Table
from polyfed.data.schema import Modality, Task
from polyfed.data.uci_har_files import LABELS, MOVING, WINDOW, Recordings, recordings

# Mean and standard deviation over the windows of the 21 subjects of the original training set, per axis x, y, z, in g
# and rad/s. They are fixed, so that neither a client's own data nor the test subjects decide how a sample looks.
STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "body": ((-0.0006, -0.0003, -0.0003), (0.1948, 0.1224, 0.1069)),
    "gyroscope": ((0.0005, -0.0008, 0.0001), (0.4068, 0.3819, 0.2557)),
    "total": ((0.8047, 0.0288, 0.0865), (0.4141, 0.3910, 0.3578)),
    "gravity": ((0.8054, 0.0290, 0.0868), (0.3657, 0.3722, 0.3423)),
}
INTENSITY = (-2.7717, 1.6970)  # the same of the intensity, the natural logarithm of a number in g
LEAST_INTENSITY = 1e-3  # g; no window of the published set is below 4.8e-3
MODALITIES: dict[str, dict[str, tuple[str, ...]]] = {
    "two": {"accelerometer": ("body", "total"), "gyroscope": ("gyroscope",)},
    "three": {"body_acceleration": ("body",), "gyroscope": ("gyroscope",), "gravity": ("gravity",)},
}


@dataclass(frozen=True)
class WindowColumn:
    """Windows of one long signal, so that samples that windows share are held once.

    ``signal`` (time, channels) float32; row i is ``signal[start[i] : start[i] + length]``, fetched as
    (channels, length).
    """

    signal: Tensor
    start: Tensor
    length: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return (self.signal.shape[1], self.length)

    @property
    def resident(self) -> bool:
        """In memory."""
        return True

    def __len__(self) -> int:
        return len(self.start)

    def gather(self, rows: Tensor) -> Tensor:
        """Return the named windows, (rows, channels, length)."""
        return self.signal.unfold(0, self.length, 1)[self.start[rows]]


def uci_har(
    root: Root,
    *,
    modalities: Literal["two", "three"] = "two",
    split: Literal["bout", "subject"] = "bout",
    more_tasks: Annotated[bool, Field(description="also the tasks moving and intensity")] = False,
) -> Dataset:
    """Six activities of 30 people in 10,299 windows of 2.56 s (128 samples).

    ``modalities="two"``: ``accelerometer`` (6, 128: body and total acceleration) and ``gyroscope`` (3, 128);
    ``"three"``: ``body_acceleration``, ``gyroscope`` and ``gravity`` (total minus body), (3, 128) each. Values are
    standardised per axis with the fixed numbers in ``STATISTICS``. Task ``activity`` (6 classes); fields ``subject``
    (1-30) and ``bout``.

    With ``more_tasks`` also ``moving`` (2 classes: the three ways of walking, or none) and ``intensity``, a number: the
    logarithm of the root mean square of the body acceleration in the window, standardised likewise by ``INTENSITY``.
    Who holds the body acceleration can work it out; from gravity and rotation it has to be learned.

    ``split="bout"`` leaves the test part to be cut from each client's own bouts: neighbouring windows of a bout share
    half their samples, so a split over windows would leak. ``split="subject"`` tests on the nine subjects of the
    original test set.
    """
    read = recordings(root)
    everything, unseen = np.ones_like(read.uci_test), read.uci_test
    by_subject = split == "subject"
    columns = {name: standardised(read, groups) for name, groups in MODALITIES[modalities].items()}
    tasks = [Task("activity", "classification", classes=len(LABELS), labels=LABELS)]
    targets = {"activity": torch.from_numpy(read.label)}
    if more_tasks:
        tasks += [
            Task("moving", "classification", classes=2, labels=("still", "moving")),
            Task("intensity", "regression"),
        ]
        targets |= {"moving": torch.from_numpy((read.label < MOVING).astype(np.int64)), "intensity": intensity(read)}
    return Dataset(
        name="uci-har",
        modalities={name: Modality(name, "sensor", (signal.shape[1], WINDOW)) for name, signal in columns.items()},
        tasks={task.name: task for task in tasks},
        train=_table(read, columns, targets, ~unseen if by_subject else everything),
        test=_table(read, columns, targets, unseen) if by_subject else None,
        unit="bout",
    )


def standardised(read: Recordings, groups: tuple[str, ...]) -> Tensor:
    """Return the signal of the named groups of three axes, (time, 3 per group) float32, by ``STATISTICS``."""
    body, gyroscope, total = read.signal[:, :3], read.signal[:, 3:6], read.signal[:, 6:]
    held = {"body": body, "gyroscope": gyroscope, "total": total, "gravity": total - body}
    parts = []
    for name in groups:
        mean, deviation = (np.array(numbers, dtype=np.float32) for numbers in STATISTICS[name])
        parts.append((held[name] - mean) / deviation)
    return torch.from_numpy(np.concatenate(parts, axis=1))


def intensity(read: Recordings) -> Tensor:
    """Return the logarithm of the root mean square body acceleration of each window, standardised, (windows,)."""
    squares = np.square(read.signal[:, :3].astype(np.float64)).sum(axis=1)
    until = np.concatenate([[0.0], np.cumsum(squares)])
    strength = np.sqrt(np.maximum(until[read.start + WINDOW] - until[read.start], 0) / WINDOW)
    mean, deviation = INTENSITY
    scaled = (np.log(np.maximum(strength, LEAST_INTENSITY)) - mean) / deviation
    return torch.from_numpy(scaled.astype(np.float32))


def _table(
    read: Recordings, signals: dict[str, Tensor], targets: dict[str, Tensor], chosen: npt.NDArray[np.bool_]
) -> Table:
    start = torch.from_numpy(read.start[chosen])
    return Table(
        inputs={name: WindowColumn(signal, start, WINDOW) for name, signal in signals.items()},
        targets={name: TensorColumn(values[torch.from_numpy(chosen)]) for name, values in targets.items()},
        fields={"subject": torch.from_numpy(read.subject[chosen]), "bout": torch.from_numpy(read.bout[chosen])},
    )
