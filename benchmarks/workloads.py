"""The workloads W1 to W3: synthetic data, made before the clock starts, and a model of two parts.

Nothing of polyfed is imported here, so that the bare loop runs without it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

CLASSES = 10
LR = 0.05


@dataclass(frozen=True)
class Data:
    """Rows of inputs (rows, *shape) and labels (rows,); client k owns ``samples`` rows, from row k · samples on.

    Where there are fewer rows than that, clients share them: the count starts again at the first row.
    """

    inputs: Tensor
    labels: Tensor
    samples: int

    def of(self, client: int) -> tuple[Tensor, Tensor]:
        """Return the inputs and labels of a client."""
        start = client * self.samples % len(self.inputs)
        return self.inputs[start : start + self.samples], self.labels[start : start + self.samples]


@dataclass(frozen=True)
class Workload:
    """``clients`` with ``samples`` each, ``cohort`` of them per round; one local epoch of SGD, lr 0.05.

    ``model`` is ``cnn`` (214,090 parameters), ``mlp`` (one hidden layer of ``hidden`` units) or ``transformer``
    (two layers of that width, 49 tokens). ``pool`` limits the rows that are made (None: every client has its own).
    ``block`` rounds are run before the next system has its turn; ``turns`` is how many turns each has.
    """

    name: str
    text: str
    clients: int
    cohort: int
    samples: int
    shape: tuple[int, ...]
    batch_size: int
    model: str
    hidden: int = 64
    pool: int | None = None
    block: int = 1
    turns: int = 10

    def data(self) -> Data:
        """Return standard-normal inputs and random labels."""
        generator = torch.Generator().manual_seed(0)
        rows = self.pool or self.clients * self.samples
        inputs = torch.randn(rows, *self.shape, generator=generator)
        return Data(inputs, torch.randint(CLASSES, (rows,), generator=generator), self.samples)

    def parts(self) -> dict[str, nn.Module]:
        """Build the encoder and the head; the same first values every time."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            if self.model == "mlp":
                encoder: nn.Module = nn.Sequential(nn.Linear(self.shape[0], self.hidden), nn.ReLU())
                return {"encoder.x": encoder, "head.y": nn.Linear(self.hidden, CLASSES)}
            if self.model == "transformer":
                return {"encoder.x": transformer(self), "head.y": nn.Linear(self.hidden, CLASSES)}
            encoder = nn.Sequential(
                *(nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
                *(nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2)),
                *(nn.Flatten(), nn.Linear(512, 384), nn.ReLU()),
            )
            return {"encoder.x": encoder, "head.y": nn.Linear(384, CLASSES)}


def transformer(workload: Workload) -> nn.Module:
    """Build polyfed's patch transformer: 49 patches of 4×4 pixels, two layers, three heads."""
    from polyfed.data.schema import Modality
    from polyfed.model.parts import ENCODERS

    modality = Modality("x", "image", workload.shape)
    options = {"patch": 4, "layers": 2, "heads": 3}
    encoder: nn.Module = ENCODERS.build("transformer", options, modality, workload.hidden)
    return encoder


IMAGE = (1, 28, 28)
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("W1", "many small clients", 1000, 50, 64, IMAGE, 16, "cnn", turns=10),
        Workload("W2", "few large clients", 10, 10, 600, IMAGE, 32, "cnn", turns=6),
        Workload("W3", "tiny model, overhead counts", 1000, 100, 20, (64,), 20, "mlp", block=5, turns=20),
        Workload("transformer", "transformer cohort", 100, 50, 64, IMAGE, 16, "transformer", hidden=48),
    )
}
