"""Races: systems in fresh processes of their own take turns, so that a busy machine slows all of them alike."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any, NamedTuple

from benchmarks.memory import Peak
from benchmarks.system import System

ROOT = Path(__file__).resolve().parent.parent


class Spread(NamedTuple):
    """Median and quartiles."""

    middle: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the quartiles of some values."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high)


@dataclass
class Lane:
    """What one system did: seconds to the end of its first round, and seconds per round of every later turn."""

    system: System
    first: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def ratio(self, other: Lane) -> Spread:
        """Return how this system compares to another, turn by turn."""
        return spread([mine / theirs for mine, theirs in zip(self.seconds, other.seconds, strict=True)])


class BenchmarkError(Exception):
    """A system under test did not do its rounds."""


class Child:
    """A process that runs one system and obeys orders."""

    def __init__(self, system: System, rounds: int, *, profile: bool = False) -> None:
        self.system = system
        given = json.dumps({"system": system.plain(), "rounds": rounds, "profile": profile})
        command = [sys.executable, "-m", "benchmarks.child", given]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._write("0")
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def turn(self, rounds: int) -> list[float]:
        """Have some rounds run and return the seconds of each."""
        self._write(str(rounds))
        seconds: list[float] = self._read()["seconds"]
        return seconds

    def profile(self) -> dict[str, float]:
        """End the run and return the percent of its time by category."""
        self._write("0")
        percent: dict[str, float] = self._read()["profile"]
        return percent

    def _write(self, order: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):  # a peer may print other things
                answer: dict[str, Any] = json.loads(line)
                return answer
        code = self.process.wait()
        raise BenchmarkError(f"{self.system.label} on {self.system.workload} ended with exit code {code}; see above")


Note = Callable[[str], None]


def progress(text: str) -> None:
    """Write a line of progress to stderr."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def race(systems: Sequence[System], turns: int, block: int = 1, repeats: int = 1, note: Note = progress) -> list[Lane]:
    """Let systems take turns of ``block`` rounds; the first round of each comes before and is timed by itself.

    Each repetition starts fresh processes. Who goes first changes from turn to turn.
    """
    lanes = [Lane(system) for system in systems]
    for repeat in range(repeats):
        with ExitStack() as stack:
            children = []
            for lane in lanes:
                child = stack.enter_context(Child(lane.system, 1 + turns * block))
                children.append(child)
                lane.first += child.turn(1)
            for turn in range(turns):
                note(f"{systems[0].workload}: repeat {repeat + 1} of {repeats}, turn {turn + 1} of {turns}")
                start = turn % len(lanes)
                for place in [*range(start, len(lanes)), *range(start)]:
                    seconds = children[place].turn(block)
                    lanes[place].seconds.append(sum(seconds) / block)
    return lanes


def memory(system: System, rounds: int = 3) -> float:
    """Return the peak memory in bytes of a fresh process that runs a system, its children included."""
    with Child(system, rounds) as child, Peak(child.process.pid) as peak:
        for _ in range(rounds):
            child.turn(1)
    return peak.bytes


def profile(system: System, rounds: int) -> dict[str, float]:
    """Return where a fresh process that runs a system spends its time after the first round, in percent."""
    with Child(system, 1 + rounds, profile=True) as child:
        child.turn(1)
        child.turn(rounds)
        return child.profile()
