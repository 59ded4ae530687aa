"""Multi-FMNIST."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from polyfed.data.catalog import DATASETS
from polyfed.data.mnist import digits
from polyfed.data.multi_fmnist import OverlaidColumn, multi_fmnist
from polyfed.errors import UserError


def test_the_brighter_pixel_wins_where_the_pictures_overlap() -> None:
    first, second = torch.zeros(2, 28, 28, dtype=torch.uint8), torch.zeros(2, 28, 28, dtype=torch.uint8)
    first[1, 0, 0], first[1, 27, 27], first[1, 8, 8] = 51, 102, 255
    second[0, 27, 27], second[0, 19, 19], second[0, 0, 0] = 204, 153, 51
    column = OverlaidColumn(first, second, torch.tensor([1]), torch.tensor([0]))
    picture = column.gather(torch.tensor([0]))
    assert picture.shape == (1, 1, 36, 36)
    found = {tuple(place): round(float(picture[0, 0][tuple(place)]), 4) for place in picture[0, 0].nonzero().tolist()}
    assert found == {(0, 0): 0.2, (8, 8): 1.0, (27, 27): 0.6, (35, 35): 0.8}


def test_labels_belong_to_the_pictures_and_every_garment_is_used_once(small_root: Path) -> None:
    dataset = multi_fmnist(small_root)
    numbers, garments = digits(small_root), digits(small_root, "fashion_mnist")
    for split, table in enumerate((dataset.train, dataset.test)):
        assert table is not None
        batch = table.everything().batch()
        assert len(table) == len(numbers[split].labels)
        assert batch.targets["digit"].tolist() == numbers[split].labels.tolist()
        pixels = torch.round(batch.inputs["image"][:, 0] * 255).to(torch.uint8)
        assert torch.equal(
            pixels[:, :8, :], torch.nn.functional.pad(torch.from_numpy(numbers[split].images)[:, :8], (0, 8))
        )
        bottom = {image[20:].tobytes(): row for row, image in enumerate(garments[split].images)}
        rows = [bottom[image.numpy().tobytes()] for image in pixels[:, 28:, 8:]]
        assert sorted(rows) == list(range(len(table)))
        assert batch.targets["garment"].tolist() == garments[split].labels[rows].tolist()


def test_generation_adds_the_digit_alone_and_its_spoken_form(small_root: Path) -> None:
    dataset = multi_fmnist(small_root, generation=True, size=16, limit=20)
    batch = dataset.train.everything().batch()
    assert batch.targets["clean_image"].shape == (20, 1, 28, 28)
    assert batch.targets["clean_audio"].shape == (20, 1, 16, 16)
    assert torch.allclose(batch.targets["clean_image"][:, 0, :8, :8], batch.inputs["image"][:, 0, :8, :8])
    assert {name: task.shape for name, task in dataset.tasks.items() if task.kind == "generation"} == {
        "clean_image": (1, 28, 28),
        "clean_audio": (1, 16, 16),
    }
    # The clips are tones that rise with the digit.
    height = batch.targets["clean_audio"][:, 0, :, :3].mean(2).argmax(1)
    low, high = (height[test(batch.targets["digit"])] for test in (lambda digit: digit <= 1, lambda digit: digit >= 8))
    assert low.max() < high.min()


def test_a_limit_changes_neither_pairs_nor_test_rows(small_root: Path) -> None:
    everything, few = multi_fmnist(small_root), multi_fmnist(small_root, limit=30)
    assert few.test is not None
    assert len(few.test) == 30
    batch = few.train.everything().batch()
    assert batch.targets["digit"].bincount().tolist() == [3] * 10
    pictures = {picture.numpy().tobytes() for picture in everything.train.everything().batch().inputs["image"]}
    assert all(picture.numpy().tobytes() in pictures for picture in batch.inputs["image"])


def test_the_seed_fixes_the_pairs(small_root: Path) -> None:
    garment = [multi_fmnist(small_root, seed=seed).train.everything().target("garment") for seed in (0, 0, 1)]
    assert torch.equal(garment[0], garment[1])
    assert not torch.equal(garment[0], garment[2])


def test_speech_is_needed_for_generation_only(small_root: Path, tmp_path: Path) -> None:
    for name in ("mnist", "fashion_mnist"):
        shutil.copytree(small_root / name, tmp_path / name)
    assert len(multi_fmnist(tmp_path).train) == 60
    with pytest.raises(UserError, match="Free Spoken Digit Dataset was not found"):
        multi_fmnist(tmp_path, generation=True)


def test_on_the_published_files(published: Path) -> None:
    dataset = DATASETS.build("multi-fmnist", {}, published)
    assert dataset.test is not None
    assert (len(dataset.train), len(dataset.test)) == (60_000, 10_000)
    assert dataset.train.everything().target("garment").bincount().tolist() == [6000] * 10
    assert dataset.test.everything().target("garment").bincount().tolist() == [1000] * 10
    batch = dataset.train.everything().batch(torch.arange(100))
    # 36 x 36 pixels hold two 28 x 28 pictures of mean 0.131 and 0.286; the overlap makes it a little less.
    assert 0.2 < float(batch.inputs["image"].mean()) < (0.131 + 0.286) * (28 / 36) ** 2
