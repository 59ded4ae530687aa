"""records.jsonl: one line per round and client, written as the run goes."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from polyfed.errors import UserError

Record = Mapping[str, Any]
Observer = Callable[[Record], None]


class Recorder:
    """Appends records to a file (none if ``path`` is None) and shows each to observers."""

    def __init__(self, path: Path | None, observers: tuple[Observer, ...] = (), *, at: int = 0) -> None:
        self.path = path
        self.observers = observers
        self._file = None
        if path is not None:
            self._file = path.open("r+b" if path.exists() else "w+b")
            self._file.truncate(at)
            self._file.seek(at)

    def write(self, record: Record) -> None:
        """Append one record."""
        if self._file is not None:
            try:
                self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
            except OSError as error:
                raise _explained(error, self.path) from error
        for observer in self.observers:
            observer(record)

    def flush(self) -> int:
        """Hand everything to the operating system; return the length of the file in bytes."""
        if self._file is None:
            return 0
        try:
            self._file.flush()
        except OSError as error:
            raise _explained(error, self.path) from error
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _explained(error: OSError, path: Path | None) -> Exception:
    if error.errno == errno.ENOSPC:
        return UserError(f"{path}: the disk is full; the last checkpoint is intact, resume with --resume")
    return error
