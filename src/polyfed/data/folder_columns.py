"""Columns of a user's own folder: files read one by one, and memory-mapped arrays, checked as they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from polyfed.data.folder_files import Array, Expected, read_file
from polyfed.errors import UserError


@dataclass(frozen=True)
class FileLoader:
    """Reads the file of a row; zeros where the row names none."""

    files: Sequence[Path | None]
    expected: Expected

    def __call__(self, row: int) -> Tensor:
        """Read one row."""
        file = self.files[row]
        if file is None:
            return torch.zeros(self.expected.shape, dtype=torch.int64 if self.expected.classes else torch.float32)
        return read_file(file, self.expected)


@dataclass(frozen=True)
class ArrayColumn:
    """Rows of a memory-mapped array, checked as they are read."""

    array: Array
    path: Path
    expected: Expected

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return self.expected.shape

    @property
    def resident(self) -> bool:
        """Read when asked for."""
        return False

    def __len__(self) -> int:
        return len(self.array)

    def gather(self, rows: Tensor) -> Tensor:
        """Read the named rows, in file order for the disk's sake. Raises UserError naming a row with bad values."""
        order = torch.argsort(rows, stable=True)
        read = self.array[rows[order].numpy()]
        try:
            values = self.expected.tensor(read, str(self.path))
        except UserError:
            for i, row in enumerate(rows[order].tolist()):
                self.expected.tensor(read[i : i + 1], f"{self.path}, row {row}")  # raises at the row at fault
            raise
        return torch.empty_like(values).index_copy_(0, order, values)


def inside(root: Path, file: str, place: str) -> Path:
    """Return the path of a file of the folder. Raises UserError when it is missing or lies outside the folder."""
    try:
        path = (root / file).resolve()
        there = path.is_file()
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{place}: {file!r} is not a file name: {error}") from error
    if not path.is_relative_to(root.resolve()):
        raise UserError(f"{place}: {file!r} lies outside the folder {root}")
    if not there:
        raise UserError(f"{place}: there is no file {file!r} in {root}")
    return root / file
