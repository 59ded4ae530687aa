"""records.jsonl: one line per round and client, written as the run goes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from polyfed.errors import UserError, writing

Record = Mapping[str, Any]
Observer = Callable[[Record], None]


class Recorder:
    """Appends records to a file (none if ``path`` is None) and shows each to observers.

    ``at`` is the length of the file when the checkpoint was written that the run goes on from; what was appended
    afterwards is cut off. Raises UserError where the file is shorter, damaged before that length, or unwritable.
    """

    def __init__(self, path: Path | None, observers: tuple[Observer, ...] = (), *, at: int = 0) -> None:
        self.observers = observers
        self._place = path or Path()
        self._file: BinaryIO | None = None
        if path is not None:
            with writing(path):
                check_start(path, at)
                self._file = path.open("r+b" if path.exists() else "w+b")
                self._file.truncate(at)
                self._file.seek(at)

    def write(self, record: Record) -> None:
        """Append one record."""
        if self._file is not None:
            with writing(self._place):
                self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
        for observer in self.observers:
            observer(record)

    def flush(self) -> int:
        """Have everything written to the disk; return the length of the file in bytes."""
        if self._file is None:
            return 0
        with writing(self._place):
            self._file.flush()
            os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with writing(self._place):
                self._file.close()


def check_start(path: Path, length: int) -> None:
    """Raise UserError unless the first ``length`` bytes of the file are whole lines of JSON."""
    if not length:
        return
    remedy = "the run cannot be resumed; put back the file as it was, or start anew with --overwrite"
    if not path.is_file():
        raise UserError(f"{path} is missing, and {remedy}")
    with path.open("rb") as file:
        left, number = length, 0
        while left > 0:
            line, number = file.readline(left), number + 1
            left -= len(line)
            if not _is_record(line):
                raise UserError(f"{path}, line {number}: is not a record polyfed wrote, and {remedy}")


def _is_record(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
