"""Read the generated samples in a run folder. The file is not trusted: everything in it is checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, FiniteFloat
from torch import Tensor

from polyfed.data.schema import Form
from polyfed.engine.pictures import CALLED, FILE, LARGEST_SIDE, MOST_BYTES, MOST_INPUTS, MOST_SAMPLES, Sampled, Shown
from polyfed.report.entries import Entry
from polyfed.report.kept_samples import read_kept

LARGEST_FILE = 2 * MOST_BYTES
KEY = r"^(target|prediction|input\..+)$"


class _Shown(Entry):
    form: Form
    low: FiniteFloat
    high: FiniteFloat
    present: Annotated[tuple[bool, ...], Field(min_length=1, max_length=MOST_SAMPLES)]


class _Sampled(Entry):
    task: str
    client: int
    shown: Annotated[Mapping[Annotated[str, Field(pattern=KEY)], _Shown], Field(max_length=2 + MOST_INPUTS)]


class _Head(Entry):
    format: Literal[1]
    entries: tuple[_Sampled, ...]


def read_pictures(folder: Path) -> list[Sampled]:
    """Return the generated samples of a run, none if it has no such file.

    Raises UserError naming the file and what is wrong with it.
    """
    return read_kept(folder / FILE, CALLED, LARGEST_FILE, _read)


def _read(text: str, tensors: Mapping[str, Tensor]) -> list[Sampled]:
    head = _Head.model_validate_json(text)
    found = [_sampled(number, entry, tensors) for number, entry in enumerate(head.entries)]
    if sum(one.size for one in found) > MOST_BYTES:
        raise ValueError(f"its pictures come to more than {MOST_BYTES:,} bytes")
    return found


def _sampled(number: int, entry: _Sampled, tensors: Mapping[str, Tensor]) -> Sampled:
    place = f"entry {number}"
    missing = [name for name in ("target", "prediction") if name not in entry.shown]
    if missing:
        raise ValueError(f"{place} has no {missing[0]}")
    values = {name: _picture(f"{number}.{name}", tensors, len(how.present)) for name, how in entry.shown.items()}
    if len({len(value) for value in values.values()}) > 1:
        raise ValueError(f"{place} has pictures of different numbers of samples")
    shown = {name: Shown(how.form, how.low, how.high, how.present) for name, how in entry.shown.items()}
    return Sampled(entry.task, entry.client, shown, values)


def _picture(key: str, tensors: Mapping[str, Tensor], samples: int) -> Tensor:
    value = tensors.get(key)
    if value is None:
        raise ValueError(f"the tensor {key} is missing")
    fits = (
        value.dtype == torch.uint8
        and value.dim() == 4
        and value.shape[0] == samples
        and value.shape[1] in (1, 3)
        and all(1 <= side <= LARGEST_SIDE for side in value.shape[2:])
    )
    if not fits:
        raise ValueError(
            f"the tensor {key} is {value.dtype} {tuple(value.shape)}, not torch.uint8 ({samples}, 1 or 3, height, "
            f"width) with sides of 1 to {LARGEST_SIDE}"
        )
    return value
