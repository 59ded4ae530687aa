"""Tensors in memory that a process and its children see alike.

What is written there is described by plain values (dtype, shape, offset), which travel as JSON beside it. What does not
fit travels as bytes instead.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Mapping

import torch
from torch import Tensor

from polyfed.method.protocol import Groups

ALIGNMENT = 64
NORESERVE = 0x4000 if sys.platform.startswith("linux") else 0
"""Pages cost nothing until they are written to (Python names this flag from 3.13 on)."""

Place = tuple[str, tuple[int, ...], int]
"""dtype, shape, offset in bytes."""


def region(size: int) -> Tensor:
    """Reserve so many bytes, (size,) uint8, shared with processes forked from now on."""
    flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | NORESERVE
    return torch.frombuffer(mmap.mmap(-1, size, flags=flags), dtype=torch.uint8)


def aligned(size: int) -> int:
    """Round up, so that every tensor starts where vector instructions like it."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def write(memory: Tensor, offset: int, value: Tensor) -> None:
    """Copy a tensor's values into memory (bytes,) uint8."""
    read(memory, place_of(value, offset)).copy_(value)


def read(memory: Tensor, place: Place) -> Tensor:
    """View a tensor in memory (bytes,) uint8."""
    name, shape, offset = place
    dtype: torch.dtype = getattr(torch, name)
    size = dtype.itemsize
    for length in shape:
        size *= length
    return memory[offset : offset + size].view(dtype).view(shape)


def place_of(value: Tensor, offset: int) -> Place:
    """Describe a tensor that stands, or is to stand, at an offset."""
    return str(value.dtype).removeprefix("torch."), tuple(value.shape), offset


class Packing:
    """Tensors gathered for one message, each at its place; a tensor that comes twice is packed once."""

    def __init__(self) -> None:
        self._tensors: list[tuple[Tensor, int]] = []
        self._places: dict[int, Place] = {}
        self.size = 0

    def add(self, value: Tensor) -> Place:
        """Take a tensor in and return its place."""
        found = self._places.get(id(value))
        if found is None:
            found = self._places[id(value)] = place_of(value, self.size)
            self._tensors.append((value, self.size))
            self.size += aligned(value.nbytes)
        return found

    def add_groups(self, groups: Groups) -> dict[str, dict[str, Place]]:
        """Take named groups of named tensors in."""
        return {group: {name: self.add(value) for name, value in held.items()} for group, held in groups.items()}

    def write(self, memory: Tensor) -> None:
        """Write the tensors to their places."""
        for value, offset in self._tensors:
            write(memory, offset, value.detach())


def read_groups(memory: Tensor, places: Mapping[str, Mapping[str, Place]]) -> dict[str, dict[str, Tensor]]:
    """View named groups of tensors in memory."""
    return {group: {name: read(memory, place) for name, place in held.items()} for group, held in places.items()}
