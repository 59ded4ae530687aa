"""Read the samples of written answers in a run folder. The file is not trusted: everything in it is checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from polyfed.engine.answers import (
    BEYOND,
    CALLED,
    FILE,
    LARGEST_SIDE,
    LONGEST_TEXT,
    MOST_ANSWERS,
    MOST_BYTES,
    MOST_CLIENTS,
    MOST_SAMPLES,
    Answered,
    Sheet,
)
from polyfed.report.entries import Entry, Share
from polyfed.report.kept_samples import read_kept

LARGEST_FILE = 2 * MOST_BYTES

Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
Edge = Annotated[float, Field(ge=-BEYOND, le=1 + BEYOND)]


class _Answered(Entry):
    question: Text
    answers: Annotated[tuple[Text, ...], Field(max_length=MOST_ANSWERS)]
    written: Text
    scores: Mapping[Literal["accuracy", "iou"], Share]
    boxes: Mapping[Literal["right", "written"], tuple[Edge, Edge, Edge, Edge]]
    picture: bool


class _Sheet(Entry):
    task: str
    client: int
    samples: Annotated[tuple[_Answered, ...], Field(max_length=MOST_SAMPLES)]


class _Head(Entry):
    format: Literal[1]
    entries: Annotated[tuple[_Sheet, ...], Field(max_length=MOST_CLIENTS)]


def read_answers(folder: Path) -> list[Sheet]:
    """Return the samples of written answers of a run, none if it has no such file.

    Raises UserError naming the file and what is wrong with it.
    """
    return read_kept(folder / FILE, CALLED, LARGEST_FILE, _read)


def _read(text: str, tensors: Mapping[str, Tensor]) -> list[Sheet]:
    head = _Head.model_validate_json(text)
    return [_sheet(number, entry, tensors) for number, entry in enumerate(head.entries)]


def _sheet(number: int, entry: _Sheet, tensors: Mapping[str, Tensor]) -> Sheet:
    samples = tuple(Answered(**dict(one)) for one in entry.samples)
    pictures = {place: _picture(f"{number}.{place}", tensors) for place, one in enumerate(samples) if one.picture}
    return Sheet(entry.task, entry.client, samples, pictures)


def _picture(key: str, tensors: Mapping[str, Tensor]) -> Tensor:
    value = tensors.get(key)
    if value is None:
        raise ValueError(f"the tensor {key} is missing")
    shape = tuple(value.shape)
    sound = len(shape) == 3 and shape[0] == 3 and all(1 <= side <= LARGEST_SIDE for side in shape[1:])
    if value.dtype != torch.uint8 or not sound:
        raise ValueError(
            f"the tensor {key} is {value.dtype} {shape}, not torch.uint8 (3, height, width) with sides of 1 to "
            f"{LARGEST_SIDE}"
        )
    return value
