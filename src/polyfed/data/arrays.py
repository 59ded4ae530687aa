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


def read_npz(path: Path, kinds: Mapping[str, str]) -> dict[str, Array]:
    """Read the named arrays of an ``.npz`` file; ``kinds[name]`` lists the dtype kinds allowed (``"iu"``, ``"U"``).

    Pickled objects are never loaded. Raises UserError naming the file where it is damaged, lacks an array, or holds
    one of another kind.
    """
    try:
        with path.open("rb") as stream:  # opened here, because numpy leaves a damaged file open
            arrays = np.load(stream, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise UserError(f"{path}: is a single array, not an .npz file")
            missing = sorted(set(kinds) - set(arrays.files))
            if missing:
                raise UserError(f"{path}: lacks the arrays {missing}; it holds {sorted(arrays.files)}")
            read = {name: arrays[name] for name in kinds}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged or not an .npz file of plain arrays ({error})") from error
    for name, array in read.items():
        if array.dtype.kind not in kinds[name]:
            raise UserError(f"{path}: array {name!r} has type {array.dtype}, expected kind {kinds[name]}")
    return read


def same_length(path: Path, arrays: Mapping[str, Array], length: int, names: tuple[str, ...]) -> None:
    """Check that the named arrays have the shape (length,); raises UserError naming the first that has not."""
    for name in names:
        if arrays[name].shape != (length,):
            raise UserError(f"{path}: array {name!r} has shape {arrays[name].shape}, expected ({length},)")
