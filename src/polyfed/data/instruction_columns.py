"""Texts of different lengths as columns: end to end in memory, padded only when they are fetched."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import torch
from torch import Tensor

from polyfed.data.instruction_checkpoint import Encoded
from polyfed.data.schema import IGNORED


@dataclass(frozen=True)
class PackedColumn:
    """Rows of whole numbers, end to end.

    Row i is ``values[offsets[i]:offsets[i + 1]]``, filled up with ``fill`` to ``length`` numbers. Where ``kept``
    (values,) is given and false, there is ``fill``, too.
    """

    values: Tensor
    offsets: Tensor
    length: int
    fill: int
    kept: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return (self.length,)

    @property
    def resident(self) -> bool:
        """In memory."""
        return True

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def gather(self, rows: Tensor) -> Tensor:
        """Return the named rows, (rows, length) int64."""
        starts, places = self.offsets[rows].unsqueeze(1), torch.arange(self.length)
        inside = places < self.offsets[rows + 1].unsqueeze(1) - starts
        index = (starts + places).clamp(max=len(self.values) - 1)
        shown = inside if self.kept is None else inside & self.kept[index]
        return torch.where(shown, self.values[index].long(), self.fill)


@dataclass
class Packing:
    """Conversations that are packed one after the other."""

    tokens: array[int] = field(default_factory=lambda: array("i"))
    learned: bytearray = field(default_factory=bytearray)
    offsets: list[int] = field(default_factory=lambda: [0])
    longest: int = 0

    def add(self, encoded: Encoded) -> None:
        """Add a conversation."""
        learned = bytearray(len(encoded.tokens))
        for start, end in encoded.answers:
            learned[start:end] = b"\1" * (end - start)
        self.tokens.extend(encoded.tokens)
        self.learned.extend(learned)
        self.offsets.append(len(self.tokens))
        self.longest = max(self.longest, len(encoded.tokens))

    def columns(self, length: int, padding: int) -> tuple[PackedColumn, PackedColumn]:
        """Return the texts, filled up with padding, and what is to be learned of them, ``IGNORED`` elsewhere."""
        tokens, offsets = torch.frombuffer(self.tokens, dtype=torch.int32), torch.tensor(self.offsets)
        learned = torch.frombuffer(self.learned, dtype=torch.bool)
        return PackedColumn(tokens, offsets, length, padding), PackedColumn(tokens, offsets, length, IGNORED, learned)
