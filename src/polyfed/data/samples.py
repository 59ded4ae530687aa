"""Tables of columns, the samples a client holds of them, and batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from polyfed.data.columns import Column


class Batch(NamedTuple):
    """Some samples as tensors.

    ``inputs[m]`` (batch, *shape of m) and its mask ``present[m]`` (batch,) bool; ``targets[t]`` (batch, *shape of t)
    and its mask ``labelled[t]`` (batch,) bool. Where a mask is false the value is zero and must not be used.
    """

    inputs: dict[str, Tensor]
    present: dict[str, Tensor]
    targets: dict[str, Tensor]
    labelled: dict[str, Tensor]


@dataclass(frozen=True)
class Table:
    """Columns of equal length: inputs by modality, targets by task, and integer fields (subject, speaker, ...).

    ``present`` and ``labelled`` hold masks (rows,) bool for modalities and tasks that some rows lack; a name that is
    not in them is there in every row.
    """

    inputs: Mapping[str, Column]
    targets: Mapping[str, Column]
    fields: Mapping[str, Tensor] = field(default_factory=dict)
    present: Mapping[str, Tensor] = field(default_factory=dict)
    labelled: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in [*self.inputs.items(), *self.targets.items()]}
        lengths |= {name: len(values) for name, values in self.fields.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns of one table differ in length: {lengths}")

    def __len__(self) -> int:
        return len(next(iter([*self.inputs.values(), *self.targets.values()])))

    def everything(self) -> Samples:
        """Return all rows with all modalities and tasks."""
        rows = torch.arange(len(self))
        always = torch.ones(len(self), dtype=torch.bool)
        present = {name: self.present.get(name, always) for name in self.inputs}
        labelled = {name: self.labelled.get(name, always) for name in self.targets}
        return Samples(self, rows, present, labelled)


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
        return len(self.rows)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities held, sorted."""
        return tuple(sorted(self.present))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks held, sorted."""
        return tuple(sorted(self.labelled))

    def take(self, positions: Tensor) -> Samples:
        """Return the samples at these positions (int64)."""
        return replace(
            self,
            rows=self.rows[positions],
            present={name: mask[positions] for name, mask in self.present.items()},
            labelled={name: mask[positions] for name, mask in self.labelled.items()},
        )

    def only(self, modalities: Iterable[str], tasks: Iterable[str]) -> Samples:
        """Return the same samples with fewer modalities and tasks."""
        return replace(
            self,
            present={name: self.present[name] for name in sorted(modalities)},
            labelled={name: self.labelled[name] for name in sorted(tasks)},
        )

    def holding(self, modalities: Iterable[str]) -> Samples:
        """Return the samples that have at least one of these modalities."""
        masks = [self.present[name] for name in modalities if name in self.present]
        held = torch.stack(masks).any(0) if masks else torch.zeros(len(self), dtype=torch.bool)
        return self if bool(held.all()) else self.take(torch.nonzero(held).flatten())

    def masked(self, present: Mapping[str, Tensor]) -> Samples:
        """Return the same samples with modalities taken away where the given masks (samples,) are false."""
        return replace(self, present={name: mask & present.get(name, mask) for name, mask in self.present.items()})

    def field(self, name: str) -> Tensor:
        """Return an integer field of these samples, (samples,)."""
        return self.table.fields[name][self.rows]

    def target(self, task: str) -> Tensor:
        """Return the targets of a task, (samples, *shape)."""
        return self.table.targets[task].gather(self.rows)

    def batch(self, positions: Tensor | None = None, modalities: Iterable[str] | None = None) -> Batch:
        """Fetch samples as tensors: those at ``positions`` (default all), with these modalities (default all held)."""
        chosen = self if positions is None else self.take(positions)
        names = self.modalities if modalities is None else tuple(sorted(set(modalities) & set(self.present)))
        rows, table = chosen.rows, self.table
        present = {name: chosen.present[name] for name in names}
        return Batch(
            inputs={name: blank(table.inputs[name].gather(rows), present[name]) for name in names},
            present=present,
            targets={name: blank(table.targets[name].gather(rows), mask) for name, mask in chosen.labelled.items()},
            labelled=dict(chosen.labelled),
        )


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
    modalities = sorted({name for part in parts for name in part.present})
    tasks = sorted({name for part in parts for name in part.labelled})

    def joined(masks: Iterable[Mapping[str, Tensor]], name: str) -> Tensor:
        never = (torch.zeros(len(part), dtype=torch.bool) for part in parts)
        return torch.cat([mask.get(name, none) for mask, none in zip(masks, never, strict=True)])

    return Samples(
        first.table,
        torch.cat([part.rows for part in parts]),
        {name: joined([part.present for part in parts], name) for name in modalities},
        {name: joined([part.labelled for part in parts], name) for name in tasks},
    )
