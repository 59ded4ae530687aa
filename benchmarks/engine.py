"""The same rounds through polyfed's engine, all checks and records on."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.workloads import BenchmarkArchitecture, Workload
from polyfed.engine.loop import Loop, Plan
from polyfed.method.averaging import Averaging, Context
from polyfed.method.protocol import Recipe
from polyfed.method.select import uniform


def engine_rounds(workload: Workload, inputs: Tensor, labels: Tensor, rounds: int) -> list[float]:
    """Run FedAvg rounds on the engine and return the seconds of each."""
    federation = workload.federation(inputs, labels)
    architecture = BenchmarkArchitecture(workload, federation.modalities, federation.tasks)
    recipe = Recipe(lr=0.05, batch_size=workload.batch_size)
    method = Averaging(Context(recipe, architecture.components, uniform(clients=workload.cohort), federation.tasks))
    seconds: list[float] = []

    def watch(record: Any) -> None:
        if record["kind"] == "round":
            seconds.append(record["seconds"])

    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(rounds, seed=0, evaluate_every=rounds + 1, checkpoint_every=rounds + 1)
        Loop(method, federation, architecture, plan, folder=Path(folder), observers=[watch]).run()
    return seconds
