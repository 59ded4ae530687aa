"""Multi-FMNIST: a written digit and a garment in one picture, two tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from polyfed import rng
from polyfed.data.avdigits import DIGIT_NAMES
from polyfed.data.columns import Column, IndirectColumn, TensorColumn
from polyfed.data.dataset import Dataset, Root
from polyfed.data.fsdd import Clips, clips
from polyfed.data.mnist import GARMENT_NAMES, ImageArrays, digits
from polyfed.data.pairing import stratified
from polyfed.data.samples import Table
from polyfed.data.schema import Modality, Task
from polyfed.data.spoken import pair_with_speech, square_spectrograms

CANVAS, PICTURE = 36, 28


def multi_fmnist(
    root: Root,
    *,
    generation: Annotated[
        bool, Field(description="add the tasks clean_image and clean_audio (needs the Free Spoken Digit Dataset)")
    ] = False,
    size: Annotated[int, Field(ge=8, le=512, description="height and width of the spectrogram of clean_audio")] = 112,
    limit: Annotated[int | None, Field(ge=10, description="training rows to keep, stratified by digit")] = None,
    seed: Annotated[int, Field(ge=0, description="seed of pairing and of the choice of rows")] = 0,
) -> Dataset:
    """Multi-FMNIST: a digit (top left) and a garment (bottom right) overlapping in one 36x36 picture.

    Modality ``image`` (1, 36, 36) in [0, 1]: the pixel maximum of an MNIST digit at the top left and a Fashion-MNIST
    item at the bottom right. Tasks ``digit`` and ``garment`` (10 classes each); with ``generation`` also
    ``clean_image`` (1, 28, 28), the digit alone, and ``clean_audio`` (1, size, size), the noise-free spectrogram of a
    spoken digit of the same class. 60,000 training and 10,000 test rows: each digit meets one garment of its own
    official split, in a seeded random order, so every picture of both sources is used once.

    Source: the pictures of Lin et al., "Pareto Multi-Task Learning", NeurIPS 2019; sizes and pairing are our own.
    """
    numbers, garments = digits(root), digits(root, "fashion_mnist")
    chosen = stratified(
        torch.from_numpy(numbers[0].labels).long(), limit, rng.numpy_generator(seed, "multi-fmnist", "limit")
    )
    everything = torch.arange(len(numbers[1].labels))
    tables = [
        _table(numbers[test], garments[test], rows, rng.numpy_generator(seed, "multi-fmnist", "garments", test))
        for test, rows in enumerate((chosen, everything))
    ]
    tasks = {
        "digit": Task("digit", "classification", classes=10, labels=DIGIT_NAMES),
        "garment": Task("garment", "classification", classes=10, labels=GARMENT_NAMES),
    }
    if generation:
        read = clips(root)
        speech = TensorColumn(square_spectrograms(read, size, None, seed), 1 / 255)
        tables = [
            _with_clean(table, part, rows, read, speech, test, seed)
            for test, (table, part, rows) in enumerate(zip(tables, numbers, (chosen, everything), strict=True))
        ]
        tasks["clean_image"] = Task("clean_image", "generation", shape=(1, PICTURE, PICTURE))
        tasks["clean_audio"] = Task("clean_audio", "generation", shape=(1, size, size), form="audio")
    image = Modality("image", "image", (1, CANVAS, CANVAS))
    return Dataset("multi-fmnist", {"image": image}, tasks, train=tables[0], test=tables[1])


@dataclass(frozen=True)
class OverlaidColumn:
    """Pictures composed on demand of two sets of bytes (.., 28, 28): ``first`` top left, ``second`` bottom right.

    Row i shows ``first[first_rows[i]]`` and ``second[second_rows[i]]``; where they overlap the brighter pixel wins.
    """

    first: Tensor
    second: Tensor
    first_rows: Tensor
    second_rows: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one picture, (1, 36, 36)."""
        return (1, CANVAS, CANVAS)

    @property
    def resident(self) -> bool:
        """Composed of pictures in memory."""
        return True

    def __len__(self) -> int:
        return len(self.first_rows)

    def gather(self, rows: Tensor) -> Tensor:
        """Compose the named pictures, (rows, 1, 36, 36) in [0, 1]."""
        picture = torch.zeros(len(rows), CANVAS, CANVAS, dtype=torch.uint8)
        picture[:, :PICTURE, :PICTURE] = self.first.index_select(0, self.first_rows[rows])
        corner = picture[:, CANVAS - PICTURE :, CANVAS - PICTURE :]
        torch.maximum(corner, self.second.index_select(0, self.second_rows[rows]), out=corner)
        return picture.unsqueeze(1).to(torch.float32).div_(255)


def _table(number: ImageArrays, garment: ImageArrays, rows: Tensor, draw: np.random.Generator) -> Table:
    partner = torch.from_numpy(draw.permutation(len(garment.labels)))[rows]
    picture = OverlaidColumn(torch.from_numpy(number.images), torch.from_numpy(garment.images), rows, partner)
    return Table(
        inputs={"image": picture},
        targets={
            "digit": TensorColumn(torch.from_numpy(number.labels).long()[rows]),
            "garment": TensorColumn(torch.from_numpy(garment.labels).long()[partner]),
        },
    )


def _with_clean(
    table: Table, number: ImageArrays, rows: Tensor, read: Clips, speech: Column, test: int, seed: int
) -> Table:
    """Add the generation targets to one split."""
    alone = TensorColumn(torch.from_numpy(number.images).unsqueeze(1), 1 / 255)
    clip = pair_with_speech(read, torch.from_numpy(number.labels).long()[rows], bool(test), seed)
    added: dict[str, Column] = {
        "clean_image": IndirectColumn(alone, rows),
        "clean_audio": IndirectColumn(speech, clip),
    }
    return Table(table.inputs, {**table.targets, **added}, fields=table.fields)
