"""Where the time goes: a timer interrupts the main thread and books the time since the last interrupt.

It is booked to the innermost function whose file or name is in ``RULES``; PyTorch, NumPy and the standard library are
in none, so a matrix product counts for whoever asked for it. Rules go by the place of a file, so that the engine can
change without them.
"""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any

TRAINING, BATCHING, REDUCTION = "training", "batching", "reduction"
RECORDS, CHECKS, REST = "records", "checks", "rest"
CATEGORIES = (TRAINING, BATCHING, REDUCTION, RECORDS, CHECKS, REST)
INTERVAL = 0.001

RULES: tuple[tuple[str, str, str], ...] = (
    # (part of the file's path, beginning of the function's name, category); the first that fits
    ("polyfed/engine/records", "", RECORDS),
    ("polyfed/engine/loop", "_save", RECORDS),
    ("polyfed/engine/checkpoint", "", RECORDS),
    ("polyfed/engine/saving", "", RECORDS),
    ("polyfed/engine/background", "", RECORDS),
    ("polyfed/engine/tensorfile", "", RECORDS),
    ("polyfed/engine/tree", "", RECORDS),
    ("polyfed/engine/screen", "", CHECKS),
    ("polyfed/engine/wire", "", CHECKS),
    ("polyfed/method/combine", "", REDUCTION),
    ("polyfed/method/server", "", REDUCTION),
    ("polyfed/engine/minibatches", "", BATCHING),
    ("polyfed/engine/prefetch", "", BATCHING),
    ("polyfed/engine/", "batch", BATCHING),
    ("polyfed/engine/", "gather", BATCHING),
    ("polyfed/engine/", "fetch", BATCHING),
    ("polyfed/engine/", "stack", BATCHING),
    ("polyfed/data/", "", BATCHING),
    ("polyfed/scenario/", "", BATCHING),
    ("polyfed/model/", "", TRAINING),
    ("polyfed/method/objective", "", TRAINING),
    ("benchmarks/engine.py", "forward", TRAINING),
    ("polyfed/engine/simulator", "", REST),
    ("polyfed/engine/loop", "", REST),
    ("polyfed/engine/drive", "", REST),
    ("polyfed/engine/worker", "", REST),
    ("polyfed/engine/batching", "", REST),  # which fits go together, not the batches themselves
    ("polyfed/engine/", "", TRAINING),
    ("polyfed/", "", REST),
)


def category(frame: FrameType | None) -> str:
    """Return the category of the innermost function that a rule knows."""
    while frame is not None:
        code = frame.f_code
        if "polyfed" in code.co_filename or "benchmarks" in code.co_filename:
            path = code.co_filename.replace("\\", "/")
            for place, beginning, found in RULES:
                if place in path and code.co_name.lstrip("_").startswith(beginning.lstrip("_")):
                    return found
        frame = frame.f_back
    return REST


class Sampler:
    """A watch on turns that books the time of the main thread. Only one can be at work in a process."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(CATEGORIES, 0.0)
        self._mark = 0.0

    def resume(self) -> None:
        """Start the timer."""
        signal.signal(signal.SIGALRM, self._book)
        self._mark = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, INTERVAL, INTERVAL)

    def pause(self) -> None:
        """Stop the timer."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _book(self, _number: int, frame: FrameType | None) -> Any:
        now = time.perf_counter()
        self.seconds[category(frame)] += now - self._mark
        self._mark = now

    def percent(self) -> dict[str, float]:
        """Return the share of each category in percent."""
        total = sum(self.seconds.values())
        return {name: 100 * value / total if total else 0.0 for name, value in self.seconds.items()}
