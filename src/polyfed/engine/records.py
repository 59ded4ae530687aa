"""records.jsonl: one line per round and client, written as the run goes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from pydantic_core import to_json

from polyfed.errors import UserError, writing

Record = Mapping[str, Any]
Observer = Callable[[Record], None]

BUFFERED = 256  # lines


class Recorder:
    """Appends records to a file (none if ``path`` is None) and shows each to observers; a context manager.

    ``at`` is the length of the file when the checkpoint was written that the run goes on from; what was appended
    afterwards is cut off. Raises UserError where the file is shorter, damaged before that length, or unwritable.
    """

    def __init__(self, path: Path | None, observers: tuple[Observer, ...] = (), *, at: int = 0) -> None:
        self.observers = observers
        self._place = path or Path()
        self._file: BinaryIO | None = None
        self._lines: list[bytes] = []
        if path is not None:
            with writing(path):
                check_start(path, at)
                self._file = path.open("r+b" if path.exists() else "w+b")
                self._file.truncate(at)
                self._file.seek(at)

    def write(self, record: Record) -> None:
        """Append one record; it reaches the file some records later, or with ``flush``.

        Raises ValueError, then or now, if it holds NaN or infinity.
        """
        if self._file is not None:
            self._lines.append(encoded(record))
            if len(self._lines) >= BUFFERED:
                self.flush()
        for observer in self.observers:
            observer(record)

    def flush(self) -> int:
        """Hand everything written to the system; return the length of the file in bytes."""
        if self._file is None:
            return 0
        content = b"".join(self._lines)
        self._lines.clear()
        refuse_constants(content)
        with writing(self._place):
            self._file.write(content)
            self._file.flush()
            return self._file.tell()

    def sync(self) -> None:
        """Have on the disk what was flushed. Any thread may call this."""
        if self._file is not None:
            with writing(self._place):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Have everything on the disk and close the file."""
        if self._file is not None:
            with writing(self._place), self._file:
                self.flush()
                self.sync()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def encoded(record: Record) -> bytes:
    """Return a record as a line of JSON, in which NaN and infinity are not null but the letters ``NaN`` and so on.

    pydantic's writer takes a fifth of the time of the standard library's, which knows how to write texts that are not
    Unicode.
    """
    try:
        return to_json(record, inf_nan_mode="constants") + b"\n"
    except ValueError:
        return json.dumps(record).encode() + b"\n"


def refuse_constants(lines: bytes) -> None:
    """Raise ValueError if lines hold NaN or infinity, which JSON lacks; screening should have kept them out.

    Lines with these letters, which may be part of a name, are looked at more closely. Most have not even the capitals,
    and single bytes are found in no time.
    """
    if (b"N" in lines and b"NaN" in lines) or (b"I" in lines and b"Infinity" in lines):
        for line in lines.splitlines():
            json.loads(line, parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise ValueError(f"a record holds {constant}, which JSON has no way to write")


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
