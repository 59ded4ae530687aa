"""What can be measured: a system on a workload, described by plain values so that a fresh process can run it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from benchmarks.turns import Turns
from benchmarks.workloads import WORKLOADS, Workload

BARE, POLYFED = "bare", "polyfed"
W4 = "W4"


@dataclass(frozen=True)
class System:
    """One of the bare loop, polyfed or a peer, on a workload.

    ``changes`` replaces fields of the workload; ``settings`` (options of the engine), ``checkpoints`` and ``device``
    are for polyfed. ``label`` is what tables call it.
    """

    label: str
    kind: str
    workload: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    checkpoints: bool = False
    device: str = "cpu"

    def plain(self) -> dict[str, Any]:
        """Return the system as values for JSON."""
        return asdict(self)

    def synthetic(self) -> Workload:
        """Return the workload, if it is one of synthetic data."""
        changes: dict[str, Any] = dict(self.changes)
        return replace(WORKLOADS[self.workload], **changes)

    def run(self, rounds: int, turns: Turns) -> None:
        """Run so many rounds, in turns. What is needed is imported when the clock runs."""
        if self.workload == W4:
            self._run_mixed(rounds, turns)
        elif self.kind == BARE:
            from benchmarks import bare

            bare.run(self.synthetic(), rounds, turns)
        elif self.kind == POLYFED:
            workload = self.synthetic()
            data = workload.data()
            turns.begin()
            from benchmarks import engine

            engine.as_the_command_line()
            execution = engine.Execution(self.settings, self.checkpoints, self.device)
            engine.run(workload, data, rounds, turns, execution)
        else:
            from benchmarks import peers

            peers.run(self.kind, self.synthetic(), rounds, turns)

    def _run_mixed(self, rounds: int, turns: Turns) -> None:
        if self.kind == POLYFED:
            turns.begin()
        from benchmarks import engine, mixed

        if self.kind == POLYFED:
            engine.as_the_command_line()
            mixed.run(rounds, turns, engine.Execution(self.settings, self.checkpoints, self.device))
        else:
            mixed.run_bare(rounds, turns)


def schedule(system: System) -> tuple[str, int, int]:
    """Return a description of a system's workload, its rounds per turn and its turns."""
    if system.workload == W4:
        return "six groups of modalities and tasks", 1, 10
    workload = system.synthetic()
    return workload.text, workload.block, workload.turns
