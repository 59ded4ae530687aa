"""Mini-batches: which samples each optimiser step sees, for one client and for many stacked ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from polyfed.data.columns import Column
from polyfed.data.masks import Masks
from polyfed.data.samples import Batch, Samples
from polyfed.model.masks import keep
from polyfed.rng import Key, torch_generator

NOBODY = -1  # the position of padding


def epoch_orders(count: int, epochs: int, size: int, key: tuple[Key, ...]) -> list[Tensor]:
    """Return the order of the samples in each epoch: a new permutation each, drawn for the key.

    Where one batch holds all samples their order means nothing, and they stay as they are.
    """
    if count <= size:
        return [torch.arange(count)] * epochs
    generator = torch_generator(*key, "batches")
    return [torch.randperm(count, generator=generator) for _ in range(epochs)]


def batches(count: int, epochs: int, size: int, key: tuple[Key, ...]) -> list[Tensor]:
    """Return positions of every mini-batch; the last one of an epoch may be smaller. No samples, no batches."""
    if not count:
        return []
    at_once = min(size, count)  # torch cannot count as far as a user can
    return [part for order in epoch_orders(count, epochs, size, key) for part in torch.split(order, at_once)]


def steps_of(count: int, epochs: int, size: int) -> int:
    """Return the number of mini-batches."""
    return epochs * -(-count // size)


@dataclass(frozen=True)
class StackedBatch:
    """One step of the first clients of a stack: a batch of tensors (clients, batch, ...), padded.

    ``sizes`` (clients,) counts the true samples; padded ones are masked out as absent and unlabelled.
    """

    batch: Batch
    sizes: Tensor


class StackedBatches:
    """The mini-batches of several clients, step by step. Clients come with the most steps first.

    All samples are of one table. A client whose steps are over drops out from the end of the stack.
    """

    def __init__(
        self, data: Sequence[Samples], orders: Sequence[Sequence[Tensor]], size: int, modalities: frozenset[str]
    ) -> None:
        first = data[0]
        self._table = first.table
        names = [name for name in first.modalities if name in modalities]
        width = min(size, max(len(samples) for samples in data))
        sequences = [positions(epochs, width) for epochs in orders]
        self.steps = [len(sequence) // width for sequence in sequences]
        places = side_by_side(sequences, NOBODY).view(len(data), -1, width)
        self._valid = places != NOBODY
        self._whole = bool(self._valid.all())
        self._sizes = self._valid.sum(-1)
        self._places = places.clamp_(min=0).flatten(1)
        self._rows = self._placed([samples.rows for samples in data])
        self._partial: set[str] = set()
        self._present = {
            name: self._mask([Masks.of(samples.present, len(samples)) for samples in data], name) for name in names
        }
        self._labelled = {
            name: self._mask([Masks.of(samples.labelled, len(samples)) for samples in data], name)
            for name in first.tasks
        }
        self._whole_tasks, self._everywhere = frozenset(first.tasks) - self._partial, frozenset(names) - self._partial

    def _placed(self, values: Sequence[Tensor]) -> Tensor:
        """Lay out one value per sample, by client and step: (clients, steps, batch)."""
        return side_by_side(values, 0).gather(1, self._places).view(self._valid.shape)

    def _mask(self, masks: Sequence[Masks], name: str) -> Tensor:
        """Lay out a mask; it is false at padding."""
        gaps = any(name in held.gaps for held in masks)
        if gaps or not self._whole:
            self._partial.add(name)
        return self._placed([held[name] for held in masks]) & self._valid if gaps else self._valid

    def __iter__(self) -> Iterator[StackedBatch]:
        return (self.at(step) for step in range(self.steps[0]))

    def at(self, step: int) -> StackedBatch:
        """Fetch the batch of one step, of the clients that take it."""
        count = sum(steps > step for steps in self.steps)
        rows = self._rows[:count, step].reshape(-1)
        present = {name: mask[:count, step] for name, mask in self._present.items()}
        labelled = {name: mask[:count, step] for name, mask in self._labelled.items()}
        inputs = {name: self._fetch(self._table.inputs[name], name, rows, mask) for name, mask in present.items()}
        targets = {name: self._fetch(self._table.targets[name], name, rows, mask) for name, mask in labelled.items()}
        batch = Batch(inputs, present, targets, labelled, self._whole_tasks, self._everywhere)
        return StackedBatch(batch, self._sizes[:count, step])

    def _fetch(self, column: Column, name: str, rows: Tensor, mask: Tensor) -> Tensor:
        values = column.gather(rows).view(*mask.shape, *column.shape)
        return keep(values, mask) if name in self._partial else values


def side_by_side(sequences: Sequence[Tensor], padding: int) -> Tensor:
    """Stack sequences (length,), the shorter ones padded at their ends."""
    if len({len(sequence) for sequence in sequences}) == 1:
        return torch.stack(list(sequences))
    return pad_sequence(list(sequences), batch_first=True, padding_value=padding)


def positions(orders: Sequence[Tensor], width: int) -> Tensor:
    """Write the orders of all epochs one after another, each padded to whole batches of ``width``."""
    count = len(orders[0])
    missing = -count % width
    parts = [pad(order, (0, missing), value=NOBODY) for order in orders] if missing else list(orders)
    return parts[0] if len(parts) == 1 else torch.cat(parts)
