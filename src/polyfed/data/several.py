"""Several datasets as one, each a domain of it: what they have in common is shared, the rest is missing elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from polyfed.data.columns import Column, JoinedColumn
from polyfed.data.dataset import DATASETS, DOMAIN, Dataset, Root, unknown_task
from polyfed.data.samples import Table
from polyfed.data.schema import Modality, Task
from polyfed.errors import UserError, unknown

SEVERAL = "several"
UNIT = "unit"
NOWHERE = -1  # the value of a field in rows of parts that do not have it
PLACE = "data.parts"

PartName = Annotated[str, Field(pattern=r"^[a-z0-9]+(?:[-_][a-z0-9]+)*$")]
PARTS = "the datasets by names of your choice, each with its options"
Renamed = Annotated[
    Mapping[str, Mapping[str, str]], Field(description="new names of tasks by part: {PART: {task: new name}}")
]
NOTHING: Mapping[str, Mapping[str, str]] = {}


def several(
    root: Root,
    *,
    parts: Annotated[Mapping[PartName, Mapping[str, object]], Field(min_length=1, description=PARTS)],
    rename: Renamed = NOTHING,
) -> Dataset:
    """Several datasets in one federation, each a domain of it.

    The modality ``image`` of the part ``av`` is called ``av_image``; its family is ``image``. Tasks of one name and one
    form are one task; where the forms differ, ``rename`` tells them apart. Rows of one part lack the modalities of the
    others, and the tasks that their part does not have. Field ``domain``, the part of a row; a part's own fields
    come with its name before theirs (``av_clip``) and are -1 in rows of other parts. Rows that belong together in
    their part do so here (field ``unit``). Columns stay those of the parts: nothing is read or copied. Either all parts
    have a test split or none.

    Raises UserError naming the part for whatever does not fit.
    """
    loaded = {part: _loaded(part, options, root) for part, options in parts.items()}
    for part, names in rename.items():
        if part not in loaded:
            raise unknown("part", part, loaded, place="data.rename")
        loaded[part] = with_renamed_tasks(loaded[part], names, f"data.rename.{part}")
    return joined(loaded)


def _loaded(part: str, options: Mapping[str, object], root: Root) -> Dataset:
    place = f"{PLACE}.{part}"
    name = str(options.get("name", ""))
    choices = [choice for choice in DATASETS.names() if choice != SEVERAL]
    if name not in choices:  # parts of parts would only make longer names: list them all as parts
        raise unknown("dataset", name, choices, place=place)
    try:
        return DATASETS.build(name, {key: value for key, value in options.items() if key != "name"}, root)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def with_renamed_tasks(dataset: Dataset, names: Mapping[str, str], place: str) -> Dataset:
    """Return a dataset whose tasks have other names; raises UserError for an unknown task or a name taken twice."""
    for task in names:
        if task not in dataset.tasks:
            raise unknown_task(task, dataset, place)
    called = {task: names.get(task, task) for task in dataset.tasks}
    for new in called.values():
        if list(called.values()).count(new) > 1:
            raise UserError(f"{place}: two tasks would be called {new!r}; choose another name")

    def renamed(table: Table) -> Table:
        targets = {called[task]: table.targets[task] for task in called}
        labelled = {called[task]: mask for task, mask in table.labelled.items()}
        return replace(table, targets=targets, labelled=labelled)

    return replace(
        dataset,
        tasks={called[name]: replace(task, name=called[name]) for name, task in dataset.tasks.items()},
        train=renamed(dataset.train),
        test=None if dataset.test is None else renamed(dataset.test),
    )


def joined(parts: Mapping[str, Dataset]) -> Dataset:
    """Join datasets, by part name. Raises UserError where modalities, tasks or test splits do not go together."""
    modalities, tasks = modalities_of(parts), tasks_of(parts)
    tests = tests_of(parts)
    train_units, test_units = units_of(parts)
    train = Stack({part: dataset.train for part, dataset in parts.items()})
    labels = {f"{part}_{name}": held for part, dataset in parts.items() for name, held in dataset.field_labels.items()}
    return Dataset(
        SEVERAL,
        modalities,
        tasks,
        train.table(parts, tasks, train_units),
        None if tests is None else Stack(tests).table(parts, tasks, test_units),
        unit=None if train_units is None else UNIT,
        field_labels={DOMAIN: tuple(parts), **labels},
        absent={name: why for part in parts.values() for name, why in part.absent.items() if name not in tasks},
    )


def modalities_of(parts: Mapping[str, Dataset]) -> dict[str, Modality]:
    """Return all modalities under their new names; each keeps its family."""
    found: dict[str, Modality] = {}
    for part, dataset in parts.items():
        for name, modality in dataset.modalities.items():
            new = f"{part}_{name}"
            if new in found:
                raise UserError(f"{PLACE}: two modalities would be called {new!r}; give the part {part!r} another name")
            found[new] = replace(modality, name=new)
    return found


def tasks_of(parts: Mapping[str, Dataset]) -> dict[str, Task]:
    """Return all tasks; those of one name must have one form."""
    found: dict[str, Task] = {}
    origin: dict[str, str] = {}
    for part, dataset in parts.items():
        for name, task in dataset.tasks.items():
            if found.setdefault(name, task) != task:
                raise UserError(
                    f"{PLACE}: the task {name!r} is {form(found[name])} in {origin[name]!r}, but {form(task)} in"
                    f" {part!r}; choose options that make them alike, or tell them apart by another name:"
                    f" rename: {{{part}: {{{name}: {part}_{name}}}}}"
                )
            origin.setdefault(name, part)
    return found


def form(task: Task) -> str:
    """Say what a task asks for."""
    if task.kind == "classification":
        return f"{task.kind} of {task.classes} classes" + (f" ({', '.join(task.labels)})" if task.labels else "")
    what = f" ({task.form})" if task.kind == "generation" else ""
    return f"{task.kind}{what} of shape {task.shape}"


def tests_of(parts: Mapping[str, Dataset]) -> dict[str, Table] | None:
    """Return the test tables; None if no part has one. Raises UserError if only some have."""
    tables = {part: dataset.test for part, dataset in parts.items() if dataset.test is not None}
    without = [part for part in parts if part not in tables]
    if tables and without:
        raise UserError(
            f"{PLACE}: {next(iter(tables))!r} has a test split, but {without[0]!r} has none; all parts must have one,"
            " or none. A dataset may have an option for it, such as split: subject for uci-har"
        )
    return tables or None


def units_of(parts: Mapping[str, Dataset]) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Number the units of the training and of the test rows, across all parts; None if no part has units.

    A row of a part without units is a unit of its own.
    """
    if all(dataset.unit is None for dataset in parts.values()):
        return None, None
    train, test, first = [], [], 0
    for dataset in parts.values():
        tables = [table for table in (dataset.train, dataset.test) if table is not None]
        if dataset.unit is None:
            numbers = torch.arange(sum(map(len, tables)))
        else:
            numbers = torch.cat([table.fields[dataset.unit] for table in tables]).long()
        numbers = numbers - numbers.min() + first
        first = int(numbers.max()) + 1
        train.append(numbers[: len(dataset.train)])
        test.append(numbers[len(dataset.train) :])
    return torch.cat(train), torch.cat(test)


