"""The data set inside the package."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from whole_recordings import check_recordings_are_kept_together

from polyfed.data.avdigits import avdigits, recordings
from polyfed.data.catalog import DATASETS
from polyfed.data.dataset import Dataset
from polyfed.data.samples import Table


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return avdigits(None)


def voices(dataset: Dataset, table: Table) -> set[str]:
    return {dataset.field_labels["voice"][voice] for voice in table.fields["voice"].unique().tolist()}


def test_it_is_the_first_registered_dataset_and_needs_no_folder() -> None:
    assert DATASETS.names()[0] == "avdigits"
    assert DATASETS.build("avdigits", {}, None).name == "avdigits"


def test_counts_shapes_and_ranges(dataset: Dataset) -> None:
    assert dataset.test is not None
    assert (len(dataset.train), len(dataset.test)) == (1437, 360)
    for table in (dataset.train, dataset.test):
        batch = table.everything().batch()
        for name, modality in dataset.modalities.items():
            assert batch.inputs[name].shape == (len(table), *modality.shape)
            assert batch.inputs[name].dtype == torch.float32
            assert batch.inputs[name].min() >= 0
            assert batch.inputs[name].max() == 1
        assert batch.targets["digit"].dtype == torch.int64
        assert batch.targets["digit"].bincount(minlength=10).min() > 0.09 * len(table)
        assert torch.equal(batch.targets["parity"], batch.targets["digit"] % 2)
    assert dataset.tasks["digit"].classes == 10
    assert dataset.tasks["parity"].labels == ("even", "odd")


def test_images_are_those_of_scikit_learn_each_in_one_split() -> None:
    held, digits = recordings(), load_digits()
    assert np.array_equal(held.image[:, 0].numpy(), digits.images)
    assert np.array_equal(held.image_label.numpy(), digits.target)
    shares = held.image_label[held.image_test].bincount() / held.image_label.bincount()
    assert torch.allclose(shares, torch.full((10,), 0.2), atol=0.005)


def test_speech_is_balanced_and_one_utterance_of_each_digit_by_each_voice() -> None:
    held = recordings()
    assert held.audio.shape == (1200, 1, 20, 24)
    pairs = torch.stack([held.audio_voice.long(), held.audio_label.long()], dim=1)
    assert len(pairs.unique(dim=0)) == 1200
    assert held.audio_label[held.audio_test].bincount().tolist() == [24] * 10
    assert held.audio.flatten(1).float().std(dim=1).min() > 10  # no clip is silent


def test_splits_share_neither_a_voice_nor_a_timbre(dataset: Dataset) -> None:
    assert dataset.test is not None
    train, test = voices(dataset, dataset.train), voices(dataset, dataset.test)
    assert (len(train), len(test)) == (96, 24)
    assert {name.split("+")[1] for name in train} & {name.split("+")[1] for name in test} == set()


def test_every_image_is_paired_with_speech_of_its_class_and_split() -> None:
    held = recordings()
    for table in (avdigits(None).train, avdigits(None).test):
        assert table is not None
        batch = table.everything().batch()
        known = {clip.numpy().tobytes(): int(label) for clip, label in zip(held.audio, held.audio_label, strict=True)}
        heard = torch.round(batch.inputs["audio"] * 255).to(torch.uint8)
        assert [known[clip.numpy().tobytes()] for clip in heard] == batch.targets["digit"].tolist()


def test_the_clip_is_the_number_of_the_utterance(dataset: Dataset) -> None:
    assert dataset.test is not None
    for table in (dataset.train, dataset.test):
        heard = table.everything().batch().inputs["audio"]
        assert torch.allclose(heard, recordings().audio[table.fields["clip"]].float() / 255)
    assert not set(dataset.train.fields["clip"].tolist()) & set(dataset.test.fields["clip"].tolist())


def test_an_utterance_is_with_one_client_and_on_one_side_of_the_cut(dataset: Dataset) -> None:
    sizes = check_recordings_are_kept_together(dataset, clients=12)
    assert min(sizes) > 90
    assert max(sizes) < 150


def test_pairing_is_a_function_of_the_seed(dataset: Dataset) -> None:
    again, other = avdigits(None, seed=0).train, avdigits(None, seed=1).train
    assert torch.equal(again.fields["voice"], dataset.train.fields["voice"])
    assert not torch.equal(other.fields["voice"], dataset.train.fields["voice"])


def test_more_pairs_repeat_the_image_with_other_speech() -> None:
    train = avdigits(None, pairs_per_image=3).train
    assert len(train) == 3 * 1437
    batch = train.everything().batch(torch.arange(3))
    assert torch.equal(batch.inputs["image"][0], batch.inputs["image"][2])
    assert len(train.fields["voice"].view(-1, 3).unique(dim=0)) > 1000


def test_file_is_small_and_records_how_it_was_made() -> None:
    source = files("polyfed.data") / "avdigits.npz"
    assert len(source.read_bytes()) < 1_000_000
    with np.load(str(source)) as arrays:  # plain arrays only: pickles are refused by default
        assert all(arrays[name].dtype != object for name in arrays.files)
        assert "eSpeak NG" in str(arrays["espeak_version"])
        assert int(arrays["seed"]) == 0
