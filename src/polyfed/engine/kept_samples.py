"""How samples of what models make are kept in a run folder: one file of tensors with a text that describes them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import save
from torch import Tensor

from polyfed.engine.checkpoint import write_atomically

FORMAT = 1


class Kept(Protocol):
    """Samples of one client and task."""

    @property
    def size(self) -> int:
        """Bytes as they count towards the most that are kept."""
        ...

    @property
    def entry(self) -> Mapping[str, Any]:
        """What is told of them, for JSON."""
        ...

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Their tensors by name."""
        ...


def keep(path: Path, called: str, found: Iterable[Kept], most: int, round_number: int) -> None:
    """Write samples to a file until ``most`` bytes are reached, and nothing where there are none.

    ``called`` names what they are samples of, and their text in the file.
    """
    kept: list[Kept] = []
    left = most
    for one in found:
        left -= one.size
        if left < 0:
            break
        kept.append(one)
    if kept:
        write_atomically(path, encoded(called, kept, round_number))


def encoded(called: str, found: Sequence[Kept], round_number: int) -> bytes:
    """Return samples as the content of a file: the tensors of the third are named ``2.…``."""
    tensors = {f"{number}.{name}": value for number, one in enumerate(found) for name, value in one.tensors.items()}
    head = {"format": FORMAT, "round": round_number, "entries": [one.entry for one in found]}
    return save(tensors, {called: json.dumps(head)})
