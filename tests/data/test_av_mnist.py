"""AV-MNIST and the spoken halves of the built sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from whole_recordings import check_recordings_are_kept_together

from polyfed import rng
from polyfed.data.av_mnist import ProjectedColumn, av_mnist, principal_components
from polyfed.data.catalog import DATASETS
from polyfed.data.dataset import Dataset
from polyfed.data.fsdd import clips
from polyfed.data.mnist import digits
from polyfed.data.spoken import pair_with_speech, recording, square_spectrograms
from polyfed.errors import UserError


@pytest.fixture(scope="module")
def small(small_root: Path) -> Dataset:
    return av_mnist(small_root, generation=True, size=40)


def test_shapes_ranges_and_rows(small: Dataset) -> None:
    assert small.test is not None
    assert (len(small.train), len(small.test)) == (60, 30)
    for table in (small.train, small.test):
        batch = table.everything().batch()
        assert batch.inputs["image"].shape == (len(table), 1, 28, 28)
        assert batch.inputs["audio"].shape == (len(table), 1, 40, 40)
        for values in (*batch.inputs.values(), batch.targets["clean_image"], batch.targets["clean_audio"]):
            assert values.dtype == torch.float32
            assert 0 <= values.min() <= values.max() <= 1
        assert torch.equal(batch.inputs["audio"].flatten(1).amax(1), torch.ones(len(table)))
    assert small.field_labels == {"speaker": ("ann", "bob")}
    assert small.train.fields["speaker"].unique().tolist() == [0, 1]
    assert small.unit == "clip"


def test_the_clip_is_the_number_of_the_recording(small_root: Path, small: Dataset) -> None:
    assert small.test is not None
    heard = square_spectrograms(clips(small_root), 40, 10.0, seed=0).float() / 255
    for table in (small.train, small.test):
        assert torch.allclose(table.everything().batch().inputs["audio"], heard[table.fields["clip"]])
    assert len(small.train.fields["clip"].unique()) < len(small.train), "some are used more than once"


def test_a_recording_is_with_one_client_and_on_one_side_of_the_cut(published: Path) -> None:
    dataset = DATASETS.build("av-mnist", {"limit": 3000, "size": 8}, published)
    sizes = check_recordings_are_kept_together(dataset, clients=10)
    assert min(sizes) > 240
    assert max(sizes) < 360


def test_generation_is_an_option(small_root: Path, small: Dataset) -> None:
    assert list(av_mnist(small_root, size=40).tasks) == ["digit"]
    assert {name: task.shape for name, task in small.tasks.items() if task.kind == "generation"} == {
        "clean_image": (1, 28, 28),
        "clean_audio": (1, 40, 40),
    }


def test_clean_targets_are_the_image_and_the_noise_free_speech(small_root: Path, small: Dataset) -> None:
    batch = small.train.everything().batch()
    part = digits(small_root)[0]
    assert torch.allclose(batch.targets["clean_image"][:, 0], torch.from_numpy(part.images) / 255)
    assert batch.targets["digit"].tolist() == part.labels.tolist()
    quiet = av_mnist(small_root, generation=True, size=40, noise_db=None).train.everything().batch()
    assert torch.equal(quiet.inputs["audio"], batch.targets["clean_audio"])
    assert not torch.equal(batch.inputs["audio"], batch.targets["clean_audio"])


def test_the_image_keeps_a_quarter_of_the_variance(small_root: Path, small: Dataset) -> None:
    flat = digits(small_root)[0].images.reshape(60, -1) / 255
    centred = flat - flat.mean(0)
    _, singular, right = np.linalg.svd(centred, full_matrices=False)
    share = np.cumsum(singular**2) / np.sum(singular**2)
    count = int(np.argmax(share >= 0.25)) + 1
    expected = np.clip(flat.mean(0) + centred @ right[:count].T @ right[:count], 0, 1)
    found = small.train.everything().batch().inputs["image"].flatten(1)
    assert found.numpy() == pytest.approx(expected, abs=1e-4)


def test_all_components_give_the_images_back() -> None:
    images = np.random.default_rng(0).integers(0, 256, size=(5, 2, 2), dtype=np.uint8)
    basis = principal_components(images, 1.0 - 1e-9)
    back = basis.mean + basis.codes(images) @ basis.components
    assert back.numpy() == pytest.approx(images.reshape(5, 4) / 255, abs=1e-4)
    assert len(principal_components(images, 1e-6).components) == 1


@pytest.mark.parametrize("test", [False, True])
def test_speech_is_of_the_same_digit_and_of_the_right_takes(small_root: Path, test: bool) -> None:
    read, digit = clips(small_root), torch.arange(200) % 10
    chosen = pair_with_speech(read, digit, test, seed=0).numpy()
    assert read.label[chosen].tolist() == digit.tolist()
    assert set(read.take[chosen].tolist()) == ({0, 4} if test else {5, 6})
    assert not np.array_equal(chosen, pair_with_speech(read, digit, test, seed=1).numpy())


def test_noise_has_the_level_asked_for_and_a_key_of_its_own() -> None:
    wave = (8000 * np.sin(np.arange(20_000))).astype(np.int16)
    clean = recording(wave, 16_000, None, (0,))
    noisy = recording(wave, 16_000, 10.0, (0,))
    ratio = 10 * torch.log10(clean.square().mean() / (noisy - clean).square().mean())
    assert float(ratio) == pytest.approx(10, abs=0.2)
    assert torch.equal(noisy, recording(wave, 16_000, 10.0, (0,)))
    assert not torch.equal(noisy, recording(wave, 16_000, 10.0, (1,)))


def test_a_tone_is_bright_at_its_frequency_while_it_lasts(small_root: Path) -> None:
    read = clips(small_root)
    found = square_spectrograms(read, 40, None, seed=0)[:, 0].float() / 255
    half = found[:, :, :8].mean(2).argmax(1)  # the first fifth of a second, before any clip ends
    expected = (300 + 100 * torch.from_numpy(read.label).float()) / 4000 * 40
    assert (half + 0.5 - expected).abs().max() <= 1.1
    assert found[np.diff(read.offsets) < 7000, :, -2:].max() == 0  # silence after a clip is the minimum


def test_a_limit_keeps_the_class_shares_and_the_test_rows(small_root: Path) -> None:
    dataset = av_mnist(small_root, size=8, limit=20, generation=True)
    assert dataset.test is not None
    assert len(dataset.test) == 30
    batch = dataset.train.everything().batch()
    assert batch.targets["digit"].bincount().tolist() == [2] * 10
    known = {image.tobytes(): label for image, label in zip(*vars(digits(small_root)[0]).values(), strict=True)}
    images = torch.round(batch.targets["clean_image"][:, 0] * 255).to(torch.uint8).numpy()
    assert [known[image.tobytes()] for image in images] == batch.targets["digit"].tolist()
    with pytest.raises(UserError, match="limit 61 is more than the 60"):
        av_mnist(small_root, size=8, limit=61)


def test_same_seed_same_set_other_seed_other_pairs(small_root: Path, small: Dataset) -> None:
    again = av_mnist(small_root, generation=True, size=40)
    assert torch.equal(
        again.train.everything().batch().inputs["audio"], small.train.everything().batch().inputs["audio"]
    )
    other = av_mnist(small_root, size=40, seed=1)
    assert not torch.equal(other.train.fields["speaker"], small.train.fields["speaker"])


def test_on_the_published_files(published: Path) -> None:
    dataset = DATASETS.build("av-mnist", {"limit": 500}, published)
    assert dataset.test is not None
    assert (len(dataset.train), len(dataset.test)) == (500, 10_000)
    rows = torch.from_numpy(rng.numpy_generator(0).permutation(10_000)[:200])
    batch = dataset.test.everything().batch(rows)
    assert batch.inputs["audio"].shape == (200, 1, 112, 112)
    assert batch.inputs["audio"].flatten(1).std(1).min() > 0.05
    assert dataset.train.fields["speaker"].unique().tolist() == list(range(6))
    image = dataset.train.inputs["image"]
    assert isinstance(image, ProjectedColumn)
    assert len(image.basis.components) == 4  # three explain 23 % of the variance of MNIST, four 28 %
