"""Pictures of instructions: files that are opened when they are needed, one at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from polyfed.data.folder_files import image_library, opened_image
from polyfed.errors import UserError

SHOWN = 512  # pixels of the longer side, at most
GREY = (127, 127, 127)


@dataclass(frozen=True)
class PictureFile:
    """A picture's file, and the place that names it. Called, it is opened for people to look at.

    With ``square`` they see it padded to a square, in which boxes are given.
    """

    path: Path
    place: str
    square: bool = False

    def __call__(self) -> npt.NDArray[np.uint8]:
        """Return the picture as (3, height, width) bytes, shrunk to at most 512 pixels a side."""
        image = self._opened(SHOWN)
        shown = np.asarray(padded(image, GREY) if self.square else image, dtype=np.uint8)
        return np.ascontiguousarray(shown.transpose(2, 0, 1))

    def digest(self) -> str:
        """Return the SHA-256 of the file. Raises UserError where it cannot be read."""
        try:
            with self.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error.strerror or error} ({self.place})") from error

    def check(self) -> None:
        """Look at the file without decoding it. Raises UserError as ``opened``, which may find more."""
        with self._reading() as image:
            image.verify()

    def opened(self) -> Any:
        """Return the picture in its own size, RGB. Raises UserError naming the file and place if it is none."""
        return self._opened(None)

    def _opened(self, largest: int | None) -> Any:
        with self._reading() as image:
            if largest is not None:
                image.thumbnail((largest, largest))
            return image.convert("RGB")

    @contextmanager
    def _reading(self) -> Iterator[Any]:
        try:
            with opened_image(self.path) as image:
                yield image
        except UserError as error:
            raise UserError(f"{error} ({self.place})") from error
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(f"{self.path}: is not a whole image: {error} ({self.place})") from error


def padded(image: Any, colour: tuple[int, int, int]) -> Any:
    """Pad a picture to a square in the middle of which it is, as LLaVA does."""
    side = max(image.size)
    if image.size == (side, side):
        return image
    square = image_library().new("RGB", (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
