"""Small hand-made datasets for the scenario tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from hypothesis import settings

from polyfed.data.columns import TensorColumn
from polyfed.data.dataset import Dataset
from polyfed.data.samples import Samples, Table
from polyfed.data.schema import Modality, Task
from polyfed.registry import Chosen
from polyfed.scenario.build import build
from polyfed.scenario.federation import Federation

often = settings(deadline=None, max_examples=40)
IID, ALL = Chosen("iid"), Chosen("all")
DIGIT = Task("digit", "classification", classes=3)


def digits(labels: Sequence[int], classes: int = 3) -> tuple[Samples, dict[str, Task]]:
    """Samples with one task, ``digit``, and no inputs worth the name."""
    inputs = {"image": TensorColumn(torch.zeros(len(labels), 1))}
    table = Table(inputs, {"digit": TensorColumn(torch.tensor(labels, dtype=torch.int64))})
    return table.everything(), {"digit": Task("digit", "classification", classes=classes)}


def table_of(
    labels: Sequence[int],
    *,
    modalities: Sequence[str] = ("image", "audio"),
    fields: Mapping[str, Sequence[int]] | None = None,
    present: Mapping[str, Sequence[bool]] | None = None,
    ages: Sequence[float] | None = None,
) -> Table:
    """A table with the task ``digit``, the regression task ``age`` and the generation task ``picture``."""
    count = len(labels)
    rows = torch.arange(count, dtype=torch.float32)
    return Table(
        inputs={name: TensorColumn(torch.stack([rows, rows + 0.5], 1)) for name in modalities},
        targets={
            "digit": TensorColumn(torch.tensor(labels, dtype=torch.int64)),
            "age": TensorColumn(rows.clone() if ages is None else torch.tensor(ages)),
            "picture": TensorColumn(torch.zeros(count, 1, 2, 2)),
        },
        fields={name: torch.tensor(values) for name, values in (fields or {}).items()},
        present={name: torch.tensor(values) for name, values in (present or {}).items()},
    )


def dataset_of(train: Table, test: Table | None = None, unit: str | None = None) -> Dataset:
    """A dataset around tables of ``table_of``."""
    tasks = [DIGIT, Task("age", "regression"), Task("picture", "generation", shape=(1, 2, 2))]
    modalities = {name: Modality(name, "vector", (2,)) for name in train.inputs}
    return Dataset("small", modalities, {task.name: task for task in tasks}, train, test, unit)


def federation_of(
    dataset: Dataset,
    clients: int | None = 3,
    *,
    partition: Chosen = IID,
    modalities: Chosen = ALL,
    tasks: Chosen = ALL,
    validation: float = 0.1,
    test: float = 0.2,
    only_tasks: Sequence[str] | None = ("digit",),
    seed: int = 1,
    validation_source: Literal["client", "shared"] = "client",
) -> Federation:
    """Build a federation with short defaults."""
    return build(
        dataset,
        clients=clients,
        partition=partition,
        modalities=modalities,
        tasks=tasks,
        validation=validation,
        test=test,
        only_tasks=only_tasks,
        seed=seed,
        validation_source=validation_source,
    )
