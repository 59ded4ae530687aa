"""Read files of samples that a run keeps. They are not trusted: what is wrong with one is said by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from torch import Tensor

from polyfed.engine.tensorfile import read_tensors
from polyfed.errors import UserError
from polyfed.report.entries import first_fault

T = TypeVar("T")


def read_kept(path: Path, called: str, most: int, read: Callable[[str, Mapping[str, Tensor]], list[T]]) -> list[T]:
    """Return what ``read`` makes of a file's text called so and of its tensors; none if there is no such file.

    Raises UserError naming the file where it has more than ``most`` bytes or ``read`` finds fault with it.
    """
    if not path.is_file():
        return []
    try:
        size = path.stat().st_size
        if size > most:
            raise ValueError(f"it has {size:,} bytes, more than {most:,}")
        tensors, texts = read_tensors(path.read_bytes())
        return read(texts.get(called, ""), tensors)
    except (OSError, ValueError, LookupError) as error:  # a ValidationError is a ValueError, too
        why = first_fault(error) if isinstance(error, ValidationError) else str(error)
        raise UserError(
            f"{path}: not {called} polyfed wrote: {why}. Without the file the report can be written"
        ) from error
