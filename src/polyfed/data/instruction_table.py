"""Instructions as a table: token ids, where the answers stand among them, and what the vision tower sees.

The tokenizer and the vision tower are those of a LLaVA checkpoint. The tower is frozen, so every picture goes through
it once, before training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from polyfed.data.columns import Column, IndirectColumn, TensorColumn
from polyfed.data.dataset import Dataset
from polyfed.data.instruction_checkpoint import Checkpoint, load_checkpoint
from polyfed.data.instruction_columns import Packing
from polyfed.data.samples import Asked, Table
from polyfed.data.schema import Modality, Task

__all__ = [
    "IMAGE",
    "TEXT",
    "Checkpoint",
    "Instruction",
    "Rows",
    "Vision",
    "instruction_dataset",
    "load_checkpoint",
    "schema_of",
]

IMAGE, TEXT = "image", "text"
Vision = Literal["features", "pixels"]


@dataclass(frozen=True)
class Instruction:
    """One example: what is asked (without the picture's mark), the right answers, of which the first is learned.

    ``picture`` opens it (a PIL image); None where there is none. ``client`` numbers its natural client.
    """

    task: str
    text: str
    answers: tuple[str, ...]
    picture: Callable[[], Any] | None = None
    client: int = 0


@dataclass(frozen=True)
class Rows:
    """Rows of a table in the making: their texts, what each asks, and its task."""

    packing: Packing
    asked: Sequence[Asked]
    tasks: Sequence[str]

    def table(
        self,
        names: Sequence[str],
        length: int,
        padding: int,
        features: Column | None,
        fields: Mapping[str, Tensor],
    ) -> Table:
        """Make the table, with texts of ``length`` tokens; ``names`` are the tasks of all tables.

        ``features`` are those of each row's picture; None leaves out the modality.
        """
        texts, targets = self.packing.columns(length, padding)
        inputs: dict[str, Column] = {TEXT: texts} if features is None else {IMAGE: features, TEXT: texts}
        seen = torch.tensor([each.picture is not None for each in self.asked])
        labelled = {name: torch.tensor([task == name for task in self.tasks]) for name in names}
        return Table(
            inputs,
            dict.fromkeys(names, targets),
            fields,
            {} if features is None or bool(seen.all()) else {IMAGE: seen},
            {name: mask for name, mask in labelled.items() if not bool(mask.all())},
            list(self.asked),
        )


def schema_of(
    found: Checkpoint, length: int, metrics: Mapping[str, str], *, pictures: bool, vision: Vision = "features"
) -> tuple[dict[str, Modality], dict[str, Task]]:
    """Return the modalities and tasks of texts of ``length`` tokens; ``metrics`` says how each task is judged."""
    modalities = {TEXT: Modality(TEXT, "tokens", (length,), vocabulary=len(found.processor.tokenizer))}
    if pictures:
        seen = Modality(IMAGE, "vector", found.shape)
        pixels = Modality(IMAGE, "image", found.picture_shape)
        modalities = {IMAGE: seen if vision == "features" else pixels, **modalities}
    return modalities, {task: Task(task, "language", (length,), metric=metric) for task, metric in metrics.items()}


def instruction_dataset(
    name: str,
    train: Sequence[Instruction],
    test: Sequence[Instruction] | None,
    metrics: Mapping[str, str],
    found: Checkpoint,
    vision: Vision = "features",
) -> Dataset:
    """Make a dataset of instructions in memory; ``metrics`` says, by task, how its answers are judged.

    Of pictures it holds what the vision tower makes of them or, for models that train the tower, their pixels.
    """
    parts = [part for part in (train, test) if part is not None]
    rows = [_rows(part, name, found) for part in parts]
    length = max(each.packing.longest for each in rows)
    padding = found.processor.tokenizer.pad_token_id
    tables = [
        each.table(
            tuple(metrics),
            length,
            padding,
            _pictures(part, found, vision),
            {"client": torch.tensor([instruction.client for instruction in part])},
        )
        for part, each in zip(parts, rows, strict=True)
    ]
    modalities, tasks = schema_of(found, length, metrics, pictures=True, vision=vision)
    return Dataset(name, modalities, tasks, tables[0], tables[1] if test is not None else None)


def _rows(part: Sequence[Instruction], name: str, found: Checkpoint) -> Rows:
    packing = Packing()
    for i, each in enumerate(part):
        turns = (each.text, each.answers[0])
        packing.add(found.encoded(turns, each.picture is not None, f"{name}, example {i}"))
    asked = [Asked(each.text, each.answers, each.picture) for each in part]
    return Rows(packing, asked, [each.task for each in part])


def _pictures(part: Sequence[Instruction], found: Checkpoint, vision: Vision) -> Column:
    pictures = [each.picture for each in part if each.picture is not None]
    if not pictures:
        features = torch.zeros(1, *(found.shape if vision == "features" else found.picture_shape))
    elif vision == "features":
        features = found.features(pictures)
    else:
        features = found.pixels([each() for each in pictures])
    seen = torch.tensor([each.picture is not None for each in part])
    return IndirectColumn(TensorColumn(features), (seen.long().cumsum(0) - 1).clamp(min=0))
