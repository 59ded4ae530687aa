"""Columns: one value per row, in memory or on disk, fetched by row number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Column(Protocol):
    """Rows of one modality or one target. ``shape`` is that of a single row."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        ...

    @property
    def resident(self) -> bool:
        """Whether the rows are in memory, so that there is nothing to gain by fetching them ahead."""
        ...

    def __len__(self) -> int: ...

    def gather(self, rows: Tensor) -> Tensor:
        """Return the named rows, (rows, *shape), float32 or int64."""
        ...


@dataclass(frozen=True)
class TensorColumn:
    """A column held in memory: float32 or int64 as is; uint8 is kept small and becomes ``scale * value``."""

    values: Tensor
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return tuple(self.values.shape[1:])

    @property
    def resident(self) -> bool:
        """In memory."""
        return True

    def __len__(self) -> int:
        return len(self.values)

    def gather(self, rows: Tensor) -> Tensor:
        """Return the named rows."""
        found = self.values.index_select(0, rows)
        return found.to(torch.float32).mul_(self.scale) if found.dtype == torch.uint8 else found


@dataclass(frozen=True)
class IndirectColumn:
    """Rows that point into another column, so that a repeated value is stored once."""

    base: Column
    index: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return self.base.shape

    @property
    def resident(self) -> bool:
        """As the column pointed into."""
        return self.base.resident

    def __len__(self) -> int:
        return len(self.index)

    def gather(self, rows: Tensor) -> Tensor:
        """Return the named rows."""
        return self.base.gather(self.index.index_select(0, rows))


@dataclass(frozen=True)
class LoadedColumn:
    """Rows loaded one by one by a function of the row number (files of images, clips, arrays)."""

    load: Callable[[int], Tensor]
    length: int
    shape: tuple[int, ...]

    @property
    def resident(self) -> bool:
        """Loaded when asked for."""
        return False

    def __len__(self) -> int:
        return self.length

    def gather(self, rows: Tensor) -> Tensor:
        """Load the named rows and stack them."""
        return torch.stack([self.load(int(row)) for row in rows])


@dataclass(frozen=True)
class JoinedColumn:
    """Columns of several tables one below the other; a row that none of them covers is zero.

    ``pieces`` are the columns, each with the row it begins at. They have one shape and the type ``dtype``.
    """

    pieces: tuple[tuple[int, Column], ...]
    length: int
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return self.pieces[0][1].shape

    @property
    def resident(self) -> bool:
        """In memory if all pieces are."""
        return all(column.resident for _, column in self.pieces)

    def __len__(self) -> int:
        return self.length

    def gather(self, rows: Tensor) -> Tensor:
        """Return the named rows; no piece is asked for rows of another."""
        found = torch.zeros(len(rows), *self.shape, dtype=self.dtype)
        for start, column in self.pieces:
            inside = torch.nonzero((rows >= start) & (rows < start + len(column))).flatten()
            if len(inside) == len(rows) > 0:  # as nearly always: the rows of a client are of one table
                return column.gather(rows - start)
            if len(inside):
                found[inside] = column.gather(rows[inside] - start)
        return found
