"""Fields of instructions that partitions go by: whose a sample is, of which task, and with which picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from polyfed.data.instruction_samples import Part, Samples, numbered
from polyfed.errors import UserError, count_of, up_to
from polyfed.rng import numpy_generator

CLIENT, TASK, PICTURE = "client", "task", "picture"


@dataclass(frozen=True)
class FieldTables:
    """Fields of each table, and the names of their values.

    ``client`` is there where samples name their clients or are dealt to some; ``task`` numbers the tasks, ``picture``
    the pictures by content, and after them every sample without one.
    """

    tables: Sequence[Mapping[str, Tensor]]
    labels: Mapping[str, tuple[str, ...]]
    repeated: bool


def fields_of(samples: Samples, tasks: Sequence[str], clients_per_task: int | None, seed: int) -> FieldTables:
    """Return the fields of the tables. Raises UserError as ``named_clients``, and where pictures are too few."""
    number = {task: i for i, task in enumerate(tasks)}
    pictures = _pictures(samples)
    tables: list[dict[str, Tensor]] = [
        {TASK: torch.tensor([number[task] for task in part.tasks]), PICTURE: pictures[i]}
        for i, part in enumerate(samples.parts)
    ]
    labels = {TASK: tuple(tasks)}
    names = named_clients(samples, clients_per_task)
    if clients_per_task is not None:
        for i, part in enumerate(samples.parts):
            tables[i][CLIENT] = _dealt(part, tables[i][PICTURE], tasks, clients_per_task, seed, needed=i == 0)
        labels[CLIENT] = tuple(f"{task} {i}" for task in tasks for i in range(clients_per_task))
    elif names[0]:
        labels[CLIENT] = tuple(numbered([name for held in names for name in held]))
        known = {name: i for i, name in enumerate(labels[CLIENT])}
        for table, held in zip(tables, names, strict=True):
            if held:
                table[CLIENT] = torch.tensor([known[name] for name in held])
    train = tables[0][PICTURE]
    return FieldTables(tables, labels, len(np.unique(train.numpy())) < len(train))


def named_clients(samples: Samples, clients_per_task: int | None) -> list[list[str]]:
    """Return the client of each row of each table; an empty list for a table without any.

    Raises UserError where only some samples of a table name one, where they do although they are to be dealt, and for
    a test sample of a client that has nothing to train on: by clients, it would be dealt to nobody.
    """
    found = [_clients(part) for part in samples.parts]
    if clients_per_task is not None and any(found):
        raise UserError("data.samples.clients_per_task: the samples name their clients ('client'); leave it out")
    trained = set(found[0])
    for name, place in zip(found[-1], samples.parts[-1].places, strict=False):
        if trained and name not in trained:
            raise UserError(
                f"{place}, 'client': the client {name!r} of this test sample has no training sample; give it some, "
                "leave out its test samples, or, to deal samples without regard to 'client', leave it out of them all"
            )
    return found


def _pictures(samples: Samples) -> list[Tensor]:
    """Number pictures, and behind them samples without one, across the tables."""
    known = {digest: i for i, digest in enumerate(samples.pictures)}
    free, found = len(known), []
    for part in samples.parts:
        numbers = []
        for digest in part.pictures:
            numbers.append(free if digest is None else known[digest])
            free += digest is None
        found.append(torch.tensor(numbers))
    return found


def _clients(part: Part) -> list[str]:
    """Return the client of each row; an empty list if none is named."""
    named = [name for name in part.clients if name is not None]
    if named and len(named) < len(part.clients):
        row = part.clients.index(None)
        raise UserError(f"{part.places[row]}, 'client': is missing, but other samples name their client")
    return named


def _dealt(part: Part, pictures: Tensor, tasks: Sequence[str], count: int, seed: int, *, needed: bool) -> Tensor:
    """Deal each task's samples to ``count`` clients of its own, all of one picture to one of them."""
    found = torch.zeros(len(part.tasks), dtype=torch.int64)
    named = np.array(part.tasks)
    for number, task in enumerate(tasks):
        rows = np.flatnonzero(named == task)
        groups, group = np.unique(pictures.numpy()[rows], return_inverse=True)
        if needed and len(groups) < count:
            raise UserError(
                f"data.samples.clients_per_task: {count_of(count, 'client')} for each task, but {task!r} has training"
                f" samples of {count_of(len(groups), 'picture')}; use {up_to(len(groups), 'client')}"
            )
        order = numpy_generator(seed, "instructions", "clients", task, "train" if needed else "test")
        owner = order.permutation(np.arange(len(groups)) % count)
        found[torch.from_numpy(rows)] = torch.from_numpy(number * count + owner[group])
    return found
