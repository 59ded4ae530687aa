"""What generation tasks made is kept at the end of a run: bounded, and the same bits however the run came about."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from polyfed.data.samples import Batch
from polyfed.data.schema import Modality, Task
from polyfed.engine import pictures
from polyfed.engine.pictures import FILE, LARGEST_SIDE, as_bytes, sampled_of, scale_of
from polyfed.experiment.running import run
from polyfed.experiment.world import build_world
from polyfed.report.pictures import read_pictures
from polyfed.scenario.federation import Card
from tests.drawings import drawing, write_drawings
from tests.worlds import tiny, train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drawings(tmp_path_factory.mktemp("data") / "drawings")


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(drawing(data), folder)
    return folder


def head_of(folder: Path) -> dict[str, Any]:
    with safe_open(folder / FILE, "pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["pictures"])
    return found


def test_the_first_client_of_each_kind_is_kept(whole: Path) -> None:
    found = read_pictures(whole)
    # clients 0 and 3 are of one kind; the tasks take turns
    assert [(one.task, one.client) for one in found] == [("picture", 0), ("voice", 1), ("picture", 2), ("voice", 2)]
    assert head_of(whole)["round"] == 2
    both = found[2]
    assert sorted(both.values) == ["input.photo", "input.sound", "prediction", "target"]  # a sensor is no picture
    assert both.values["input.photo"].shape == (4, 3, 4, 6)
    assert both.values["prediction"].shape == both.values["target"].shape == (4, 1, 4, 4)
    assert {name: how.form for name, how in both.shown.items()} == {
        "target": "image",
        "prediction": "image",
        "input.photo": "image",
        "input.sound": "audio",
    }
    assert both.shown["target"].present == (True,) * 4


def test_targets_and_predictions_are_those_of_the_first_test_samples(data: Path, whole: Path) -> None:
    experiment = drawing(data)
    done = run(experiment)
    world = build_world(experiment)
    client = world.federation.client(1)
    target = client.test.target("voice")[:4]
    kept = read_pictures(whole)[1]
    low, high = kept.shown["target"].low, kept.shown["target"].high
    assert (low, high) == (float(target.min()), float(target.max()))
    assert torch.equal(kept.values["target"], ((target - low) / (high - low) * 255).round().to(torch.uint8))
    loop = world.loop()
    card = loop.judged.cards[1]
    model = loop.architecture.assemble(card.components)
    model.load_state_dict(done.parameters(1))
    model.eval()
    with torch.no_grad():
        made = model(client.test.batch(torch.arange(4))).predictions["voice"]
    expected = ((made - low) / (high - low)).clamp(0, 1) * 255
    assert (kept.values["prediction"].float() - expected).abs().max() <= 1
    assert (kept.shown["prediction"].low, kept.shown["prediction"].high) == (low, high)


@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_workers_changes_no_bit(workers: int, data: Path, whole: Path, tmp_path: Path) -> None:
    train(drawing(data, engine__workers=workers), tmp_path / "run")
    assert (tmp_path / "run" / FILE).read_bytes() == (whole / FILE).read_bytes()


def test_a_resumed_run_has_the_same_pictures(data: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(drawing(data, rounds=1), folder)
    early = (folder / FILE).read_bytes()
    train(drawing(data), folder, resume=True)
    assert early != (folder / FILE).read_bytes() == (whole / FILE).read_bytes()
    # killed after the last checkpoint
    shutil.copytree(whole, tmp_path / "killed")
    (tmp_path / "killed" / FILE).unlink()
    train(drawing(data), tmp_path / "killed", resume=True)
    assert (tmp_path / "killed" / FILE).read_bytes() == (whole / FILE).read_bytes()


def test_measuring_does_not_disturb(data: Path, whole: Path) -> None:
    outcome = train(drawing(data))
    again = train(drawing(data), whole.parent / "again")
    assert (outcome.digest, outcome.personal_digest) == (again.digest, again.personal_digest)


def test_a_run_folder_started_anew_without_generation_has_none(data: Path, tmp_path: Path) -> None:
    run(drawing(data, rounds=1), tmp_path / "run")
    assert (tmp_path / "run" / FILE).is_file()
    run(drawing(data, [["sign"]] * 4, rounds=1), tmp_path / "run", overwrite=True)
    assert not (tmp_path / "run" / FILE).exists()
    train(tiny(rounds=1), tmp_path / "tiny")
    assert not (tmp_path / "tiny" / FILE).exists()


def test_what_would_be_too_much_is_left_out(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, *_ = read_pictures(whole)
    monkeypatch.setattr(pictures, "MOST_BYTES", first.size + second.size)
    train(drawing(data), tmp_path / "run")
    assert [(one.task, one.client) for one in read_pictures(tmp_path / "run")] == [("picture", 0), ("voice", 1)]
    monkeypatch.setattr(pictures, "MOST_BYTES", first.size - 1)
    train(drawing(data), tmp_path / "none")
    assert not (tmp_path / "none" / FILE).exists()


def test_large_pictures_are_shrunk_by_means() -> None:
    values = torch.zeros(1, 2, 2 * LARGEST_SIDE, 3)
    values[0, 0, 0] = 1.0  # one of two channels, and of two rows that become one
    found = as_bytes(values, 0.0, 1.0)
    assert (found.dtype, found.shape) == (torch.uint8, (1, 1, LARGEST_SIDE, 3))
    assert found[0, 0, 0].tolist() == [64] * 3  # a quarter of 255
    assert not found[0, 0, 1:].any()


def test_what_was_generated_is_told_apart_from_an_image_by_its_form(data: Path) -> None:
    tasks = build_world(drawing(data)).federation.tasks
    assert (tasks["picture"].form, tasks["voice"].form) == ("image", "audio")


def test_scales() -> None:
    assert scale_of(torch.tensor([0.2, 1.0])) == (0.0, 1.0)
    assert scale_of(torch.tensor([-80.0, 0.0])) == (-80.0, 0.0)
    assert as_bytes(torch.full((1, 1, 1, 1), 7.0), 7.0, 7.0).item() == 0


def test_a_modality_that_a_sample_lacks_is_marked() -> None:
    task = Task("picture", "generation", (1, 2, 2))
    card = Card(5, "client 5", ("photo",), ("picture",), 3)
    photo: Tensor = torch.rand(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    there = {"photo": torch.tensor([True, False])}
    batch = Batch({"photo": photo}, there, {"picture": photo}, {"picture": torch.ones(2, dtype=torch.bool)})
    found = sampled_of(task, card, {"photo": Modality("photo", "image", (1, 2, 2))}, batch, 2 * photo - 0.5)
    assert found.shown["input.photo"].present == (True, False)
    assert found.shown["prediction"].present == (True, True)
    expected = ((2 * photo - 0.5).clamp(0, 1) * 255).round()
    assert torch.equal(found.values["prediction"].float(), expected)
