"""The files of UCI HAR: the packed ``uci_har.npz`` or the original folder of text files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from polyfed.data.arrays import Array, read_npz, same_length
from polyfed.data.dataset import Root
from polyfed.data.source import Layout, locate
from polyfed.errors import UserError

LABELS = ("WALKING", "WALKING_UPSTAIRS", "WALKING_DOWNSTAIRS", "SITTING", "STANDING", "LAYING")
MOVING = 3  # the first labels, those of walking
CHANNELS = tuple(f"{sensor}_{axis}" for sensor in ("body_acc", "body_gyro", "total_acc") for axis in "xyz")
WINDOW = 128  # samples, 2.56 s at 50 Hz; neighbouring windows share half
FOLDERS = ("UCI HAR Dataset", "uci_har/UCI HAR Dataset", "uci_har")
LAYOUTS = (
    Layout("packed", (("uci_har.npz",),)),
    Layout("text", (tuple(f"{folder}/train/Inertial Signals" for folder in FOLDERS),)),
)
Whole = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Recordings:
    """Bouts of continuous movement and the windows cut from them.

    ``signal`` (time, 9) float32 holds the bouts end to end, channels as in ``CHANNELS``, in g and rad/s. Window i is
    ``signal[start[i] : start[i] + 128]`` of bout ``bout[i]``, with ``label`` 0-5 and ``subject`` 1-30, all int64;
    ``uci_test`` (windows,) bool marks the subjects of the original test set.
    """

    signal: npt.NDArray[np.float32]
    start: Whole
    bout: Whole
    label: Whole
    subject: Whole
    uci_test: npt.NDArray[np.bool_]


def recordings(root: Root) -> Recordings:
    """Read the set; raises UserError where it is not found, or a file is damaged or inconsistent."""
    found = locate("UCI HAR", "uci-har", root, LAYOUTS)
    return read_packed(found.paths[0]) if found.layout == "packed" else read_text(found.paths[0].parent.parent)


def read_packed(path: Path) -> Recordings:
    """Read ``uci_har.npz``; raises UserError where it is damaged or inconsistent."""
    rows = ("window_start", "bout", "label", "subject", "uci_test")
    read = read_npz(path, {"signal": "f", **dict.fromkeys(rows, "iu")})
    same_length(path, read, len(read["label"]), rows)
    signal = read["signal"]
    if signal.ndim != 2 or signal.shape[1] != len(CHANNELS) or not np.isfinite(signal).all():
        raise UserError(f"{path}: 'signal' has shape {signal.shape} or values that are not finite, expected (time, 9)")
    _check_rows(path, "window_start", read["window_start"], 0, len(signal) - WINDOW)
    _check_rows(path, "label", read["label"], 0, len(LABELS) - 1)
    start, bout, label, subject, test = (read[name].astype(np.int64) for name in rows)
    return Recordings(signal.astype(np.float32), start, bout, label, subject, test == 1)


def read_text(folder: Path) -> Recordings:
    """Read the original folder: ``{train,test}/Inertial Signals/*.txt``, ``y_*.txt`` and ``subject_*.txt``.

    The files hold overlapping windows. Bouts are recovered from them: a window goes on the bout of the window before
    it where its first half equals that window's second half in every channel, and label and subject are the same.
    """
    parts = [_read_part(folder, part) for part in ("train", "test")]
    windows, label, subject = (np.concatenate([part[i] for part in parts]) for i in range(3))
    uci_test = np.arange(len(label)) >= len(parts[0][1])
    half = WINDOW // 2
    goes_on = np.zeros(len(label), dtype=bool)
    goes_on[1:] = (windows[1:, :half] == windows[:-1, half:]).all(axis=(1, 2))
    for values in (label, subject, uci_test):
        goes_on[1:] &= values[1:] == values[:-1]
    kept = np.ones(windows.shape[:2], dtype=bool)
    kept[goes_on, :half] = False  # these samples stand in the window before already
    start = np.cumsum(kept.sum(axis=1)) - WINDOW
    return Recordings(windows[kept].astype(np.float32), start, np.cumsum(~goes_on) - 1, label, subject, uci_test)


def _read_part(folder: Path, part: str) -> tuple[npt.NDArray[np.float64], Whole, Whole]:
    """Read windows (windows, 128, 9), labels 0-5 and subjects of ``train`` or ``test``."""
    signals = folder / part / "Inertial Signals"
    channels = [_numbers(signals / f"{name}_{part}.txt", WINDOW) for name in CHANNELS]
    label_file, subject_file = folder / part / f"y_{part}.txt", folder / part / f"subject_{part}.txt"
    label, subject = _numbers(label_file, 1)[:, 0], _numbers(subject_file, 1)[:, 0]
    files = [*(signals / f"{name}_{part}.txt" for name in CHANNELS), subject_file]
    for path, values in zip(files, [*channels, subject], strict=True):
        if len(values) != len(label):
            raise UserError(f"{path}: has {len(values)} rows, but {label_file} has {len(label)}")
    _check_rows(label_file, "label", label, 1, len(LABELS))
    _check_rows(subject_file, "subject", subject, 1, 30)
    return np.stack(channels, axis=2), label.astype(np.int64) - 1, subject.astype(np.int64)


def _numbers(path: Path, columns: int) -> npt.NDArray[np.float64]:
    """Read a text table of finite numbers, (rows, columns)."""
    try:
        table: npt.NDArray[Any] = np.loadtxt(path, dtype=np.float64, ndmin=2)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise UserError(f"{path}: not a table of numbers ({error})") from error
    if table.shape[1] != columns or not np.isfinite(table).all():
        raise UserError(
            f"{path}: has {table.shape[1]} columns or values that are not finite, expected {columns} columns"
        )
    return table


def _check_rows(path: Path, name: str, values: Array, low: int, high: int) -> None:
    wrong = (values < low) | (values > high) | (values != np.floor(values))
    if wrong.any():
        row = int(wrong.argmax())
        raise UserError(f"{path}: row {row} has the {name} {values[row]:g}, expected a whole number {low} to {high}")
