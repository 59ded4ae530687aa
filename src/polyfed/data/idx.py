"""The idx format of MNIST and its relatives, plain or gzip-compressed.

A file is a big-endian int32 magic number (2049 for labels, 2051 for images), the sizes of the axes as big-endian
int32, and the values as bytes (Y. LeCun, C. Cortes, C. J. C. Burges, The MNIST database).
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from polyfed.errors import UserError

Bytes = npt.NDArray[np.uint8]
LABELS, IMAGES = 2049, 2051
LARGEST = 2**31  # bytes; a header that promises more is taken for damage, not for a reason to fill the memory


def read_images(path: Path) -> Bytes:
    """Read images as (images, rows, columns) uint8.

    Raises UserError naming the file where it cannot be read, is no idx image file, or holds fewer or more bytes than
    its header says.
    """
    return _read(path, IMAGES, "images", axes=3)


def read_labels(path: Path) -> Bytes:
    """Read labels as (labels,) uint8; raises UserError as ``read_images`` does."""
    return _read(path, LABELS, "labels", axes=1)


def content(path: Path) -> bytes:
    """Read a whole idx file, decompressed; raises UserError where it cannot be read or is damaged."""
    with _opened(path) as stream:
        return _some(stream, path, LARGEST)


def _read(path: Path, magic: int, what: str, axes: int) -> Bytes:
    with _opened(path) as stream:
        header = _some(stream, path, 4 * (axes + 1))
        if len(header) < 4 * (axes + 1):
            raise UserError(f"{path}: ends inside the idx header ({len(header)} of {4 * (axes + 1)} bytes)")
        found, *shape = struct.unpack(f">{axes + 1}i", header)
        if found != magic:
            raise UserError(f"{path}: magic number {found} is not that of idx {what} ({magic})")
        size = int(np.prod(shape, dtype=object))
        if min(shape) < 0 or size > LARGEST:
            raise UserError(f"{path}: the header gives the impossible shape {tuple(shape)}")
        values = _some(stream, path, size + 1)
    if len(values) != size:
        more = "more" if len(values) > size else f"{len(values)}"
        raise UserError(f"{path}: the header promises {size} bytes of {what} {tuple(shape)}, the file holds {more}")
    return np.frombuffer(bytearray(values), dtype=np.uint8).reshape(shape)


def _opened(path: Path) -> BinaryIO:
    """Open a file, through gzip where its first two bytes say so (the name does not matter)."""
    try:
        with path.open("rb") as stream:
            compressed = stream.read(2) == b"\x1f\x8b"
        return cast(BinaryIO, gzip.open(path)) if compressed else path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _some(stream: BinaryIO, path: Path, size: int) -> bytes:
    try:
        return stream.read(size)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged or cut short ({error})") from error
