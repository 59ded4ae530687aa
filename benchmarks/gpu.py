"""On a GPU: clients trained in one batched pass against one by one, and the share of time in kernels."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.engine import Execution, run
from benchmarks.measure import Effort, Values, row
from benchmarks.system import POLYFED, System
from benchmarks.tables import Table, ratio, seconds
from benchmarks.turns import no_turns

WORKLOADS = ("W1", "transformer")
ONE_BY_ONE, BATCHED = {"batching": "off", "workers": 1}, {"batching": "on", "workers": 1}
PROFILED = 4


def measure(effort: Effort, device: str, changes: dict[str, Any] | None = None) -> list[Values]:
    """Race both ways on each workload."""
    found = []
    for name in WORKLOADS:
        ways = [("one by one", ONE_BY_ONE), ("batched", BATCHED)]
        systems = [System(label, POLYFED, name, changes or {}, given, device=device) for label, given in ways]
        lanes = effort.race(systems)
        rows = [row(lane, lanes[0]) | {"kernels": kernels(lane.system)} for lane in lanes]
        found.append({"name": name, "rows": rows})
    return found


def kernels(system: System) -> float | None:
    """Return the share of the later rounds' time in which the GPU computes, in percent; None on another device."""
    if system.device != "cuda":
        return None
    from torch.profiler import ProfilerActivity

    workload = system.synthetic()
    turns, spent = no_turns(1 + PROFILED)
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as traced:
        run(workload, workload.data(), 1 + PROFILED, turns, Execution(system.settings, device="cuda"))
    busy: float = sum(event.self_device_time_total for event in traced.key_averages()) / 1e6
    return 100 * busy / sum(spent)


def table(measured: list[Values], device: str) -> Table:
    """Show what was measured."""
    rows = []
    for held in measured:
        for way in held["rows"]:
            share = "" if way["kernels"] is None else f"{way['kernels']:.0f} %"
            cells = [held["name"], way["label"], seconds(way["seconds"]), ratio(way["ratio"]), share]
            rows.append(cells)
    head = ["workload", "clients trained", "one round", "ratio", "time in kernels"]
    return Table(f"Batched against one by one on {device}", head, rows, words=2)


def missing(device: str) -> str | None:
    """Say why this cannot be measured here; None if it can."""
    if device == "cuda" and not torch.cuda.is_available():
        return "torch finds no GPU here, so there is nothing to measure (--device cpu runs the same on the processor)"
    return None
