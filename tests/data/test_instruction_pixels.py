"""Pixels of pictures for models that train the vision tower: read from disk, row by row, when they are needed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.data.test_instruction_features import files
from tests.data.test_instructions import COLOURS, built, experiment, plain, sample, write
from tests.language import shared_checkpoint

import polyfed
from polyfed.data.instruction_checkpoint import Checkpoint, load_checkpoint
from polyfed.data.instruction_pictures import PictureFile, padded
from polyfed.errors import UserError
from polyfed.experiment.world import build_world

pytest.importorskip("transformers", reason="language models need the extra polyfed[mllm]")
pytest.importorskip("peft", reason="language models need the extra polyfed[mllm]")


def unpadded(folder: Path) -> str:
    """Copy the small checkpoint with an image processor that pads nothing."""
    shutil.copytree(shared_checkpoint(), folder)
    for settings in folder.glob("*processor_config.json"):
        settings.write_text(settings.read_text().replace('"do_pad": true', '"do_pad": false'))
    return str(folder)


def test_rows_are_what_the_image_processor_makes(tmp_path: Path) -> None:
    checkpoint = unpadded(tmp_path / "checkpoint")
    path = write(tmp_path / "data", [sample(0), plain(1, "A?", "b", task="text"), sample(2), sample(0)])
    found = load_checkpoint(checkpoint, 8)
    images = [Image.open(path.parent / f"{COLOURS[number]}.png").convert("RGB") for number in (0, 2, 0)]
    for pad in (False, True):
        dataset = built(path, checkpoint=checkpoint, vision="pixels", pictures={"pad": pad})
        assert (dataset.modalities["image"].kind, dataset.modalities["image"].shape) == ("image", (3, 32, 32))
        column = dataset.train.inputs["image"]
        assert not column.resident
        mean = [int(255 * share) for share in found.processor.image_processor.image_mean]
        seen = [padded(image, (mean[0], mean[1], mean[2])) if pad else image for image in images]
        rows = column.gather(torch.tensor([0, 2, 3, 1]))
        assert torch.equal(rows[:3], found.pixels(seen))
        assert not rows[3].any(), "a row without a picture"
        assert dataset.train.present["image"].tolist() == [True, False, True, True]
    assert not files(path.parent), "no features are kept"


def test_a_test_without_pictures_and_data_without_any(tmp_path: Path) -> None:
    mixed = built(
        write(tmp_path, [sample(0), plain(1, "A?", "b", task="vqa", split="test")]),
        vision="pixels",
    )
    assert mixed.test is not None
    assert not mixed.test.inputs["image"].gather(torch.tensor([0])).any()
    assert set(built(write(tmp_path, [plain(0, "A?", "b")], "texts.json"), vision="pixels").modalities) == {"text"}


def test_the_tower_is_not_loaded_and_pictures_only_when_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    one = PictureFile.opened

    def counting(self: PictureFile) -> object:
        opened.append(self.path.name)
        return one(self)

    monkeypatch.setattr(PictureFile, "opened", counting)
    monkeypatch.setattr(Checkpoint, "tower", property(lambda self: pytest.fail("the tower was loaded")))
    table = built(write(tmp_path, [sample(i) for i in range(4)]), vision="pixels").train
    assert opened == ["red.png"], "one for its size"
    table.inputs["image"].gather(torch.tensor([3, 1]))
    assert opened[1:] == ["white.png", "green.png"]


def test_pictures_of_another_size_are_told_when_the_data_are_loaded(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(shared_checkpoint(), checkpoint)
    for settings in checkpoint.glob("*processor_config.json"):
        settings.write_text(settings.read_text().replace("32", "40"))
    with pytest.raises(
        UserError, match=r"the image processor makes pictures of \(40, 40\) pixels, but the vision tower"
    ):
        built(write(tmp_path, [sample(0)]), checkpoint=str(checkpoint), vision="pixels")


@pytest.mark.parametrize("vision", ["features", "pixels"])
def test_a_damaged_picture_is_told_before_the_tower_is_loaded(
    vision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, [sample(0), sample(1)])
    content = bytearray((tmp_path / "green.png").read_bytes())
    content[-20] ^= 1  # in the last piece of the pixels, which its check sum shows
    (tmp_path / "green.png").write_bytes(content)
    monkeypatch.setattr(Checkpoint, "tower", property(lambda self: pytest.fail("the tower was loaded")))
    with pytest.raises(UserError) as error:
        built(path, vision=vision)
    assert str(error.value).startswith(f"{tmp_path / 'green.png'}: is not a whole image: ")
    assert str(error.value).endswith(f"({path}, line 3, 'image')")


def test_a_picture_that_is_damaged_later_is_one_message(tmp_path: Path) -> None:
    path = write(tmp_path, [sample(i, client=i) for i in range(2)])
    table = built(path, vision="pixels").train
    for damage, message in (
        (lambda file: file.write_bytes(file.read_bytes()[:60]), "is not a whole image"),
        (Path.unlink, "is not a readable image"),
    ):
        damage(tmp_path / "green.png")
        with pytest.raises(UserError) as error:
            table.inputs["image"].gather(torch.tensor([0, 1]))
        assert str(error.value).startswith(f"{tmp_path / 'green.png'}: {message}")
        assert str(error.value).endswith(f"({path}, line 3, 'image')")


def test_whatever_is_cut_off_is_found_at_once_or_when_it_is_read(tmp_path: Path) -> None:
    image = Image.effect_noise((9, 7), 60).convert("RGB")
    for kind in ("png", "jpg"):
        file = tmp_path / f"whole.{kind}"
        image.save(file)
        content, found = file.read_bytes(), 0
        for end in range(0, len(content), 5):
            cut = PictureFile(tmp_path / f"cut.{kind}", "here")
            cut.path.write_bytes(content[:end])
            for look in (cut.check, cut.opened):
                try:
                    look()
                except UserError as error:
                    assert str(error).startswith(str(cut.path)) and str(error).endswith("(here)")
                    found += 1
        assert found > len(content) // 10


def test_the_tower_is_trained_on_ones_own_pictures(tmp_path: Path) -> None:
    """CT-CLIP from end to end, texts without pictures among them."""
    samples = [sample(i, ("vqa", "caption")[i % 2], client=i % 2) for i in range(8)]
    samples += [plain(8 + i, "Which?", "one", task=("vqa", "caption")[i % 2], client=i % 2) for i in range(4)]
    samples += [{**one, "split": "test"} for one in (*samples[:2], *samples[8:10])]
    chosen = experiment(
        {"train": str(write(tmp_path, samples)), "vision": "pixels"},
        method={"name": "pilot"},
        model__pilot={"tower": True},
        scenario__validation=0,
        train__batch_size=4,
    )
    adapters = build_world(chosen).architecture.initial(0)
    assert any(".layers.0.fc1" in name for name in adapters), "adapters in the tower"
    result = polyfed.run(chosen, tmp_path / "run")
    assert result.summary["tasks"].keys() == {"caption", "vqa"}
    assert all(client["metrics"] for client in result.summary["clients"])
