"""Coloured-and-gray MNIST: a gray digit and the same digit in a colour that betrays its class in training only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from polyfed import rng
from polyfed.data.avdigits import DIGIT_NAMES
from polyfed.data.columns import IndirectColumn, TensorColumn
from polyfed.data.dataset import Dataset, Root
from polyfed.data.mnist import ImageArrays, digits
from polyfed.data.pairing import stratified
from polyfed.data.samples import Table
from polyfed.data.schema import Modality, Task

Level = Annotated[float, Field(ge=0, le=1)]
Means = Annotated[
    tuple[tuple[Level, Level, Level], ...],
    Field(min_length=10, max_length=10, description="mean red, green and blue of the digits 0 to 9"),
]

# Ten colours of our own choice, any two at least 0.35 apart: twice the standard deviation at the default variance.
MEANS: tuple[tuple[float, float, float], ...] = (
    (0.85, 0.10, 0.15),  # red
    (0.10, 0.75, 0.15),  # green
    (0.15, 0.25, 0.95),  # blue
    (0.95, 0.90, 0.15),  # yellow
    (0.90, 0.20, 0.85),  # magenta
    (0.10, 0.85, 0.85),  # cyan
    (0.95, 0.50, 0.10),  # orange
    (0.50, 0.35, 0.15),  # brown
    (0.90, 0.90, 0.90),  # white
    (0.45, 0.10, 0.55),  # purple
)
GRAY_MEAN, GRAY_DEVIATION = 0.1307, 0.3081
COLOUR_MEAN, COLOUR_DEVIATION = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def cg_mnist(
    root: Root,
    *,
    variance: Annotated[float, Field(ge=0, le=1, description="variance of each colour channel around its mean")] = 0.03,
    means: Means = MEANS,
    limit: Annotated[int | None, Field(ge=10, description="training rows to keep, stratified; null: all")] = None,
    seed: Annotated[int, Field(ge=0, description="seed of the colours and of the choice of rows")] = 0,
) -> Dataset:
    """Coloured-and-gray MNIST: colour tells the digit in training and nothing at test.

    Modalities ``gray`` (1, 28, 28), the MNIST digit, and ``colour`` (3, 28, 28), the same digit with its strokes
    multiplied by one colour per image and clipped to [0, 1]; both standardised with fixed constants (gray 0.1307 /
    0.3081; red, green, blue 0.4914, 0.4822, 0.4465 / 0.2023, 0.1994, 0.2010). Task ``digit`` (10 classes); field
    ``colour`` (0..9, the mean colour used). The colour is Normal(mean colour, ``variance``), not clipped by itself; the
    mean colour is that of the digit in training, and one of the ten at random at test. 60,000 training and 10,000 test
    rows.

    Source: the colours of Kim et al., "Learning Not to Learn", CVPR 2019 (their list of means is replaced by our own),
    paired with the gray image as in Wu et al., ICML 2022, and Fan et al. (BMSFed), ECCV 2024.
    """
    train, test = digits(root)
    labels = torch.from_numpy(train.labels).long()
    chosen = stratified(labels, limit, rng.numpy_generator(seed, "cg-mnist", "limit"))
    draw = rng.torch_generator(seed, "cg-mnist", "test colours")
    anything = torch.randint(10, (len(test.labels),), generator=draw)
    mean = torch.tensor(means)
    return Dataset(
        name="cg-mnist",
        modalities={
            "gray": Modality("gray", "image", (1, 28, 28)),
            "colour": Modality("colour", "image", (3, 28, 28)),
        },
        tasks={"digit": Task("digit", "classification", classes=10, labels=DIGIT_NAMES)},
        train=_table(train, chosen, labels, around(mean[labels], variance, (seed, "cg-mnist", "train"))),
        test=_table(test, None, anything, around(mean[anything], variance, (seed, "cg-mnist", "test"))),
    )


@dataclass(frozen=True)
class PaintedColumn:
    """Images kept as gray bytes (N, 28, 28) and one colour each (N, channels), painted and standardised on demand."""

    gray: Tensor
    colour: Tensor
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image, (channels, 28, 28)."""
        return (len(self.mean), *self.gray.shape[1:])

    @property
    def resident(self) -> bool:
        """Painted from images in memory."""
        return True

    def __len__(self) -> int:
        return len(self.gray)

    def gather(self, rows: Tensor) -> Tensor:
        """Return the named images, (rows, *shape): (clip(gray / 255 · colour, 0, 1) - mean) / deviation."""
        # Per channel: bytes are scaled and shifted once, so that a batch costs three passes however many channels.
        spread = torch.tensor(self.deviation)
        scale = self.colour.index_select(0, rows) / 255 / spread
        black, full = (((level - torch.tensor(self.mean)) / spread)[:, None, None] for level in (0, 1))
        strokes = self.gray.index_select(0, rows).to(torch.float32).unsqueeze(1)
        return torch.addcmul(black, strokes, scale[:, :, None, None]).clamp_(black, full)


def around(mean: Tensor, variance: float, key: tuple[rng.Key, ...]) -> Tensor:
    """Draw a colour around each mean (N, 3); it may leave [0, 1]."""
    noise = torch.randn(mean.shape, generator=rng.torch_generator(*key))
    return mean + math.sqrt(variance) * noise


def _table(part: ImageArrays, rows: Tensor | None, means: Tensor, colour: Tensor) -> Table:
    """Build a split; ``means`` (N,) names the mean colour of each image and ``colour`` (N, 3) the one drawn."""
    chosen = torch.arange(len(part.labels)) if rows is None else rows
    strokes = torch.from_numpy(part.images)
    gray = PaintedColumn(strokes, torch.ones(len(strokes), 1), (GRAY_MEAN,), (GRAY_DEVIATION,))
    painted = PaintedColumn(strokes, colour, COLOUR_MEAN, COLOUR_DEVIATION)
    return Table(
        inputs={"gray": IndirectColumn(gray, chosen), "colour": IndirectColumn(painted, chosen)},
        targets={"digit": TensorColumn(torch.from_numpy(part.labels).long()[chosen])},
        fields={"colour": means[chosen]},
    )
