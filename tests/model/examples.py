"""Small modalities, tasks and batches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from polyfed.data.samples import Batch
from polyfed.data.schema import Modality, Task

IMAGE = Modality("image", "image", (1, 8, 8))
AUDIO = Modality("audio", "audio", (1, 10, 12))
SENSOR = Modality("sensor", "sensor", (3, 20))
VECTOR = Modality("vector", "vector", (5,))
TEXT = Modality("text", "tokens", (6,), vocabulary=11)

DIGIT = Task("digit", "classification", classes=10)
PULSE = Task("pulse", "regression", shape=(2,))
PICTURE = Task("picture", "generation", shape=(1, 9, 7))


def values_of(modality: Modality, rows: int, seed: int = 0) -> Tensor:
    """Random samples of a modality."""
    generator = torch.Generator().manual_seed(seed)
    if modality.kind == "tokens":
        return torch.randint(0, modality.vocabulary, (rows, *modality.shape), generator=generator)
    return torch.randn(rows, *modality.shape, generator=generator)


def target_of(task: Task, rows: int, seed: int = 0) -> Tensor:
    """Random targets of a task."""
    generator = torch.Generator().manual_seed(seed)
    if task.kind == "classification":
        return torch.randint(0, task.classes, (rows,), generator=generator)
    return torch.randn(rows, *task.shape, generator=generator)


def batch_of(modalities: list[Modality], tasks: list[Task], rows: int = 4, seed: int = 0) -> Batch:
    """A batch in which nothing is absent."""
    return Batch(
        inputs={m.name: values_of(m, rows, seed) for m in modalities},
        present={m.name: torch.ones(rows, dtype=torch.bool) for m in modalities},
        targets={t.name: target_of(t, rows, seed) for t in tasks},
        labelled={t.name: torch.ones(rows, dtype=torch.bool) for t in tasks},
    )


def assert_batched_equals_looped(build: Callable[[], nn.Module], values: Tensor) -> None:
    """Gradients of stacked models, each on its own values (models, batch, ...), are those of one model at a time."""
    models = [build() for _ in values]
    each = [{name: p.detach() for name, p in model.named_parameters()} for model in models]
    stacked = {name: torch.stack([parameters[name] for parameters in each]) for name in each[0]}

    def loss(parameters: dict[str, Tensor], some: Tensor) -> Tensor:
        return functional_call(models[0], parameters, (some,)).square().sum()

    together = vmap(grad(loss))(stacked, values)
    for place, parameters in enumerate(each):
        alone = grad(loss)(parameters, values[place])
        for name, gradient in alone.items():
            torch.testing.assert_close(together[name][place], gradient, rtol=1e-4, atol=1e-5)
