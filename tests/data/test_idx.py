from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyfed.data.idx import content, read_images, read_labels
from polyfed.errors import UserError


def idx(magic: int, shape: tuple[int, ...], values: bytes) -> bytes:
    return struct.pack(f">{1 + len(shape)}i", magic, *shape) + values


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


IMAGES = idx(2051, (2, 1, 3), bytes([0, 1, 2, 3, 4, 255]))
# A time in the header would change with every second, and with it the names of the tests made of it.
COMPRESSED = gzip.compress(IMAGES, mtime=0)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_images_are_read_plain_and_compressed_whatever_the_name(tmp_path: Path, compress: object) -> None:
    assert callable(compress)
    read = read_images(write(tmp_path / "x", compress(IMAGES)))
    assert read.dtype == np.uint8
    assert read.tolist() == [[[0, 1, 2]], [[3, 4, 255]]]
    assert content(tmp_path / "x") == IMAGES


@given(labels=st.binary(max_size=50))
def test_labels_come_back_as_written(tmp_path_factory: pytest.TempPathFactory, labels: bytes) -> None:
    path = write(tmp_path_factory.mktemp("idx") / "labels.gz", gzip.compress(idx(2049, (len(labels),), labels)))
    assert read_labels(path).tobytes() == labels


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "ends inside the idx header"),
        (IMAGES[:7], r"ends inside the idx header \(7 of 16 bytes\)"),
        (IMAGES[:-1], r"promises 6 bytes of images \(2, 1, 3\), the file holds 5"),
        (IMAGES + b"x", "the file holds more"),
        (idx(2049, (2, 1, 3), bytes(6)), "magic number 2049 is not that of idx images"),
        (idx(2051, (-2, 1, 3), b""), "impossible shape"),
        (idx(2051, (2**30, 2**30, 2**30), b""), "impossible shape"),
        (COMPRESSED[:-12], "damaged or cut short"),
        (COMPRESSED[:-8] + bytes(8), "damaged or cut short"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, data: bytes, message: str) -> None:
    path = write(tmp_path / "broken-images", data)
    with pytest.raises(UserError, match=message) as caught:
        read_images(path)
    assert "broken-images" in str(caught.value)


@given(data=st.binary(max_size=40))
def test_any_bytes_give_an_array_or_one_clear_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = write(tmp_path_factory.mktemp("idx") / "any", data)
    try:
        assert read_labels(path).ndim == 1
    except UserError as error:
        assert str(path) in str(error)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing: cannot be read \(No such file"):
        read_labels(tmp_path / "nothing")
