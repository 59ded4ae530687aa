"""Generated texts: what a language model writes for a client's samples, and what that is judged by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

import torch

from polyfed.data.samples import Batch, Samples
from polyfed.data.schema import Task
from polyfed.engine.resident import Resident
from polyfed.engine.trainer import Trainer
from polyfed.model.metrics import Sums, add_sums
from polyfed.model.text_metrics import text_sums
from polyfed.scenario.federation import Card

WRITE_BATCH = 64


@runtime_checkable
class Writer(Protocol):
    """A model that writes texts."""

    def write(self, batch: Batch, task: str) -> list[str]:
        """Return the answer to each sample's instruction, chosen greedily."""
        ...


def writing_tasks(held: Iterable[str], tasks: Mapping[str, Task]) -> list[str]:
    """Name the tasks whose answers are texts."""
    return [name for name in held if tasks[name].kind == "language"]


@torch.no_grad()
def text_tally(model: Resident, trainer: Trainer, samples: Samples, card: Card, task: Task) -> Sums:
    """Have the answers to a task's samples written, and take their metrics."""
    writer = model.module
    if not isinstance(writer, Writer):
        raise TypeError(f"a model for the task {task.name!r} must write texts: it needs a method 'write'")
    sums: Sums = {}
    asked = torch.nonzero(samples.labelled[task.name]).flatten()
    for positions in torch.split(asked, WRITE_BATCH) if len(asked) else ():
        batch = trainer.batch(samples, positions, frozenset(card.modalities))
        with trainer.computing():
            written = writer.write(batch, task.name)
        sums = add_sums(sums, text_sums(task.metric, written, [one.answers for one in samples.asked(positions)]))
    return sums
