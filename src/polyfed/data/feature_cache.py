"""Features of pictures kept on disk, by content: computed once for all runs, read when they are needed."""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from polyfed.data.columns import LoadedColumn
from polyfed.errors import UserError, writing

FeatureType = Literal["float32", "float16", "bfloat16"]
NAME, CHECK = "features", "crc32"


@dataclass(frozen=True)
class FeatureCache:
    """Features of one vision tower, one file per picture.

    ``root`` is the user's folder, ``tower`` the digest of all that features depend on but the picture. ``shape`` is
    that of one picture's features, ``kept_as`` the type they are kept in. A picture is named by the SHA-256 of its
    file. Several programs may fill one folder at a time: files appear complete, and equal ones replace each other.
    """

    root: Path
    tower: str
    shape: tuple[int, int]
    kept_as: FeatureType = "float32"

    def path(self, picture: str) -> Path:
        """Return where the features of a picture are."""
        return self.root / f"{self.tower[:32]}-{self.kept_as}" / picture[:2] / f"{picture}.safetensors"

    def holds(self, picture: str) -> bool:
        """Whether there is a file of the right form and length; its values are checked when they are read."""
        try:
            with safe_open(self.path(picture), "pt") as file:
                return tuple(file.get_slice(NAME).get_shape()) == self.shape and CHECK in (file.metadata() or {})
        except (OSError, SafetensorError):
            return False

    def write(self, picture: str, features: Tensor) -> None:
        """Keep the features of a picture. Raises UserError where the folder cannot be written."""
        path = self.path(picture)
        held = features.to(getattr(torch, self.kept_as)).contiguous()
        content = save({NAME: held}, {CHECK: _check(held)})
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, draft = tempfile.mkstemp(prefix=".", suffix=".draft", dir=path.parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                Path(draft).replace(path)
            except BaseException:
                Path(draft).unlink(missing_ok=True)
                raise

    def read(self, picture: str) -> Tensor:
        """Return the features of a picture, ``shape`` float32. Raises UserError where they are missing or damaged."""
        path = self.path(picture)
        try:
            with safe_open(path, "pt") as file:
                found: Tensor = file.get_tensor(NAME)
                sound = tuple(found.shape) == self.shape and (file.metadata() or {}).get(CHECK) == _check(found)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: cannot be read ({error}); {REMEDY}") from error
        if not sound:
            raise UserError(f"{path}: is damaged; {REMEDY}")
        return found.float()

    def complete(self, pictures: Mapping[str, Callable[[], Tensor]]) -> None:
        """Compute the features of the pictures that are not here yet, with a progress bar on stderr."""
        missing = [picture for picture in pictures if not self.holds(picture)]
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), disable=not missing) as bar:
            for picture in bar.track(missing, description="features of pictures"):
                self.write(picture, pictures[picture]())

    def column(self, pictures: Sequence[str | None]) -> LoadedColumn:
        """Return the features by row; zeros where a row has no picture."""
        return LoadedColumn(_Loader(self, tuple(pictures)), len(pictures), self.shape)


REMEDY = "delete it and run again, and it will be computed again"


@dataclass(frozen=True)
class _Loader:
    """Reads the features of a row."""

    cache: FeatureCache
    pictures: tuple[str | None, ...]

    def __call__(self, row: int) -> Tensor:
        picture = self.pictures[row]
        return torch.zeros(self.cache.shape) if picture is None else self.cache.read(picture)


def _check(features: Tensor) -> str:
    return f"{zlib.crc32(features.contiguous().view(-1).view(torch.uint8).numpy().tobytes()):08x}"
