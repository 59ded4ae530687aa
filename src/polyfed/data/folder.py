"""A user's own samples: a folder with ``dataset.yaml``, ``samples.csv`` and the files they name."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from polyfed.data.columns import IndirectColumn
from polyfed.data.dataset import Dataset, Root
from polyfed.data.folder_description import SPLIT, read_description
from polyfed.data.folder_samples import Sheet, read_sheet, read_table
from polyfed.data.samples import Table
from polyfed.data.source import existing_folder
from polyfed.errors import UserError, unknown
from polyfed.registry import Located


def folder(
    root: Root,
    *,
    path: Annotated[Located, Field(min_length=1, description="the folder; relative to the working directory")],
) -> Dataset:
    """Your own samples, described by dataset.yaml and samples.csv in one folder.

    ``dataset.yaml`` describes the modalities and tasks; ``samples.csv`` has a row per sample and a column per modality
    (a file), per task (a value or a file) and per field (a whole number or a text, such as the hospital). An empty
    cell is a missing modality or label. A column ``split`` (train or test) gives a test split. Files are read when
    they are needed, so the data may exceed memory. docs/datasets.md describes both files in full. ``root`` is not used.

    Raises UserError naming the file and line for whatever does not fit.
    """
    place = existing_folder(path, "dataset folder: path")
    description, sheet = read_description(place / "dataset.yaml"), read_sheet(place)
    table, field_labels = read_table(sheet, description)
    train, test = split_rows(sheet)
    return Dataset(
        name=description.name or place.resolve().name,
        modalities={name: part.modality(name) for name, part in description.modalities.items()},
        tasks={name: part.task(name) for name, part in description.tasks.items()},
        train=table if test is None else rows_of(table, train),
        test=None if test is None else rows_of(table, test),
        unit=description.unit,
        field_labels=field_labels,
    )


def split_rows(sheet: Sheet) -> tuple[Tensor, Tensor | None]:
    """Return the training and the test rows; no test rows when the sheet has no column ``split`` or no test row."""
    if SPLIT not in sheet.columns:
        return torch.arange(len(sheet.rows)), None
    cells = sheet.cells(SPLIT)
    for row, cell in zip(sheet.rows, cells, strict=True):
        if cell not in ("train", "test"):
            raise unknown("split", cell, ("train", "test"), place=sheet.place(row, SPLIT))
    test = torch.tensor([cell == "test" for cell in cells])
    if bool(test.all()):
        raise UserError(f"{sheet.path}: column 'split' leaves no row for training")
    rows = torch.nonzero(test)[:, 0]
    return torch.nonzero(~test)[:, 0], rows if len(rows) else None


def rows_of(table: Table, rows: Tensor) -> Table:
    """Return some rows of a table as a table of their own; nothing is copied but masks and fields."""
    return Table(
        inputs={name: IndirectColumn(column, rows) for name, column in table.inputs.items()},
        targets={name: IndirectColumn(column, rows) for name, column in table.targets.items()},
        fields={name: values[rows] for name, values in table.fields.items()},
        present={name: mask[rows] for name, mask in table.present.items()},
        labelled={name: mask[rows] for name, mask in table.labelled.items()},
    )
