"""Tables of columns, the samples a client holds of them, and batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from polyfed.data.columns import Column
from polyfed.data.masks import Masks, joined


class Batch(NamedTuple):
    """Some samples as tensors.

    ``inputs[m]`` (batch, *shape of m) and its mask ``present[m]`` (batch,) bool; ``targets[t]`` (batch, *shape of t)
    and its mask ``labelled[t]`` (batch,) bool. Where a mask is false the value is zero and must not be used.
    ``whole`` names tasks of which every sample is known to be labelled, ``everywhere`` modalities that every sample is
    known to have, without a look at the masks.
    """

    inputs: dict[str, Tensor]
    present: dict[str, Tensor]
    targets: dict[str, Tensor]
    labelled: dict[str, Tensor]
    whole: frozenset[str] = frozenset()
    everywhere: frozenset[str] = frozenset()

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with every tensor changed."""
        inputs, present, targets, labelled = (
            {name: change(value) for name, value in part.items()} for part in self[:4]
        )
        return Batch(inputs, present, targets, labelled, self.whole, self.everywhere)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return self if device.type == "cpu" else self.each(lambda value: value.to(device))


@dataclass(frozen=True)
class Asked:
    """What a language task asks: the question, the texts that are right answers, and what opens the picture, if any.

    A picture opens as an array of bytes (3, height, width).
    """

    question: str
    answers: tuple[str, ...]
    picture: Callable[[], npt.NDArray[np.uint8]] | None = None


@dataclass(frozen=True)
class Table:
    """Columns of equal length: inputs by modality, targets by task, and integer fields (subject, speaker, ...).

    ``present`` and ``labelled`` hold masks (rows,) bool for modalities and tasks that some rows lack; a name that is
    not in them is there in every row. ``asked`` is, by row, what a language task asks.
    """

    inputs: Mapping[str, Column]
    targets: Mapping[str, Column]
    fields: Mapping[str, Tensor] = field(default_factory=dict)
    present: Mapping[str, Tensor] = field(default_factory=dict)
    labelled: Mapping[str, Tensor] = field(default_factory=dict)
    asked: Sequence[Asked] = ()

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in [*self.inputs.items(), *self.targets.items()]}
        lengths |= {name: len(values) for name, values in self.fields.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns of one table differ in length: {lengths}")

    def __len__(self) -> int:
        return len(next(iter([*self.inputs.values(), *self.targets.values()])))

    def everything(self) -> Samples:
        """Return all rows with all modalities and tasks."""
        count = len(self)
        present = Masks.over(self.inputs, count, self.present)
        labelled = Masks.over(self.targets, count, self.labelled)
        return Samples(self, torch.arange(count), present, labelled)


@dataclass(frozen=True)
class Samples:
    """Rows of a table with the modalities and tasks that are offered of them.

    ``rows`` (samples,) int64 are row numbers; ``present[m]`` and ``labelled[t]`` (samples,) bool are the masks. A
    modality or task that is not a key is not held at all.
    """

    table: Table
    rows: Tensor
    present: Mapping[str, Tensor]
    labelled: Mapping[str, Tensor]

    def __len__(self) -> int:
        return self.rows.shape[0]

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities held, sorted."""
        return tuple(sorted(self.present))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks held, sorted."""
        return tuple(sorted(self.labelled))

    @property
    def resident(self) -> bool:
        """Whether all columns held are in memory, so that fetching them ahead gains nothing."""
        columns = [self.table.inputs[name] for name in self.present]
        columns += [self.table.targets[name] for name in self.labelled]
        return all(column.resident for column in columns)

    def _present(self) -> Masks:
        return Masks.of(self.present, len(self))

    def _labelled(self) -> Masks:
        return Masks.of(self.labelled, len(self))

    def take(self, positions: Tensor) -> Samples:
        """Return the samples at these positions (int64)."""
        rows = self.rows.index_select(0, positions)
        return Samples(self.table, rows, self._present().take(positions), self._labelled().take(positions))

    def span(self, start: int, stop: int) -> Samples:
        """Return consecutive samples; nothing is copied."""
        return Samples(
            self.table,
            self.rows[start:stop],
            self._present().span(start, stop),
            self._labelled().span(start, stop),
        )

    def settled(self) -> Samples:
        """Return the same samples without masks that are true everywhere, as in one part of a table with gaps."""
        present, labelled = self._present(), self._labelled()
        if not present.gaps and not labelled.gaps:
            return self
        settled = (Masks.over(masks.names, len(self), masks.gaps) for masks in (present, labelled))
        return Samples(self.table, self.rows, *settled)

    def only(self, modalities: Iterable[str], tasks: Iterable[str]) -> Samples:
        """Return the same samples with fewer modalities and tasks."""
        return Samples(self.table, self.rows, self._present().only(modalities), self._labelled().only(tasks))

    def holding(self, modalities: Iterable[str]) -> Samples:
        """Return the samples that have at least one of these modalities."""
        held = self._present().any(modalities)
        return self if held is None else self.take(torch.nonzero(held).flatten())

    def masked(self, present: Mapping[str, Tensor]) -> Samples:
        """Return the same samples with modalities taken away where the given masks (samples,) are false."""
        return Samples(self.table, self.rows, self._present().minus(present), self.labelled)

    def field(self, name: str) -> Tensor:
        """Return an integer field of these samples, (samples,)."""
        return self.table.fields[name][self.rows]

    def target(self, task: str) -> Tensor:
        """Return the targets of a task, (samples, *shape)."""
        return self.table.targets[task].gather(self.rows)

    def asked(self, positions: Tensor) -> list[Asked]:
        """Return what language tasks ask of the samples at these positions."""
        return [self.table.asked[row] for row in self.rows.index_select(0, positions).tolist()]

    def batch(self, positions: Tensor | None = None, modalities: Iterable[str] | None = None) -> Batch:
        """Fetch samples as tensors: those at ``positions`` (default all), with these modalities (default all held)."""
        present, labelled, rows = self._present(), self._labelled(), self.rows
        if positions is not None:
            present, labelled, rows = present.take(positions), labelled.take(positions), rows.index_select(0, positions)
        wanted = present.names if modalities is None else frozenset(modalities)
        held = Masks(tuple(name for name in present.names if name in wanted), present.samples, present.gaps)
        inputs, targets = fetched(self.table.inputs, rows, held), fetched(self.table.targets, rows, labelled)
        return Batch(*inputs, *targets, labelled.whole, held.whole)


def fetched(columns: Mapping[str, Column], rows: Tensor, masks: Masks) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the rows of the columns in ``masks``, zero where the mask is false, and the masks."""
    values, found = {}, {}
    for name in masks.names:
        value, mask = columns[name].gather(rows), masks[name]
        values[name] = blank(value, mask) if name in masks.gaps else value
        found[name] = mask
    return values, found


def blank(values: Tensor, mask: Tensor) -> Tensor:
    """Zero the rows (first axis) whose mask is false."""
    if bool(mask.all()):
        return values
    return torch.where(mask.view(-1, *[1] * (values.dim() - 1)), values, values.new_zeros(()))


def concatenate(parts: Sequence[Samples]) -> Samples:
    """Join samples of one table; a modality or task that a part does not hold is masked out there."""
    first = parts[0]
    if any(part.table is not first.table for part in parts):
        raise ValueError("samples of different tables cannot be joined")
    return Samples(
        first.table,
        torch.cat([part.rows for part in parts]),
        joined([Masks.of(part.present, len(part)) for part in parts]),
        joined([Masks.of(part.labelled, len(part)) for part in parts]),
    )
