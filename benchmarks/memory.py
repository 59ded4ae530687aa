"""Peak memory of a process and all it started: proportional set size, which counts shared pages once."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

INTERVAL = 0.05
PROC = Path("/proc")


class Peak:
    """Samples memory while it is entered; ``bytes`` is the largest sum seen."""

    def __init__(self, process: int) -> None:
        self.bytes = 0.0
        self._process = process
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(INTERVAL):
            self.bytes = max(self.bytes, sum(proportional(process) for process in family(self._process)))


def family(process: int) -> set[int]:
    """Return a process and its descendants."""
    children: dict[int, list[int]] = {}
    for folder in PROC.glob("[0-9]*"):
        with suppress(OSError, IndexError, ValueError):
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found, waiting = set(), [process]
    while waiting:
        found.add(waiting.pop())
        waiting += [child for member in list(found) for child in children.get(member, []) if child not in found]
    return found


def proportional(process: int) -> float:
    """Return the proportional set size of a process in bytes; 0 where it has gone."""
    with suppress(OSError):
        for line in (PROC / str(process) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * float(line.split()[1])
    return 0.0
