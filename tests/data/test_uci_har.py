from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from polyfed.data.catalog import DATASETS
from polyfed.data.uci_har import STATISTICS, WindowColumn, uci_har
from polyfed.data.uci_har_files import CHANNELS, read_text, recordings
from polyfed.errors import UserError

Signal = npt.NDArray[np.float64]


def bout(length: int, seed: int) -> Signal:
    return np.random.default_rng(seed).normal(size=(length, 9)).round(5)


def windows(signal: Signal) -> Signal:
    """Cut windows of 128 samples that share half, (windows, 128, 9)."""
    return np.stack([signal[i : i + 128] for i in range(0, len(signal) - 127, 64)])


def write_part(folder: Path, part: str, cut: Signal, label: list[int], subject: list[int]) -> None:
    (folder / part / "Inertial Signals").mkdir(parents=True)
    for i, name in enumerate(CHANNELS):
        np.savetxt(folder / part / "Inertial Signals" / f"{name}_{part}.txt", cut[:, :, i], fmt="%16.7e")
    np.savetxt(folder / part / f"y_{part}.txt", label, fmt="%d")
    np.savetxt(folder / part / f"subject_{part}.txt", subject, fmt="%d")


FIRST, SECOND, THIRD = bout(256, 1), bout(128, 2), bout(192, 3)


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """Training: 3 windows of one bout, 1 of another; test: 2 windows that agree, but the label changes between."""
    folder = tmp_path / "UCI HAR Dataset"
    train = np.concatenate([windows(FIRST), windows(SECOND)])
    write_part(folder, "train", train, [5, 5, 5, 1], [3, 3, 3, 3])
    write_part(folder, "test", windows(THIRD), [6, 2], [9, 9])
    return tmp_path


def test_bouts_are_recovered_from_overlapping_windows(original: Path) -> None:
    read = recordings(original)
    assert read.bout.tolist() == [0, 0, 0, 1, 2, 3]
    assert read.start.tolist() == [0, 64, 128, 256, 384, 512]
    assert read.label.tolist() == [4, 4, 4, 0, 5, 1]
    assert read.subject.tolist() == [3, 3, 3, 3, 9, 9]
    assert read.uci_test.tolist() == [False] * 4 + [True] * 2
    expected = np.concatenate([FIRST, SECOND, THIRD[:128], THIRD[64:]])
    np.testing.assert_array_equal(read.signal, expected.astype(np.float32))


