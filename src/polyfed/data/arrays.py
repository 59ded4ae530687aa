"""Reading packed ``.npz`` files of plain arrays."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from polyfed.errors import UserError

Array = npt.NDArray[Any]

MAGIC = b"\x93NUMPY"  # of an .npy file
ZIP = b"PK"
LARGEST = float(np.finfo(np.float32).max)
WORDS = {  # for what a letter of numpy's kinds stands
    "f": "numbers with fractions (array.astype('float32') makes them)",
    "i": "whole numbers",
    "u": "whole numbers without a sign",
    "iu": "whole numbers (array.astype('int64') makes them)",
    "fiu": "numbers (array.astype('float32') makes them)",
    "U": "texts",
}


def read_npz(path: Path, kinds: Mapping[str, str]) -> dict[str, Array]:
    """Read the named arrays of an ``.npz`` file; ``kinds[name]`` lists the dtype kinds allowed (``"iu"``, ``"U"``).

    Pickled objects are never loaded. Raises UserError naming the file where it is damaged, lacks an array, or holds
    one of another kind.
    """
    try:
        with path.open("rb") as stream:  # opened here, because numpy leaves a damaged file open
            _check_beginning(path, stream.read(len(MAGIC)))
            stream.seek(0)
            arrays = np.load(stream, allow_pickle=False)
            missing = sorted(set(kinds) - set(arrays.files))
            if missing:
                raise UserError(f"{path}: lacks the arrays {missing}; it holds {sorted(arrays.files)}")
            read = {name: _read_array(path, arrays, name) for name in kinds}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged, perhaps only a part of it was copied; copy it, or make it, again") from error
    for name, array in read.items():
        if array.dtype.kind not in kinds[name]:
            raise UserError(f"{path}: array {name!r} has type {array.dtype}, expected {WORDS[kinds[name]]}")
    return read


def _check_beginning(path: Path, beginning: bytes) -> None:
    """Refuse a file whose first bytes are not those of an ``.npz`` file."""
    if beginning == MAGIC:
        raise UserError(f"{path}: is a single array, not an .npz file; write all arrays into one by numpy.savez")
    if not beginning.startswith(ZIP):
        raise UserError(f"{path}: damaged, or not an .npz file whatever its name; numpy.savez writes one")


def _read_array(path: Path, arrays: Any, name: str) -> Array:
    """Return one array of an open file; numpy raises ValueError for Python objects and for a damaged description."""
    try:
        value = arrays[name]
    except ValueError as error:
        raise UserError(
            f"{path}: array {name!r} is damaged or holds Python objects, which are never opened, since they may run any"
            " program; write it again as plain numbers or texts"
        ) from error
    if not isinstance(value, np.ndarray):
        raise UserError(f"{path}: {name!r} is not an array of numpy; write the arrays by numpy.savez")
    return value


def check_range(path: Path, name: str, values: Array, note: str = "") -> None:
    """Refuse finite values of an array that float32 cannot hold; ``note`` says what was done to them before."""
    beyond = np.isfinite(values) & (np.abs(values) > LARGEST)
    if beyond.any():
        place = tuple(np.argwhere(beyond)[0])
        raise UserError(
            f"{path}: array {name!r} holds {values[place]:g}{note}, more than the numbers that models compute with"
            f" (float32, up to {LARGEST:.1e}) can hold; correct it, or write nan for what is not known"
        )


def same_length(path: Path, arrays: Mapping[str, Array], length: int, names: tuple[str, ...]) -> None:
    """Check that the named arrays have the shape (length,); raises UserError naming the first that has not."""
    for name in names:
        if arrays[name].shape != (length,):
            raise UserError(f"{path}: array {name!r} has shape {arrays[name].shape}, expected ({length},)")
