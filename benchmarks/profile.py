"""Where the time goes: a timer interrupts the main thread and books the time since the last interrupt.

It is booked to the innermost function that is in ``RULES``, by module and name; PyTorch, NumPy and the standard library
are not, so a matrix product counts for whoever asked for it. What nobody thought of is rest.
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
    # (beginning of the module's name, beginning of the function's name, category); the first that fits
    ("polyfed.engine.loop", "_save", RECORDS),
    ("polyfed.engine.records", "", RECORDS),
    ("polyfed.engine.checkpoint", "", RECORDS),
    ("polyfed.engine.saving", "", RECORDS),
    ("polyfed.engine.background", "", RECORDS),
    ("polyfed.engine.tensorfile", "", RECORDS),
    ("polyfed.engine.tree", "", RECORDS),
    ("polyfed.engine.screen", "", CHECKS),
    ("polyfed.engine.checklist", "", CHECKS),
    ("polyfed.engine.wire", "", CHECKS),
    ("polyfed.method.combine", "", REDUCTION),
    ("polyfed.method.server", "", REDUCTION),
    ("polyfed.engine.minibatches", "", BATCHING),
    ("polyfed.engine.", "batch", BATCHING),
    ("polyfed.engine.", "stacked", BATCHING),
    ("polyfed.data.", "", BATCHING),
    ("polyfed.scenario.", "", BATCHING),
    ("polyfed.engine.descent", "", TRAINING),
    ("polyfed.engine.logged", "", TRAINING),
    ("polyfed.engine.optimizers", "", TRAINING),
    ("polyfed.engine.resident", "", TRAINING),
    ("polyfed.engine.stacked", "", TRAINING),
    ("polyfed.engine.trainer", "", TRAINING),
    ("polyfed.method.objective", "", TRAINING),
    ("polyfed.model.", "", TRAINING),
    ("benchmarks.engine", "forward", TRAINING),
    ("polyfed.", "", REST),
)


def category(module: str, function: str) -> str | None:
    """Return the category of a function; None if no rule knows its module."""
    for place, beginning, found in RULES:
        if module.startswith(place) and function.startswith(beginning):
            return found
    return None


def booked(frame: FrameType | None) -> str:
    """Return the category of the innermost function that a rule knows."""
    while frame is not None:
        found = category(str(frame.f_globals.get("__name__")), frame.f_code.co_name)
        if found is not None:
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
        self.seconds[booked(frame)] += now - self._mark
        self._mark = now

    def percent(self) -> dict[str, float]:
        """Return the share of each category in percent."""
        total = sum(self.seconds.values())
        return {name: 100 * value / total if total else 0.0 for name, value in self.seconds.items()}
