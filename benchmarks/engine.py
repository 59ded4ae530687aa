"""The same rounds through polyfed's engine, all checks and records on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.turns import Turns
from benchmarks.workloads import CLASSES, LR, Data, Workload
from polyfed.data.columns import Column, IndirectColumn, TensorColumn
from polyfed.data.dataset import Dataset
from polyfed.data.samples import Batch, Table
from polyfed.data.schema import Modality, Task
from polyfed.engine.allocator import keep_freed_memory
from polyfed.engine.loop import Loop, Outcome
from polyfed.experiment import config
from polyfed.experiment.world import World
from polyfed.method.averaging import Averaging, Context
from polyfed.method.protocol import Recipe
from polyfed.method.select import uniform
from polyfed.model.architecture import Outputs
from polyfed.registry import Chosen
from polyfed.scenario.build import build
from polyfed.scenario.federation import Federation

NEVER = 10**9
"""Rounds between evaluations (or checkpoints) of a run that has none."""


@dataclass(frozen=True)
class Execution:
    """How polyfed runs a workload. ``settings`` are the keys of an experiment's ``engine`` that are not the default."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    checkpoints: bool = False
    device: str = "cpu"

    def section(self) -> dict[str, Any]:
        """Return the ``engine`` section of an experiment without evaluation; checkpoints every round or at the end."""
        every = 1 if self.checkpoints else NEVER
        return {"device": self.device, "evaluate_every": NEVER, "checkpoint_every": every, **self.settings}


def as_the_command_line() -> None:
    """Set up this process as the command line sets up its own: one thread, and freed memory is kept."""
    torch.set_num_threads(1)
    keep_freed_memory()


def observer(turns: Turns) -> Callable[[Mapping[str, Any]], None]:
    """Return what tells the turns that a round is done."""

    def watch(record: Mapping[str, Any]) -> None:
        if record["kind"] == "round":
            turns.round_done()

    return watch


def run(
    workload: Workload,
    data: Data,
    rounds: int,
    turns: Turns,
    execution: Execution,
    seen: Callable[[Mapping[str, Any]], None] | None = None,
) -> Outcome:
    """Run FedAvg rounds on the engine, in turns; ``seen`` is shown every record."""
    federation = federation_of(workload, data)
    architecture = TwoPartArchitecture(workload, federation.modalities, federation.tasks)
    recipe = Recipe(lr=LR, batch_size=workload.batch_size)
    method = Averaging(Context(recipe, architecture.components, uniform(clients=workload.cohort), federation.tasks))
    observers = [*([seen] if seen else []), observer(turns)]
    experiment = config.parse({"rounds": rounds, "engine": execution.section()})
    plan = World(experiment, federation, architecture, method).loop().plan  # as the command line would make it
    device = torch.device(execution.device)
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(method, federation, architecture, plan, folder=Path(folder), observers=observers, device=device)
        return loop.run()


def federation_of(workload: Workload, data: Data) -> Federation:
    """Deal the data to the clients, without validation and test parts."""
    kind: Literal["vector", "image"] = "vector" if len(workload.shape) == 1 else "image"
    inputs: Column = TensorColumn(data.inputs)
    labels: Column = TensorColumn(data.labels)
    if workload.pool is not None:
        index = torch.arange(workload.clients * workload.samples) % workload.pool
        inputs, labels = IndirectColumn(inputs, index), IndirectColumn(labels, index)
    modality, task = Modality("x", kind, workload.shape), Task("y", "classification", classes=CLASSES)
    return build(
        Dataset(workload.name, {"x": modality}, {"y": task}, Table({"x": inputs}, {"y": labels})),
        clients=workload.clients,
        partition=Chosen("iid"),
        modalities=Chosen("all"),
        tasks=Chosen("all"),
        validation=0.0,
        test=0.0,
        only_tasks=None,
        seed=0,
    )


class TwoParts(nn.Module):
    """Encoder and head, called with a batch as the engine does."""

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"x": parts["encoder.x"]})
        self.head = nn.ModuleDict({"y": parts["head.y"]})

    def forward(self, batch: Batch) -> Outputs:
        features = self.encoder["x"](batch.inputs["x"])
        return Outputs({"x": features}, features, {"y": self.head["y"](features)})


@dataclass(frozen=True)
class TwoPartArchitecture:
    """The workload's model for the engine."""

    workload: Workload
    modalities: Mapping[str, Modality]
    tasks: Mapping[str, Task]

    def components(self, modalities: Collection[str], tasks: Collection[str]) -> tuple[str, ...]:
        return ("encoder.x", "head.y")

    def assemble(self, components: Collection[str]) -> nn.Module:
        return TwoParts(self.workload.parts())

    def initial(self, seed: int) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self.assemble(()).named_parameters()}
