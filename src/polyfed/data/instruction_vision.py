"""What models see of the pictures of instructions: features that are kept on disk, or pixels, row by row."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyfed.data.columns import LoadedColumn
from polyfed.data.feature_cache import FeatureCache, FeatureType
from polyfed.data.instruction_checkpoint import Checkpoint
from polyfed.data.instruction_pictures import PictureFile, padded
from polyfed.data.instruction_samples import Samples


def feature_columns(
    samples: Samples, found: Checkpoint, folder: Path, pad: bool, kept_as: FeatureType
) -> list[LoadedColumn | None]:
    """Return the features of each table's pictures, computing those that are not kept yet; None without pictures.

    With ``pad`` pictures are padded to squares first. Raises UserError naming the file and line of a picture that
    cannot be read.
    """
    if not samples.pictures:
        return [None for _ in samples.parts]
    cache = FeatureCache(folder, _tower(found, pad), found.shape, kept_as)
    cache.complete({digest: partial(computed, found, file, pad) for digest, file in samples.pictures.items()})
    return [cache.column(part.pictures) for part in samples.parts]


def pixel_columns(samples: Samples, found: Checkpoint, pad: bool) -> list[LoadedColumn | None]:
    """Return the pixels of each table's pictures, read from disk when they are fetched; None without pictures.

    Arguments and errors are those of ``feature_columns``. One picture is read now, so that an image processor that
    makes another size than the tower takes is told before training.
    """
    if not samples.pictures:
        return [None for _ in samples.parts]
    pixels(found, next(iter(samples.pictures.values())), pad)
    named = [[None if name is None else samples.pictures[name] for name in part.pictures] for part in samples.parts]
    return [LoadedColumn(_Loader(found, tuple(files), pad), len(files), found.picture_shape) for files in named]


def computed(found: Checkpoint, file: PictureFile, pad: bool) -> Tensor:
    """Return the features of one picture; it goes through the tower alone, so that they depend on no other."""
    return found.seen([_opened(found, file, pad)])[0]


def pixels(found: Checkpoint, file: PictureFile, pad: bool) -> Tensor:
    """Return one picture as the tower takes it, (3, side, side) float32. Raises UserError where it cannot be read."""
    return found.pixels([_opened(found, file, pad)])[0]


@dataclass(frozen=True)
class _Loader:
    """Reads the pixels of a row; zeros where it has no picture."""

    found: Checkpoint
    files: tuple[PictureFile | None, ...]
    pad: bool

    def __call__(self, row: int) -> Tensor:
        file = self.files[row]
        return torch.zeros(self.found.picture_shape) if file is None else pixels(self.found, file, self.pad)


def _opened(found: Checkpoint, file: PictureFile, pad: bool) -> Any:
    image = file.opened()
    return padded(image, _mean_colour(found)) if pad else image


def _mean_colour(found: Checkpoint) -> tuple[int, int, int]:
    mean: Sequence[Any] = found.processor.image_processor.image_mean
    red, green, blue = (int(255 * share) for share in mean)
    return red, green, blue


def _tower(found: Checkpoint, pad: bool) -> str:
    return hashlib.sha256(f"{found.digest} {pad}".encode()).hexdigest()
