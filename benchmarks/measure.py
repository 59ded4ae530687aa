"""The measurements. Each returns plain values, which tables and pages are made of."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

import polyfed
from benchmarks.race import ROOT, BenchmarkError, Lane, Note, memory, profile, progress, race, spread
from benchmarks.system import BARE, POLYFED, System, schedule

Values = dict[str, Any]

SETTINGS: Mapping[str, Mapping[str, Any]] = {"default": {}, "one worker, one thread": {"workers": 1}}
BARE_LABEL = "bare loop"
COHORTS = (10, 30, 100, 300, 1000)
REGISTERED = (1_000, 10_000, 100_000)
WIDTHS = (16, 64, 256, 1024, 4096)
WORKERS = (1, 2, 3)


@dataclass(frozen=True)
class Effort:
    """How long to measure: repetitions in fresh processes, and turns of each (None: what suits the workload)."""

    repeats: int = 2
    turns: int | None = None
    note: Note = progress

    def race(self, systems: Sequence[System], block: int | None = None) -> list[Lane]:
        """Race systems on one workload, ``block`` rounds per turn (None: what suits the workload)."""
        _, usual, turns = schedule(systems[0])
        return race(systems, self.turns or turns, block or usual, self.repeats, self.note)


def machine(repeats: int) -> Values:
    """Describe the machine by what matters for speed, and the measuring."""
    return {
        "polyfed": polyfed.__version__,
        "repeats": repeats,
        "cores": len(os.sched_getaffinity(0)),
        "processor": processor(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def processor() -> str:
    """Return the processor's architecture and, where the system tells them, vendor, family and vector instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    vendor = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD"}.get(told.get("vendor_id", ""), "")
    family = f"family {told['cpu family']} model {told['model']}" if {"cpu family", "model"} <= told.keys() else ""
    vectors = [name for name in ("avx2", "avx512f", "amx_tile") if name in told.get("flags", "").split()]
    return ", ".join(filter(None, [platform.machine(), vendor, family, *vectors]))


def workload(name: str, effort: Effort, peers: Sequence[str] = ()) -> Values:
    """Race the bare loop and polyfed's settings on a workload; add memory and the profile."""
    systems = [System(BARE_LABEL, BARE, name)]
    systems += [System(label, POLYFED, name, settings=given) for label, given in SETTINGS.items()]
    systems += [System(peer, peer, name) for peer in peers]
    lanes = effort.race(systems)
    effort.note(f"{name}: memory and profile")
    single = lanes[1 + list(SETTINGS).index("one worker, one thread")]
    return {
        "name": name,
        "text": schedule(systems[0])[0],
        "rows": [row(lane, lanes[0]) | {"memory": memory(lane.system)} for lane in lanes],
        "profile": profile(single.system, profiled_rounds(single)),
    }


def profiled_rounds(lane: Lane) -> int:
    """Return how many rounds give a few thousand samples."""
    return max(3, round(4 / median(lane.seconds)))


def row(lane: Lane, yardstick: Lane) -> Values:
    """Return what a lane measured, beside its ratio to the yardstick."""
    return {
        "label": lane.system.label,
        "seconds": list(spread(lane.seconds)),
        "ratio": list(lane.ratio(yardstick)),
        "first": median(lane.first),
    }


def reduction(effort: Effort) -> Values:
    """Measure the reduction in a process of its own."""
    effort.note("reduction of 50 replies")
    command = [sys.executable, "-m", "benchmarks.fold", str(max(3, effort.repeats))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"the reduction ended with exit code {done.returncode}: {done.stderr.strip()}")
    found: Values = json.loads(done.stdout)
    return found


def checkpoint(effort: Effort) -> Values:
    """Race W1 with a checkpoint after every round against W1 without.

    Five rounds per turn: what is written beside the training must not be hidden in the turn of the other.
    """
    without = System("no checkpoints", POLYFED, "W1")
    every = System("a checkpoint every round", POLYFED, "W1", checkpoints=True)
    lanes = effort.race([without, every], block=5)
    return {"rows": [row(lane, lanes[0]) for lane in lanes]}


def curve(
    effort: Effort, points: Sequence[Any], systems: Mapping[str, Sequence[System]], *, memories: bool = False
) -> Values:
    """Race each point's systems; return seconds (and memory in bytes) by series."""
    series: dict[str, list[Values]] = {label: [] for label in systems}
    for number, point in enumerate(points):
        lanes = effort.race([held[number] for held in systems.values()])
        for label, lane in zip(systems, lanes, strict=True):
            found = {"x": point, "seconds": list(spread(lane.seconds)), "ratio": list(lane.ratio(lanes[0]))}
            series[label].append(found | ({"memory": memory(lane.system)} if memories else {}))
    return {"series": series}


def over(name: str, changes: Sequence[Mapping[str, Any]]) -> dict[str, list[System]]:
    """Return the bare loop and polyfed's settings on the variants of a workload."""
    return {
        BARE_LABEL: [System(BARE_LABEL, BARE, name, change) for change in changes],
        **{
            label: [System(label, POLYFED, name, change, settings) for change in changes]
            for label, settings in SETTINGS.items()
        },
    }


def by_cohort(effort: Effort) -> Values:
    """Seconds per round over the number of clients per round (W3)."""
    return curve(effort, COHORTS, over("W3", [{"cohort": count, "block": max(1, 500 // count)} for count in COHORTS]))


def by_width(effort: Effort) -> Values:
    """Seconds per round over the width of W3's model, 20 clients per round."""
    changes = [{"hidden": width, "cohort": 20, "clients": 100, "block": 10} for width in WIDTHS]
    points = [parameters(width) for width in WIDTHS]
    return curve(effort, points, over("W3", changes))


def parameters(hidden: int) -> int:
    """Count the parameters of the MLP 64-hidden-10."""
    return 65 * hidden + 10 * hidden + 10


def by_registered(effort: Effort) -> Values:
    """Seconds per round and memory over the clients there are, 50 of them per round; all race in turns."""
    changes = [{"clients": count, "cohort": 50, "pool": 20_000, "block": 10} for count in REGISTERED]
    systems = [System(f"{change['clients']:,} clients", POLYFED, "W3", change) for change in changes]
    lanes = effort.race(systems)
    points = [
        row(lane, lanes[0]) | {"x": count, "memory": memory(lane.system)}
        for count, lane in zip(REGISTERED, lanes, strict=True)
    ]
    return {"series": {"default": points}}


def by_workers(effort: Effort) -> Values:
    """Ratio to the bare loop over the number of workers, on W1 and W3."""
    series = {}
    for name in ("W1", "W3"):
        systems = [System(BARE_LABEL, BARE, name)]
        systems += [System(f"{count} workers", POLYFED, name, settings={"workers": count}) for count in WORKERS]
        lanes = effort.race(systems)
        series[name] = [row(lane, lanes[0]) | {"x": n} for n, lane in zip(WORKERS, lanes[1:], strict=True)]
    return {"series": series}


SCALING = {"cohort": by_cohort, "registered": by_registered, "model": by_width, "workers": by_workers}


def scaling(effort: Effort) -> Values:
    """Measure all scaling curves."""
    return {name: measured(effort) for name, measured in SCALING.items()}
