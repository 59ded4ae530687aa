"""Features of pictures: computed once, kept by content, read back bit for bit."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.data.test_instructions import built, sample, write
from tests.language import shared_checkpoint
from torch import Tensor

from polyfed.data.catalog import DATASETS
from polyfed.data.feature_cache import FeatureCache
from polyfed.data.instruction_checkpoint import Checkpoint, load_checkpoint
from polyfed.data.instruction_pictures import PictureFile
from polyfed.data.instruction_vision import computed
from polyfed.errors import UserError


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each call of the tower had."""
    seen, counted = Checkpoint.seen, []

    def counting(self: Checkpoint, images: Any) -> Tensor:
        counted.append(len(images))
        return seen(self, images)

    monkeypatch.setattr(Checkpoint, "seen", counting)
    return counted


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def test_what_is_kept_is_not_computed_again(tmp_path: Path, calls: list[int]) -> None:
    path = write(tmp_path, [sample(i) for i in range(8)])
    first = built(path)
    assert calls == [1] * 4, "each picture once, alone"
    assert len(files(tmp_path / "features")) == 4
    second = built(path)
    assert len(calls) == 4
    rows = torch.tensor([5, 0, 5])
    one, other = (each.train.everything().batch(rows).inputs["image"] for each in (first, second))
    assert torch.equal(one, other)
    assert not torch.equal(one[0], one[1])


def test_kept_features_are_the_towers_bit_for_bit(tmp_path: Path) -> None:
    path = write(tmp_path, [sample(i) for i in range(4)])
    kept = built(path).train.everything().batch().inputs["image"]
    found = load_checkpoint(shared_checkpoint(), 512)
    live = [
        computed(found, PictureFile(tmp_path / f"{sample(i)['conversations'][1]['value']}.png", ""), False)
        for i in range(4)
    ]
    assert torch.equal(kept, torch.stack(live))
    half = built(path, pictures={"feature_type": "bfloat16"}).train.everything().batch().inputs["image"]
    assert torch.equal(half, kept.bfloat16().float())


def test_equal_pictures_are_kept_once_and_counted_as_one(tmp_path: Path, calls: list[int]) -> None:
    write(tmp_path, [])
    (tmp_path / "twin.png").write_bytes((tmp_path / "red.png").read_bytes())
    found = built(write(tmp_path, [sample(0), {**sample(1), "image": "twin.png"}, sample(2)]))
    assert len(calls) == len(files(tmp_path / "features")) == 2
    assert found.train.fields["picture"].tolist() == [0, 0, 1]
    assert found.unit == "picture", "they stay together when samples are split"


def test_a_changed_picture_tower_or_setting_is_computed_anew(tmp_path: Path, calls: list[int]) -> None:
    path = write(tmp_path, [sample(0)])
    built(path)
    Image.new("RGB", (8, 8), "pink").save(tmp_path / "red.png")
    built(path)
    built(path, pictures={"pad": True})
    assert len(calls) == len(files(tmp_path / "features")) == 3


def test_the_digest_is_of_all_that_counts() -> None:
    digests = set()

    def changed(change: Any) -> str:
        found = load_checkpoint(shared_checkpoint(), 512)
        change(found)
        digests.add(found.digest)
        return found.digest

    assert changed(lambda found: None) == changed(lambda found: None)

    def other_weight(found: Checkpoint) -> None:
        with torch.no_grad():
            next(found.tower.parameters()).view(-1)[0] += 1

    changed(other_weight)
    changed(lambda found: setattr(found.processor.image_processor, "do_pad", False))
    changed(lambda found: setattr(found.tower.config, "hidden_act", "gelu"))
    changed(lambda found: object.__setattr__(found, "layer", -1))
    assert len(digests) == 5


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "cache", "ab" * 32, (3, 2))


PICTURE = "cd" * 32
VALUES = torch.arange(6.0).view(3, 2)


def test_a_file_that_was_cut_off_is_computed_again(cache: FeatureCache) -> None:
    cache.complete({PICTURE: lambda: VALUES})
    path = cache.path(PICTURE)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"cannot be read .*; delete it and run again"):
        cache.read(PICTURE)
    assert not cache.holds(PICTURE)
    cache.complete({PICTURE: lambda: VALUES})
    assert torch.equal(cache.read(PICTURE), VALUES)


def test_a_file_whose_values_changed_is_refused(cache: FeatureCache) -> None:
    cache.write(PICTURE, VALUES)
    path = cache.path(PICTURE)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged; delete it"):
        cache.column([PICTURE]).gather(torch.tensor([0]))


def test_rows_without_a_picture_are_zero_and_read_nothing(cache: FeatureCache) -> None:
    cache.write(PICTURE, VALUES)
    column = cache.column([None, PICTURE, None])
    assert torch.equal(column.gather(torch.tensor([1, 0])), torch.stack([VALUES, torch.zeros(3, 2)]))
    assert (len(column), column.shape, column.resident) == (3, (3, 2), False)


def test_several_writers_do_no_harm(cache: FeatureCache) -> None:
    problems: list[Exception] = []

    def work() -> None:
        try:
            for _ in range(20):
                cache.write(PICTURE, VALUES)
                assert torch.equal(cache.read(PICTURE), VALUES)
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert [path.name for path in cache.root.rglob("*") if path.is_file()] == [f"{PICTURE}.safetensors"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match=r"file/.*safetensors: cannot be written"):
        built(write(tmp_path, [sample(0)]), features=str(blocked))


def test_pictures_are_kept_in_the_data_folder(tmp_path: Path) -> None:
    path, root = write(tmp_path / "mine", [sample(0)]), tmp_path / "root"
    root.mkdir()
    DATASETS.build("instructions", {"train": str(path), "checkpoint": shared_checkpoint()}, root)
    assert len(files(root / "features")) == 1
    assert not (tmp_path / "mine/features").exists()
