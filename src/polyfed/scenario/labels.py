"""Labels of samples: for partitions, for stratified splits, and whether they are sound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from polyfed.data.samples import Samples
from polyfed.data.schema import Task
from polyfed.errors import UserError, unknown
from polyfed.scenario.parts import IntArray


def label_task(tasks: Mapping[str, Task], name: str | None, place: str) -> Task:
    """Return the classification task of that name (None: the first one), or raise an error with the choices."""
    choices = {key: task for key, task in tasks.items() if task.kind == "classification"}
    if not choices:
        raise UserError(f"{place}: the dataset has no classification task, so there are no labels to go by")
    if name is None:
        return next(iter(choices.values()))
    if name not in choices:
        raise unknown("classification task", name, choices, place=place)
    return choices[name]


def labels_of(samples: Samples, task: Task) -> IntArray:
    """Return the label of each sample, (samples,); a sample without a label is given the number ``task.classes``."""
    labels = torch.where(samples.labelled[task.name], samples.target(task.name), task.classes)
    return labels.numpy().astype(np.int64)


def strata(samples: Samples, tasks: Sequence[Task]) -> IntArray:
    """Number the strata that a split keeps in proportion, (samples,).

    Samples are of one stratum when they have the same label (see ``label_strata``) and lack the same modalities and
    tasks. Lower labels have lower numbers.
    """
    found = label_strata(samples, tasks)
    masks = [samples.present[name] for name in samples.modalities] + [samples.labelled[task.name] for task in tasks]
    for mask in masks:
        found = 2 * found + mask.numpy()
    return found


def label_strata(samples: Samples, tasks: Sequence[Task]) -> IntArray:
    """Number the samples' labels, each that of the first classification task the sample is labelled for, (samples,).

    Samples without a label have the highest number.
    """
    classifying = [task for task in tasks if task.kind == "classification"]
    unlabelled = sum(task.classes for task in classifying)
    found = np.full(len(samples), unlabelled, dtype=np.int64)
    first = 0
    for task in classifying:
        labels = labels_of(samples, task)
        found = np.where((found == unlabelled) & (labels < task.classes), first + labels, found)
        first += task.classes
    return found


def check_targets(samples: Samples, tasks: Sequence[Task], table: str) -> None:
    """Refuse labels outside their task's classes and regression targets that are not finite, naming the row."""
    for task in tasks:
        if task.kind in ("generation", "language"):
            continue
        targets = samples.target(task.name)
        if task.kind == "classification":
            wrong = (targets < 0) | (targets >= task.classes)
            wanted = f"its {task.classes} classes are numbered 0 to {task.classes - 1}"
        else:
            wrong = ~torch.isfinite(targets).flatten(1).all(1) if targets.dim() > 1 else ~torch.isfinite(targets)
            wanted = "a regression target must be a finite number"
        rows = torch.nonzero(wrong & samples.labelled[task.name]).flatten()
        if len(rows):
            row = int(rows[0])
            value = targets[row].tolist()
            more = f" (and {len(rows) - 1} more rows)" if len(rows) > 1 else ""
            raise UserError(f"{table}, row {row}: task {task.name!r} has the target {value}{more}, but {wanted}")
