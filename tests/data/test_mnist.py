from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from polyfed.data.catalog import DATASETS
from polyfed.data.columns import TensorColumn
from polyfed.data.mnist import STEMS, digits, fashion_mnist, mnist
from polyfed.data.source import data_root
from polyfed.errors import UserError


def write_set(folder: Path, suffix: str = ".gz", rows: int = 28, last_label: int = 9) -> None:
    """Three training and two test images; pixel [0, 0] of image i is 10 * i."""
    folder.mkdir(parents=True)
    for split, labels in (("train", [1, 8, last_label]), ("t10k", [0, 5])):
        images = np.zeros((len(labels), rows, 28), dtype=np.uint8)
        images[:, 0, 0] = 10 * np.arange(len(labels))
        files = {
            f"{split}-images-idx3-ubyte": struct.pack(">4i", 2051, *images.shape) + images.tobytes(),
            f"{split}-labels-idx1-ubyte": struct.pack(">2i", 2049, len(labels)) + bytes(labels),
        }
        for name, data in files.items():
            (folder / f"{name}{suffix}").write_bytes(gzip.compress(data) if suffix else data)


@pytest.mark.parametrize("suffix", [".gz", ""])
@pytest.mark.parametrize("place", ["mnist", "MNIST/raw"])
def test_mnist_is_read_from_every_layout(tmp_path: Path, place: str, suffix: str) -> None:
    write_set(tmp_path / place, suffix)
    data = mnist(tmp_path)
    assert data.test is not None
    batch = data.train.everything().batch()
    assert batch.inputs["image"].shape == (3, 1, 28, 28)
    assert batch.inputs["image"][2, 0, 0, 0] == pytest.approx(20 / 255)
    assert batch.targets["digit"].tolist() == [1, 8, 9]
    assert batch.targets["parity"].tolist() == [1, 0, 1]
    assert data.test.targets["digit"].gather(torch.tensor([1, 0])).tolist() == [5, 0]


def test_fashion_mnist_is_read_from_torchvisions_layout(tmp_path: Path) -> None:
    write_set(tmp_path / "FashionMNIST/raw", "")
    data = fashion_mnist(tmp_path)
    assert data.train.targets["garment"].gather(torch.arange(3)).tolist() == [1, 8, 9]
    assert data.tasks["garment"].labels[9] == "Ankle boot"


def test_shapes_and_ranges_are_checked(tmp_path: Path) -> None:
    write_set(tmp_path / "a/mnist", rows=14)
    with pytest.raises(UserError, match=r"train-images.*images are 14x28, expected 28x28"):
        digits(tmp_path / "a")
    write_set(tmp_path / "b/mnist", last_label=11)
    with pytest.raises(UserError, match=r"train-labels.*row 2 has the label 11, expected 0 to 9"):
        digits(tmp_path / "b")
    write_set(tmp_path / "c/mnist")
    folder = tmp_path / "c/mnist"
    (folder / f"{STEMS[1]}.gz").write_bytes((folder / f"{STEMS[3]}.gz").read_bytes())
    with pytest.raises(UserError, match=r"holds 3 images but .* 2 labels"):
        digits(tmp_path / "c")


def test_a_missing_set_says_where_it_looked_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        mnist(tmp_path)
    for part in ("MNIST", str(tmp_path), "mnist/train-images-idx3-ubyte.gz", "MNIST/raw/", "polyfed data fetch mnist"):
        assert part in str(caught.value)
    with pytest.raises(UserError, match=r"Fashion-MNIST was not found: no folder .*`polyfed data fetch fashion-mnist`"):
        fashion_mnist(None)


def test_a_set_that_is_there_in_part_says_what_is_missing(tmp_path: Path) -> None:
    write_set(tmp_path / "mnist")
    (tmp_path / "mnist/t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte\.gz or mnist/t10k-labels-idx1-ubyte is missing"):
        mnist(tmp_path)


def test_the_root_is_the_explicit_folder_then_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POLYFED_DATA", raising=False)
    assert data_root(None) is None
    monkeypatch.setenv("POLYFED_DATA", str(tmp_path))
    assert data_root(None) == tmp_path
    (tmp_path / "other").mkdir()
    assert data_root(str(tmp_path / "other")) == tmp_path / "other"
    with pytest.raises(UserError, match=r"data\.root: '.*nowhere' is not a folder"):
        data_root(str(tmp_path / "nowhere"))
    monkeypatch.setenv("POLYFED_DATA", str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"POLYFED_DATA: '.*gone' is not a folder"):
        data_root(None)


def test_the_published_digits_have_the_known_counts(published: Path) -> None:
    train, test = digits(published)
    assert np.bincount(train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert train.images.mean() == pytest.approx(33.3184, abs=1e-4)
    assert test.images.mean() == pytest.approx(33.7912, abs=1e-4)


def test_the_published_garments_have_the_known_counts(published: Path) -> None:
    data = DATASETS.build("fashion-mnist", {}, published)
    assert data.test is not None
    for table, count, mean in ((data.train, 6000, 72.9404), (data.test, 1000, 73.1466)):
        image, label = table.inputs["image"], table.targets["garment"].gather(torch.arange(len(table)))
        assert torch.bincount(label).tolist() == [count] * 10
        first = image.gather(torch.arange(1000))
        assert [first.min(), first.max()] == [0, 1]
        assert isinstance(image, TensorColumn)
        assert image.values.float().mean().item() == pytest.approx(mean, abs=1e-3)
