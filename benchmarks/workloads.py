"""The workloads: synthetic data, made before the clock starts, and a model of two components."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polyfed.data.columns import TensorColumn
from polyfed.data.dataset import Dataset
from polyfed.data.samples import Batch, Table
from polyfed.data.schema import Modality, Task
from polyfed.model.architecture import Outputs
from polyfed.registry import Chosen
from polyfed.rng import seeded, torch_generator
from polyfed.scenario.build import build
from polyfed.scenario.federation import Federation

CLASSES = 10


@dataclass(frozen=True)
class Workload:
    """``clients`` with ``samples`` each, ``cohort`` of them per round; one local epoch of SGD, lr 0.05."""

    name: str
    clients: int
    cohort: int
    samples: int
    shape: tuple[int, ...]
    batch_size: int
    rounds: int

    def data(self) -> tuple[Tensor, Tensor]:
        """Return standard-normal inputs (clients, samples, *shape) and random labels (clients, samples)."""
        generator = torch_generator("benchmark", self.name)
        inputs = torch.randn(self.clients, self.samples, *self.shape, generator=generator)
        return inputs, torch.randint(CLASSES, (self.clients, self.samples), generator=generator)

    def parts(self) -> dict[str, nn.Module]:
        """Build the model's two components: the CNN (214,090 parameters) or the MLP (4,810) of the workload."""
        if len(self.shape) == 1:
            return {"encoder.x": nn.Sequential(nn.Linear(64, 64), nn.ReLU()), "head.y": nn.Linear(64, CLASSES)}
        encoder = nn.Sequential(
            *(nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(512, 384), nn.ReLU()),
        )
        return {"encoder.x": encoder, "head.y": nn.Linear(384, CLASSES)}

    def federation(self, inputs: Tensor, labels: Tensor) -> Federation:
        """Deal the data to the clients, without validation and test parts."""
        kind = "vector" if len(self.shape) == 1 else "image"
        table = Table({"x": TensorColumn(inputs.flatten(0, 1))}, {"y": TensorColumn(labels.flatten())})
        modality, task = Modality("x", kind, self.shape), Task("y", "classification", classes=CLASSES)
        return build(
            Dataset(self.name, {"x": modality}, {"y": task}, table),
            clients=self.clients,
            partition=Chosen("iid"),
            modalities=Chosen("all"),
            tasks=Chosen("all"),
            validation=0.0,
            test=0.0,
            only_tasks=None,
            seed=0,
        )


WORKLOADS = {
    "W1": Workload("W1", clients=1000, cohort=50, samples=64, shape=(1, 28, 28), batch_size=16, rounds=10),
    "W2": Workload("W2", clients=10, cohort=10, samples=600, shape=(1, 28, 28), batch_size=32, rounds=5),
    "W3": Workload("W3", clients=1000, cohort=100, samples=20, shape=(64,), batch_size=20, rounds=20),
}


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
class BenchmarkArchitecture:
    """The workload's model for the engine."""

    workload: Workload
    modalities: Mapping[str, Modality]
    tasks: Mapping[str, Task]

    def components(self, modalities: Collection[str], tasks: Collection[str]) -> tuple[str, ...]:
        return ("encoder.x", "head.y")

    def assemble(self, components: Collection[str]) -> nn.Module:
        return TwoParts(self.workload.parts())

    def initial(self, seed: int) -> dict[str, Tensor]:
        with seeded(seed, "benchmark"):
            module = self.assemble(())
        return {name: value.detach() for name, value in module.named_parameters()}


def bare_model(workload: Workload) -> nn.Module:
    """Build the same model for the bare loop."""
    with seeded(0, "benchmark"):
        return nn.Sequential(*workload.parts().values())