def test_the_packed_file_reads_like_the_original(original: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    read = recordings(original)
    root = tmp_path_factory.mktemp("packed")
    np.savez(
        root / "uci_har.npz",
        signal=read.signal,
        window_start=read.start.astype(np.int32),
        bout=read.bout.astype(np.int16),
        label=read.label.astype(np.uint8),
        subject=read.subject.astype(np.uint8),
        uci_test=read.uci_test.astype(np.uint8),
    )
    packed = recordings(root)
    for name in ("signal", "start", "bout", "label", "subject", "uci_test"):
        np.testing.assert_array_equal(getattr(packed, name), getattr(read, name))


def test_two_modalities_hold_the_standardised_channels(original: Path) -> None:
    data = uci_har(original, modalities="two")
    assert (data.unit, data.test, len(data.train)) == ("bout", None, 6)
    batch = data.train.everything().batch(torch.tensor([1, 3]))
    assert batch.inputs["accelerometer"].shape == (2, 6, 128)
    mean, deviation = (np.array(numbers) for numbers in STATISTICS["total"])
    expected = (FIRST[64:192, 6:] - mean) / deviation
    np.testing.assert_allclose(batch.inputs["accelerometer"][0, 3:].T, expected, atol=1e-5)
    mean, deviation = (np.array(numbers) for numbers in STATISTICS["gyroscope"])
    np.testing.assert_allclose(batch.inputs["gyroscope"][1].T, (SECOND[:, 3:6] - mean) / deviation, atol=1e-5)
    assert batch.targets["activity"].tolist() == [4, 0]
    assert data.train.fields["bout"].tolist() == [0, 0, 0, 1, 2, 3]


def test_three_modalities_set_gravity_apart_and_subjects_are_split(original: Path) -> None:
    data = uci_har(original, modalities="three", split="subject")
    assert data.test is not None
    assert {name: modality.shape for name, modality in data.modalities.items()} == {
        "body_acceleration": (3, 128),
        "gyroscope": (3, 128),
        "gravity": (3, 128),
    }
    assert (set(data.train.fields["subject"].tolist()), set(data.test.fields["subject"].tolist())) == ({3}, {9})
    gravity = data.test.inputs["gravity"].gather(torch.tensor([0]))[0]
    mean, deviation = (np.array(numbers) for numbers in STATISTICS["gravity"])
    np.testing.assert_allclose(gravity.T, (THIRD[:128, 6:] - THIRD[:128, :3] - mean) / deviation, atol=1e-5)


def test_more_tasks_tell_moving_from_still_and_how_strongly(original: Path) -> None:
    data = uci_har(original, modalities="three", more_tasks=True)
    assert list(data.tasks) == ["activity", "moving", "intensity"]
    assert list(uci_har(original).tasks) == ["activity"]
    batch = data.train.everything().batch()
    assert batch.targets["activity"].tolist() == [4, 4, 4, 0, 5, 1]
    assert batch.targets["moving"].tolist() == [0, 0, 0, 1, 0, 1]
    strength = np.sqrt((FIRST[64:192, :3] ** 2).sum(1).mean())
    assert batch.targets["intensity"][1].item() == pytest.approx((np.log(strength) + 2.7717) / 1.6970, abs=1e-5)
    tested = uci_har(original, split="subject", more_tasks=True).test
    assert tested is not None
    assert tested.everything().batch().targets["intensity"].tolist() == batch.targets["intensity"][4:].tolist()


def test_windows_are_cut_from_the_signal_when_asked_for() -> None:
    column = WindowColumn(torch.arange(20.0).view(10, 2), torch.tensor([0, 3, 6]), 4)
    assert (len(column), column.shape) == (3, (2, 4))
    assert column.gather(torch.tensor([2, 0])).tolist() == [
        [[12, 14, 16, 18], [13, 15, 17, 19]],
        [[0, 2, 4, 6], [1, 3, 5, 7]],
    ]


def test_broken_text_files_are_refused_by_name(original: Path) -> None:
    folder = original / "UCI HAR Dataset"
    labels, signal = folder / "train/y_train.txt", folder / "test/Inertial Signals/body_gyro_y_test.txt"
    good = labels.read_text()
    for text, message in (
        ("5\n5\n7\n1\n", r"y_train\.txt: row 2 has the label 7, expected a whole number 1 to 6"),
        ("5\n5\n2.5\n1\n", r"y_train\.txt: row 2 has the label 2\.5"),
        ("5\n5\n", r"body_acc_x_train\.txt: has 4 rows, but .*y_train\.txt has 2"),
        ("5\nwalking\n", r"y_train\.txt: not a table of numbers"),
    ):
        labels.write_text(text)
        with pytest.raises(UserError, match=message):
            read_text(folder)
    labels.write_text(good)
    signal.write_text("1 2 3\n")
    with pytest.raises(UserError, match=r"body_gyro_y_test\.txt: has 3 columns"):
        read_text(folder)
    signal.unlink()
    with pytest.raises(UserError, match=r"body_gyro_y_test\.txt: cannot be read"):
        read_text(folder)


def test_broken_packed_files_are_refused_by_name(tmp_path: Path) -> None:
    one = np.zeros(1, dtype=np.uint8)
    sound: dict[str, Any] = dict.fromkeys(("window_start", "bout", "label", "subject", "uci_test"), one)
    sound["signal"] = np.zeros((128, 9), np.float32)
    for change, message in (
        ({"window_start": one + 1}, "row 0 has the window_start 1, expected a whole number 0 to 0"),
        ({"label": one + 6}, "row 0 has the label 6"),
        ({"signal": np.zeros((128, 8), np.float32)}, r"'signal' has shape \(128, 8\)"),
        ({"signal": np.full((128, 9), np.nan, np.float32)}, "not finite"),
    ):
        np.savez(tmp_path / "uci_har.npz", **{**sound, **change})
        with pytest.raises(UserError, match=rf"uci_har\.npz: .*{message}"):
            recordings(tmp_path)


def test_the_published_windows_have_the_known_counts(published: Path) -> None:
    data = DATASETS.build("uci-har", {"split": "subject"}, published)
    whole = DATASETS.build("uci-har", {}, published).train
    assert data.test is not None
    assert (len(data.train), len(data.test), len(whole)) == (7352, 2947, 10299)
    assert len(set(whole.fields["bout"].tolist())) == 857
    activity = whole.targets["activity"].gather(torch.arange(10299))
    assert torch.bincount(activity).tolist() == [1722, 1544, 1406, 1777, 1906, 1944]
    per_subject = torch.bincount(whole.fields["subject"])[1:].tolist()
    assert (per_subject[0], per_subject[7], per_subject[24], per_subject[29]) == (347, 281, 409, 383)
    assert set(data.test.fields["subject"].tolist()) == {2, 4, 9, 10, 12, 13, 18, 20, 24}
    intensity = DATASETS.build("uci-har", {"split": "subject", "more_tasks": True}, published).train.targets[
        "intensity"
    ]
    values = intensity.gather(torch.arange(7352))
    assert (values.mean().abs() < 1e-3, (values.std() - 1).abs() < 1e-3) == (True, True)
    for column in data.train.inputs.values():
        values = column.gather(torch.arange(0, 7352))
        assert values.mean((0, 2)).abs().max() < 1e-3
        assert (values.std((0, 2)) - 1).abs().max() < 1e-3
