"""Turns: a system under test runs a few rounds when told to and then waits, so that others run in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol


class Watch(Protocol):
    """What looks on while rounds run, such as a profiler."""

    def resume(self) -> None:
        """Rounds begin."""
        ...

    def pause(self) -> None:
        """Rounds have ended."""
        ...


class Turns:
    """Times rounds. ``orders`` yields how many rounds to run next; ``report`` is given the seconds of each.

    The clock of the first round starts with ``begin``, so that it holds whatever must be built before a first round.
    A ``watch`` sees all rounds but the first.
    """

    def __init__(
        self, orders: Iterator[int], report: Callable[[Sequence[float]], None], watch: Watch | None = None
    ) -> None:
        self._orders = orders
        self._report = report
        self._watch = watch
        self._left = 0
        self._seconds: list[float] = []
        self._mark = 0.0

    def begin(self) -> None:
        """Wait for the first order and start the clock."""
        self._left = next(self._orders)
        self._mark = time.perf_counter()

    def round_done(self) -> None:
        """Note the seconds of a round; at the end of a turn report them and wait for the next order."""
        self._seconds.append(time.perf_counter() - self._mark)
        self._left -= 1
        if not self._left:
            self._end_turn()
        self._mark = time.perf_counter()

    def _end_turn(self) -> None:
        if self._watch is not None:
            self._watch.pause()
        self._report(self._seconds)
        self._seconds = []
        self._left = next(self._orders, 0)
        if self._left and self._watch is not None:
            self._watch.resume()


def no_turns(rounds: int) -> tuple[Turns, list[float]]:
    """Return turns that let all rounds run at once, their clock running, and the list that receives their seconds."""
    seconds: list[float] = []
    turns = Turns(iter([rounds]), seconds.extend)
    turns.begin()
    return turns, seconds
