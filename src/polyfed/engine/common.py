"""What all workers are sent in common during one exchange: each tensor once, whoever refers to it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from polyfed.engine.shared_memory import Place, aligned, place_of, write
from polyfed.method.protocol import Groups


class Common:
    """Groups of tensors that many clients are sent, written to shared memory and numbered.

    Memory is written from the front and never twice, so that workers may read what is there while more is added.
    """

    def __init__(self, memory: Tensor, serial: int) -> None:
        self.serial = serial
        self._memory = memory
        self._used = 0
        self._places: dict[int, Place] = {}
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._kept: list[Groups] = []  # tensors stay alive, so that no other one comes to have their identity
        self.entries: list[dict[str, dict[str, Place]]] = []

    def number(self, groups: Groups) -> int | None:
        """Return the number of these groups, None if there is no room for them."""
        key = tuple((group, name, id(value)) for group, held in groups.items() for name, value in held.items())
        if key in self._numbers:
            return self._numbers[key]
        fresh = {
            id(value): value for held in groups.values() for value in held.values() if id(value) not in self._places
        }
        if self._used + sum(aligned(value.nbytes) for value in fresh.values()) > len(self._memory):
            return None
        self._kept.append(groups)
        for identity, value in fresh.items():
            write(self._memory, self._used, value.detach())
            self._places[identity] = place_of(value, self._used)
            self._used += aligned(value.nbytes)
        self.entries.append(
            {group: {name: self._places[id(value)] for name, value in held.items()} for group, held in groups.items()}
        )
        self._numbers[key] = len(self.entries) - 1
        return self._numbers[key]
