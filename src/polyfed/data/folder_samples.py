"""``samples.csv``: the rows of a user's own folder, checked against its description, as a table."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from polyfed.data.columns import Column, LoadedColumn, TensorColumn
from polyfed.data.folder_columns import ArrayColumn, FileLoader, inside
from polyfed.data.folder_description import SPLIT, Description, ModalityPart, TaskPart, check_name
from polyfed.data.folder_files import Expected, check_file, open_array
from polyfed.data.samples import Table
from polyfed.errors import UserError, unknown

LARGEST_NUMBER = 2**63


class Row(NamedTuple):
    """One row of the file and the line it stands on (the header is line 1)."""

    line: int
    cells: Mapping[str, str]


@dataclass(frozen=True)
class Sheet:
    """The rows of ``samples.csv`` in the folder ``root``."""

    root: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def path(self) -> Path:
        """Where the rows were read."""
        return self.root / "samples.csv"

    def place(self, row: Row, column: str) -> str:
        """Say where a cell is."""
        return f"{self.path}, line {row.line}, column {column!r}"

    def cells(self, column: str) -> list[str]:
        """Return the cells of a column; all empty when there is no such column."""
        return [row.cells.get(column, "") for row in self.rows]


class Filled(NamedTuple):
    """A column, and which of its rows hold a value."""

    column: Column
    there: Tensor


def read_sheet(root: Path) -> Sheet:
    """Read ``samples.csv``. Raises UserError for no rows, a name used twice, or a row of another length."""
    path = root / "samples.csv"
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = csv.reader(stream, strict=True)
            header = tuple(name.strip() for name in next(lines, []))
            found = [(lines.line_num, [cell.strip() for cell in cells]) for cells in lines if any(cells)]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a folder of samples needs dataset.yaml and samples.csv") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UserError(f"{path}: a column name may be used once only; used twice: {', '.join(map(repr, twice))}")
    if not found:
        raise UserError(f"{path}: holds no samples")
    for line, cells in found:
        if len(cells) != len(header):
            raise UserError(f"{path}, line {line}: has {len(cells)} cells, but the header names {len(header)} columns")
    return Sheet(root, header, tuple(Row(line, dict(zip(header, cells, strict=True))) for line, cells in found))


def field_names(sheet: Sheet, description: Description) -> tuple[str, ...]:
    """Return the columns that are fields. Raises UserError for a column that is not known, lacking, or misnamed."""
    entries, source = description.entries, sheet.root / "dataset.yaml"
    for name, entry in entries.items():
        if (entry.array is None) != (name in sheet.columns):
            problem = (
                "needs a column of this name or an 'array'" if entry.array is None else "has an 'array' and a column"
            )
            raise UserError(f"{sheet.path}: {name!r} of dataset.yaml {problem}; columns: {', '.join(sheet.columns)}")
    others = tuple(name for name in sheet.columns if name not in entries and name != SPLIT)
    known = others if description.fields is None else description.fields
    for name in known:
        require(name in others, "field", name, others, f"{source}, fields")
    for name in others:
        require(name in known, "column", name, [*entries, *known, SPLIT], str(sheet.path))
        try:
            check_name(name)
        except ValueError as error:
            raise UserError(f"{sheet.path}: column {error}") from None
    if description.unit is not None:
        require(description.unit in others, "field", description.unit, others, f"{source}, unit")
    return others


def require(known: bool, kind: str, name: str, choices: Iterable[str], place: str) -> None:
    """Raise UserError listing the choices unless the name is known."""
    if not known:
        raise unknown(kind, name, choices, place=place)


def read_table(sheet: Sheet, description: Description) -> tuple[Table, dict[str, tuple[str, ...]]]:
    """Check every cell and the header of every file, and return the table and the names of its text fields.

    Files are read when their rows are asked for. Raises UserError naming the file, line and column at fault.
    """
    fields: dict[str, Tensor] = {}
    names: dict[str, tuple[str, ...]] = {}
    for name in field_names(sheet, description):
        fields[name], names[name] = read_field(sheet, name)
    inputs = {name: read_modality(sheet, name, part) for name, part in description.modalities.items()}
    targets = {name: read_task(sheet, name, part) for name, part in description.tasks.items()}
    anything = torch.stack([filled.there for filled in inputs.values()]).any(0)
    if not bool(anything.all()):
        row = sheet.rows[int(anything.to(torch.uint8).argmin())]
        raise UserError(f"{sheet.path}, line {row.line}: every modality is missing in this row")
    table = Table(
        inputs={name: filled.column for name, filled in inputs.items()},
        targets={name: filled.column for name, filled in targets.items()},
        fields=fields,
        present={name: filled.there for name, filled in inputs.items() if not bool(filled.there.all())},
        labelled={name: filled.there for name, filled in targets.items() if not bool(filled.there.all())},
    )
    return table, {name: texts for name, texts in names.items() if texts}


def read_field(sheet: Sheet, name: str) -> tuple[Tensor, tuple[str, ...]]:
    """Read a field: whole numbers as they are; else texts, numbered in alphabetical order, and those texts."""
    cells = sheet.cells(name)
    for row, cell in zip(sheet.rows, cells, strict=True):
        if not cell:
            raise UserError(f"{sheet.place(row, name)}: is empty; a field needs a value in every row")
    numbers = [whole(cell) for cell in cells]
    if all(number is not None for number in numbers):
        return torch.tensor(numbers), ()
    texts = tuple(sorted(set(cells)))
    number_of = {text: number for number, text in enumerate(texts)}
    return torch.tensor([number_of[cell] for cell in cells]), texts


def read_modality(sheet: Sheet, name: str, part: ModalityPart) -> Filled:
    """Read the column or array of a modality."""
    expected = Expected(part.shape, part.vocabulary, part.seconds)
    if part.array is not None:
        return read_array(sheet, name, part.array, expected)
    return read_files(sheet, name, expected)


def read_task(sheet: Sheet, name: str, part: TaskPart) -> Filled:
    """Read the column or array of a task."""
    expected = Expected(part.shape, part.task(name).classes, part.seconds)
    if part.array is not None:
        column, there = read_array(sheet, name, part.array, expected)
        if part.kind == "classification":  # read now, so that a class out of range is found at once
            column = TensorColumn(column.gather(torch.arange(len(column))))
        return Filled(column, there)
    if part.kind == "generation":
        return read_files(sheet, name, expected)
    if part.kind == "classification":
        return read_cells(sheet, name, lambda cell: class_number(cell, part), torch.zeros((), dtype=torch.int64))
    return read_cells(sheet, name, lambda cell: numbers_of(cell, part.shape), torch.zeros(part.shape))


def read_cells(sheet: Sheet, name: str, convert: Callable[[str], Tensor], empty: Tensor) -> Filled:
    """Convert the cells of a column; ``convert`` raises ValueError with what is wrong with a cell."""
    values = []
    for row, cell in zip(sheet.rows, sheet.cells(name), strict=True):
        try:
            values.append(convert(cell) if cell else empty)
        except ValueError as error:
            raise UserError(f"{sheet.place(row, name)}: {error}") from None
    return Filled(TensorColumn(torch.stack(values)), filled_cells(sheet, name))


def read_files(sheet: Sheet, name: str, expected: Expected) -> Filled:
    """Check the files a column names; they are read on demand."""
    files: list[Path | None] = []
    for row, cell in zip(sheet.rows, sheet.cells(name), strict=True):
        files.append(inside(sheet.root, cell, sheet.place(row, name)) if cell else None)
        if cell:
            try:
                check_file(sheet.root / cell, expected)
            except UserError as error:
                raise UserError(f"{error} ({sheet.place(row, name)})") from error
    load = FileLoader(tuple(files), expected)
    return Filled(LoadedColumn(load, len(files), expected.shape), filled_cells(sheet, name))


def read_array(sheet: Sheet, name: str, file: str, expected: Expected) -> Filled:
    """Open an array of all rows; it stays on disk and is read on demand."""
    path = inside(sheet.root, file, f"{sheet.root / 'dataset.yaml'}, {name}.array")
    array = open_array(path, expected)
    wanted = (len(sheet.rows), *expected.shape)
    if array.shape != wanted:
        raise UserError(
            f"{path}: has the shape {list(array.shape)}, but {len(sheet.rows)} rows of samples.csv and the shape in "
            f"dataset.yaml make {list(wanted)}"
        )
    return Filled(ArrayColumn(array, path, expected), torch.ones(len(sheet.rows), dtype=torch.bool))


def filled_cells(sheet: Sheet, name: str) -> Tensor:
    """Return which rows have something in a column."""
    return torch.tensor([bool(cell) for cell in sheet.cells(name)])


def whole(text: str) -> int | None:
    """Return the whole number a text spells, or None."""
    try:
        number = int(text)
    except ValueError:
        return None
    return number if -LARGEST_NUMBER <= number < LARGEST_NUMBER else None


def class_number(cell: str, part: TaskPart) -> Tensor:
    """Return the class a cell names; ValueError when there is none."""
    if part.labels is not None:
        if cell not in part.labels:
            raise ValueError(f"unknown label {cell!r}. Choices: {', '.join(part.labels)}")
        return torch.tensor(part.labels.index(cell))
    number, classes = whole(cell), part.classes or 0
    if number is None or not 0 <= number < classes:
        raise ValueError(f"{cell!r} is not a class. Choices: 0 to {classes - 1}")
    return torch.tensor(number)


def numbers_of(cell: str, shape: tuple[int, ...]) -> Tensor:
    """Return the number (shape ()) or the space-separated numbers (shape (n,)) of a cell; else ValueError."""
    values = [float(text) for text in cell.split()]
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"{cell!r} is not finite")
    if len(values) != math.prod(shape):
        raise ValueError(f"{cell!r} holds {len(values)} numbers, but dataset.yaml says {math.prod(shape)}")
    return torch.tensor(values).view(shape)