@dataclass(frozen=True)
class Stack:
    """Tables of the parts, one below the other."""

    tables: Mapping[str, Table]

    def __len__(self) -> int:
        return sum(map(len, self.tables.values()))

    def table(self, parts: Mapping[str, Dataset], tasks: Mapping[str, Task], unit: Tensor | None) -> Table:
        """Join the tables; ``unit`` (rows,) numbers the rows that belong together."""
        inputs: dict[str, Column] = {}
        present: dict[str, Tensor] = {}
        fields = {DOMAIN: torch.cat([torch.full((len(t),), part) for part, t in enumerate(self.tables.values())])}
        for part, table in self.tables.items():
            for name, modality in parts[part].modalities.items():
                new = f"{part}_{name}"
                inputs[new] = self.column({part: table.inputs[name]}, modality.kind == "tokens")
                present[new] = self.mask({part: table.present.get(name)})
            fields |= {f"{part}_{name}": self.field(part, values) for name, values in table.fields.items()}
        targets: dict[str, Column] = {}
        labelled: dict[str, Tensor] = {}
        for name, task in tasks.items():
            holders = {part: table for part, table in self.tables.items() if name in parts[part].tasks}
            columns = {part: table.targets[name] for part, table in holders.items()}
            targets[name] = self.column(columns, task.kind == "classification")
            labelled[name] = self.mask({part: table.labelled.get(name) for part, table in holders.items()})
        return Table(inputs, targets, fields if unit is None else {**fields, UNIT: unit}, present, labelled)

    @cached_property
    def _spans(self) -> dict[str, slice]:
        ends = list(accumulate(map(len, self.tables.values())))
        return {part: slice(end - len(self.tables[part]), end) for part, end in zip(self.tables, ends, strict=True)}

    def column(self, pieces: Mapping[str, Column], whole_numbers: bool) -> Column:
        """Return the columns of some parts as one."""
        placed = tuple((self._spans[part].start, column) for part, column in pieces.items())
        return JoinedColumn(placed, len(self), torch.int64 if whole_numbers else torch.float32)

    def mask(self, masks: Mapping[str, Tensor | None]) -> Tensor:
        """Return masks of some parts as one (None: true everywhere), false in the other parts."""
        found = torch.zeros(len(self), dtype=torch.bool)
        for part, mask in masks.items():
            found[self._spans[part]] = True if mask is None else mask
        return found

    def field(self, part: str, values: Tensor) -> Tensor:
        """Return a field of one part."""
        found = torch.full((len(self),), NOWHERE)
        found[self._spans[part]] = values.long()
        return found
