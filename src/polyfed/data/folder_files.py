"""Files of single samples and arrays of many: .npy, .png, .jpg, .wav -> tensors, checked."""

from __future__ import annotations

import wave
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyfed.data.spectrogram import fit_length, log_power, resize, unit_range
from polyfed.errors import UserError

Array = np.ndarray[Any, np.dtype[Any]]

IMAGE_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
DEEP_MODES = ("I", "F")  # more than 8 bits a channel: converting them would cut the values off
WAV_HEADER = 44  # bytes, at the least
WINDOW_SECONDS, HOP_SECONDS = 0.032, 0.008


@dataclass(frozen=True)
class Expected:
    """What one value must look like.

    Whole numbers below ``classes`` when that is given (token ids, class numbers), else finite float32. ``seconds`` is
    the length a ``.wav`` file is cut or padded to when a spectrogram is made of it.
    """

    shape: tuple[int, ...]
    classes: int = 0
    seconds: float = 1.0

    def tensor(self, array: Array, place: str) -> Tensor:
        """Convert one value or many (rows first); bytes of images and spectrograms become 0..1. Checks the values."""
        if self.classes:
            low, high = int(array.min()), int(array.max())
            if low < 0 or high >= self.classes:
                raise UserError(f"{place}: holds {low} to {high}. Choices: 0 to {self.classes - 1}")
            return torch.from_numpy(array.astype(np.int64))
        with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, which is refused below
            values = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
        if not bool(values.isfinite().all()):
            raise UserError(f"{place}: holds NaN or an infinite value")
        return values / 255 if array.dtype == np.uint8 and len(self.shape) == 3 else values

    def check_shape(self, shape: tuple[int, ...], path: Path) -> None:
        """Raise UserError unless a file's shape is the expected one."""
        if shape != self.shape:
            raise UserError(f"{path}: has the shape {list(shape)}, but dataset.yaml says {list(self.shape)}")


def open_array(path: Path, expected: Expected) -> Array:
    """Open a .npy array without reading its values. Raises UserError for a broken file or an unusable type."""
    try:
        array: Array = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: is not a whole .npy array: {error}") from error
    if array.dtype.kind not in ("biu" if expected.classes else "biuf") or not array.dtype.isnative:
        wanted = "whole numbers" if expected.classes else "numbers"
        raise UserError(f"{path}: holds values of type {array.dtype}, not {wanted} in this machine's byte order")
    return array


def read_file(path: Path, expected: Expected) -> Tensor:
    """Read one sample. Raises UserError naming the file for whatever is wrong with it."""
    return reader(path)[1](path, expected)


def check_file(path: Path, expected: Expected) -> None:
    """Look at the header only: a readable file of the expected shape."""
    reader(path)[0](path, expected)


def check_npy(path: Path, expected: Expected) -> None:
    """Check the shape and type of a .npy file."""
    expected.check_shape(open_array(path, expected).shape, path)


def read_npy(path: Path, expected: Expected) -> Tensor:
    """Read one .npy file."""
    array = open_array(path, expected)
    expected.check_shape(array.shape, path)
    return expected.tensor(np.array(array), str(path))


def image_library() -> Any:
    """Import Pillow, or say how to get it."""
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError("reading .png and .jpg files needs Pillow: pip install 'polyfed[image]'") from error
    return Image


def opened_image(path: Path) -> Any:
    """Open an image (header only)."""
    library = image_library()
    try:
        return library.open(path, formats=("PNG", "JPEG"))
    except (OSError, ValueError, library.DecompressionBombError) as error:
        raise UserError(f"{path}: is not a readable image: {error}") from error


def check_image(path: Path, expected: Expected) -> None:
    """Check the size of an image, and that its bits are kept."""
    with opened_image(path) as image:
        if len(expected.shape) != 3 or expected.classes or expected.shape[0] not in IMAGE_MODES:
            raise UserError(f"{path}: an image file cannot have the shape {list(expected.shape)} of dataset.yaml")
        if image.mode.startswith(DEEP_MODES):
            raise UserError(f"{path}: has more than 8 bits a channel; store it as .npy to keep them")
        expected.check_shape((expected.shape[0], image.height, image.width), path)


def read_image(path: Path, expected: Expected) -> Tensor:
    """Read one image as grey (1 channel), RGB (3) or RGBA (4), values 0..1."""
    check_image(path, expected)
    with opened_image(path) as image:
        try:
            pixels = np.array(image.convert(IMAGE_MODES[expected.shape[0]]))
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(f"{path}: is not a whole image: {error}") from error
    return expected.tensor(pixels.reshape(*expected.shape[1:], -1).transpose(2, 0, 1), str(path))


def check_wav(path: Path, expected: Expected) -> None:
    """Check the format of a sound file and, where it is used as a wave, its shape."""
    try:
        with _opened_wav(path) as sound:
            channels, frames, bytes_each = sound.getnchannels(), sound.getnframes(), sound.getsampwidth()
    except (OSError, EOFError, wave.Error) as error:
        raise UserError(f"{path}: is not a readable .wav file: {error}") from error
    if bytes_each != 2 or frames == 0 or path.stat().st_size < WAV_HEADER + 2 * channels * frames:
        raise UserError(f"{path}: must be a whole .wav file of 16-bit samples")
    if expected.classes or len(expected.shape) not in (2, 3) or (len(expected.shape) == 3 and expected.shape[0] != 1):
        raise UserError(f"{path}: a sound file cannot have the shape {list(expected.shape)} of dataset.yaml")
    if len(expected.shape) == 2:
        expected.check_shape((channels, frames), path)


def read_wav(path: Path, expected: Expected) -> Tensor:
    """Read one sound: the wave (channels, time) in -1..1, or a spectrogram (1, bins, frames) in 0..1.

    The spectrogram is the log power of 32 ms Hann windows every 8 ms of the channels' mean, cut or padded to
    ``seconds``, resized bilinearly and stretched to 0..1 by its own extremes.
    """
    check_wav(path, expected)
    with _opened_wav(path) as sound:
        rate, channels = sound.getframerate(), sound.getnchannels()
        samples = np.frombuffer(sound.readframes(sound.getnframes()), dtype="<i2").reshape(-1, channels).T
    heard = torch.from_numpy(samples / np.float32(32768))
    if len(expected.shape) == 2:
        return heard
    length, window, hop = (max(1, round(span * rate)) for span in (expected.seconds, WINDOW_SECONDS, HOP_SECONDS))
    cut = fit_length(heard.mean(0, keepdim=True), max(length, window))
    return unit_range(resize(log_power(cut, window, hop), (expected.shape[1], expected.shape[2])))


def _opened_wav(path: Path) -> AbstractContextManager[wave.Wave_read]:
    return wave.open(str(path), "rb")


Checker = Callable[[Path, Expected], None]
Reader = Callable[[Path, Expected], Tensor]
READERS: dict[str, tuple[Checker, Reader]] = {
    ".npy": (check_npy, read_npy),
    ".png": (check_image, read_image),
    ".jpg": (check_image, read_image),
    ".jpeg": (check_image, read_image),
    ".wav": (check_wav, read_wav),
}


def reader(path: Path) -> tuple[Checker, Reader]:
    """Return how to check and how to read a file of this kind."""
    found = READERS.get(path.suffix.lower())
    if found is None:
        raise UserError(f"{path}: unknown kind of file {path.suffix!r}. Choices: {', '.join(READERS)}")
    return found
