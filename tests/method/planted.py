"""Synthetic data with a planted structure: one factor for all, one per modality and one per task (DisentAFL P22)."""

from __future__ import annotations

import torch

from polyfed.data.columns import TensorColumn
from polyfed.data.dataset import Dataset, Root
from polyfed.data.samples import Table
from polyfed.data.schema import Modality, Task

FEATURES, NOISE = 10, 0.3
MODALITIES, TASKS = ("a", "b"), ("x", "y")
RULES = {"x": 1.0, "y": -1.0}
"""The two tasks read the factors that inputs have in common the other way round: their rules contradict each other."""


def planted(root: Root, *, seed: int = 0, rows: int = 320) -> Dataset:
    """Two modalities of ten features and two tasks of two classes; ``rows`` training rows and 4000 test rows.

    Each modality is a random mixture, the same for all rows, of the common factor, its own factor and the factors of
    both tasks. A label is 1 if ±(common + own factors of the modalities) + factor of the task is positive, with the
    sign of ``RULES``.
    """
    draw = torch.Generator().manual_seed(seed)
    mixing = {name: torch.randn(4, FEATURES, generator=draw) for name in MODALITIES}

    def table(rows: int) -> Table:
        common, *own = torch.randn(1 + len(MODALITIES), rows, generator=draw)
        of_task = dict(zip(TASKS, torch.randn(len(TASKS), rows, generator=draw), strict=True))
        inputs = {}
        for (name, matrix), factor in zip(mixing.items(), own, strict=True):
            factors = torch.stack([common, factor, *of_task.values()], 1)
            inputs[name] = TensorColumn(factors @ matrix + NOISE * torch.randn(rows, FEATURES, generator=draw))
        shared = common + 0.5 * (own[0] + own[1])
        targets = {name: TensorColumn((RULES[name] * shared + of_task[name] > 0).long()) for name in TASKS}
        return Table(inputs, targets)

    modalities = {name: Modality(name, "vector", (FEATURES,)) for name in MODALITIES}
    tasks = {name: Task(name, "classification", classes=2) for name in TASKS}
    return Dataset("planted", modalities, tasks, table(rows), table(4000))
