from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.multimedia import SIZES, STEPS, mosei_part, write_mosei

from polyfed.data.catalog import DATASETS
from polyfed.data.check import check
from polyfed.data.cmu_mosei import cmu_mosei, sentiment, steps
from polyfed.data.samples import Table
from polyfed.data.several import joined
from polyfed.errors import UserError
from polyfed.scenario.build import tasks_in_use
from polyfed.scenario.groups import Group, named_tasks


def everything(table: Table | None, name: str) -> torch.Tensor:
    assert table is not None
    return ({**table.inputs, **table.targets})[name].gather(torch.arange(len(table)))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_mosei(tmp_path, rows=40)
    return tmp_path


def test_train_and_valid_are_to_train_on_and_test_is_the_test(root: Path) -> None:
    data = DATASETS.build("cmu-mosei", {}, root)
    assert data.test is not None
    assert (len(data.train), len(data.test), data.unit) == (50, 20, None)
    assert {name: (m.kind, m.shape) for name, m in data.modalities.items()} == {
        name: ("sensor", (size, STEPS)) for name, size in SIZES.items()
    }
    assert (data.tasks["sentiment"].classes, data.tasks["emotions"].shape) == (9, (3,))
    assert check("cmu-mosei", root) == []


def test_features_are_standardised_by_the_training_split_without_its_padding(root: Path) -> None:
    data, raw, valid = cmu_mosei(root), mosei_part(40, 0), mosei_part(10, 1)
    for name in SIZES:
        spoken = raw[name][:, 2:].astype(np.float64)
        mean, deviation = spoken.mean((0, 1)), spoken.std((0, 1))
        values = everything(data.train, name)
        assert values.dtype == torch.float32
        assert (values[:, :, :2] == 0).all(), "padding stays zero"
        np.testing.assert_allclose(values[:40, :, 2:].transpose(1, 2), (spoken - mean) / deviation, atol=1e-5)
        np.testing.assert_allclose(
            values[40:, :, 2:].transpose(1, 2), (valid[name][:, 2:] - mean) / deviation, atol=1e-5
        )


def test_values_that_are_not_finite_become_the_mean_and_count_nowhere(tmp_path: Path) -> None:
    write_mosei(tmp_path, rows=40)
    part = mosei_part(40, 0)
    part["audio"][3, 4, 1] = -np.inf
    part["audio"][5, 6, 1] = np.nan
    part["audio"][:, :, 2] = np.nan  # a feature that nobody has
    part["video"][:, 2:, 3] = 7  # a constant one
    np.savez(tmp_path / "cmu_mosei" / "train.npz", **part)
    data = cmu_mosei(tmp_path)
    audio = everything(data.train, "audio")
    assert audio.isfinite().all()
    assert audio[3, 1, 4] == audio[5, 1, 6] == 0
    kept = np.delete(part["audio"][:, 2:, 1].astype(np.float64).ravel(), [3 * 6 + 2, 5 * 6 + 4])
    expected = (part["audio"][0, 2, 1] - kept.mean()) / kept.std()
    assert audio[0, 1, 2].item() == pytest.approx(expected, abs=1e-5)
    assert (audio[:40, 2] == 0).all()
    assert (everything(data.train, "video")[:40, 3] == 0).all()
    assert everything(data.test, "audio").isfinite().all()


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (9, [-4, -4, -3, -1, -1, 0, 0, 0, 1, 1, 2, 4]),  # 4/3 of the score is -4, -3.5, -3.1, -1.3, -0.5, ..., 0.5, ...
        (7, [-3, -3, -2, -1, 0, 0, 0, 0, 0, 1, 1, 3]),
        (3, [-1, -1, -1, -1, -1, -1, 0, 1, 1, 1, 1, 1]),
    ],
)
def test_the_sentiment_is_divided_into_steps(classes: int, expected: list[int]) -> None:
    scores = np.array([-3, -2.625, -7 / 3, -1, -0.375, -1 / 3, 0, 1 / 3, 0.375, 2 / 3, 4 / 3, 3])
    found = sentiment(scores, classes)
    assert [int(step) - classes // 2 for step in found] == expected
    assert len(steps(classes)) == classes


def test_steps_have_names() -> None:
    assert steps(3) == ("negative", "zero", "positive")
    assert steps(7) == ("-3", "-2", "-1", "0", "1", "2", "3")


def test_emotions_are_standardised_by_the_training_split(root: Path) -> None:
    data, raw = cmu_mosei(root, sentiment_classes=3), mosei_part(40, 0)["labels"]
    held = everything(data.train, "emotions")
    np.testing.assert_allclose(held[:40], (raw[:, 1:4] - raw[:, 1:4].mean(0)) / raw[:, 1:4].std(0), atol=1e-5)
    assert everything(data.train, "sentiment")[:40].tolist() == (np.sign(raw[:, 0]) + 1).tolist()


def test_files_with_the_sentiment_alone_have_that_task_alone(tmp_path: Path) -> None:
    write_mosei(tmp_path, rows=40)
    for split, rows in (("train", 40), ("valid", 10), ("test", 20)):
        part = mosei_part(rows, 0)
        np.savez(tmp_path / "cmu_mosei" / f"{split}.npz", **{**part, "labels": part["labels"][:, :1, None]})
    data = cmu_mosei(tmp_path)
    assert list(data.tasks) == ["sentiment"]
    for dataset in (data, joined({"mosei": data})):
        with pytest.raises(
            UserError, match=r"unknown task 'emotions'.* no emotions: the array 'labels' has one column"
        ):
            tasks_in_use(dataset, ["emotions"])
        with pytest.raises(UserError, match=r"groups\.0: unknown task 'emotions'.* 'labels' has one column"):
            named_tasks([Group(clients=1, modalities=["text"], tasks=["emotions"])], dataset)


def test_whole_numbers_are_read_too(tmp_path: Path) -> None:
    write_mosei(tmp_path, rows=40)
    np.savez(tmp_path / "cmu_mosei" / "train.npz", **{k: v.astype(np.int16) for k, v in mosei_part(40, 0).items()})
    assert everything(cmu_mosei(tmp_path).train, "text").dtype == torch.float32


def test_values_beyond_float32_in_the_training_split_are_refused(tmp_path: Path) -> None:
    """Their deviation would be infinite, and with it all that is known of the feature lost."""
    write_mosei(tmp_path, rows=40)
    part = mosei_part(40, 0)
    part["video"] = part["video"].astype(np.float64)
    part["video"][7, 3, 1] = 1e300
    np.savez(tmp_path / "cmu_mosei" / "train.npz", **part)
    with pytest.raises(UserError, match=r"train\.npz: array 'video' holds 1e\+300, more than"):
        cmu_mosei(tmp_path)


def test_values_far_beyond_those_of_the_training_split_are_refused(tmp_path: Path) -> None:
    write_mosei(tmp_path, rows=40, audio=np.full((20, 8, 5), 3e38, np.float32))
    train = mosei_part(40, 0)
    np.savez(tmp_path / "cmu_mosei" / "train.npz", **{**train, "audio": train["audio"] / 300})
    with pytest.raises(UserError, match=r"test\.npz: array 'audio' holds .*e\+40 when standardised by the training"):
        cmu_mosei(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"text": np.zeros((20, 8))},
            r"array 'text' has the shape \(20, 8\), expected \(20, steps, features\), as many",
        ),
        ({"text": np.zeros((19, 8, 6))}, r"array 'text' has the shape \(19, 8, 6\), expected \(20, steps"),
        (
            {"audio": np.zeros((20, 8, 9))},
            r"array 'audio' has the shape \(20, 8, 9\), expected \(rows, 8, 5\) as in train",
        ),
        (
            {"video": np.zeros((20, 8, 4), complex)},
            r"array 'video' has type complex128, expected numbers \(array\.astype\('float32'\) makes them\)",
        ),
        ({"text": np.full((20, 8, 6), -1e300)}, "array 'text' holds -1e\\+300, more than .*float32, up to 3.4e\\+38"),
        (
            {"labels": np.zeros((20, 6))},
            r"'labels' has the shape \(20, 6\), expected \(rows, 7\): sentiment, happiness",
        ),
        ({"labels": np.zeros((20, 1))}, r"'labels' has the shape \(20, 1\), expected \(rows, 7\) as in train"),
        ({"labels": np.zeros(())}, r"'labels' has the shape \(\), expected"),
        ({"labels": np.zeros((0, 7))}, r"'labels' has the shape \(0, 7\), expected"),
        ({"labels": np.full((20, 7), 3.1)}, "row 0: sentiment is 3.1, expected a number -3 to 3"),
        ({"labels": np.eye(20, 7) * -1}, "row 1: happiness is -1, expected a number 0 to 3"),
        ({"labels": np.full((20, 7), np.nan)}, "row 0: sentiment is nan, expected"),
    ],
)
def test_a_wrong_layout_is_refused_by_file_and_array(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_mosei(tmp_path, rows=40, **changes)
    with pytest.raises(UserError, match=rf"cmu_mosei.test\.npz: .*{message}"):
        cmu_mosei(tmp_path)
    assert len(check("cmu-mosei", tmp_path)) == 1


def test_missing_files_are_named_with_what_to_get_and_where_to_put_it(root: Path, tmp_path_factory: Any) -> None:
    (root / "cmu_mosei" / "valid.npz").unlink()
    with pytest.raises(UserError, match=r"cmu_mosei/valid\.npz is missing; .*CMU-MultimodalSDK.*into .*/cmu_mosei/"):
        cmu_mosei(root)
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(UserError, match=r"CMU-MOSEI was not found under .*train\.npz, valid\.npz and test\.npz into"):
        cmu_mosei(empty)
    with pytest.raises(
        UserError,
        match=r"is named\. Get .* into cmu_mosei/ in the folder of downloaded sets\. .*set POLYFED_DATA or data\.root",
    ):
        cmu_mosei(None)


class Fatal:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (pytest.fail, ("a pickle was opened",))


def test_no_pickle_is_opened(root: Path) -> None:
    (root / "cmu_mosei" / "test.npz").write_bytes(pickle.dumps(Fatal()))
    with pytest.raises(UserError, match=r"test\.npz: damaged, or not an \.npz file whatever its name; numpy"):
        cmu_mosei(root)
    hidden = np.empty(20, dtype=object)
    hidden[:] = [Fatal() for _ in hidden]
    np.savez(root / "cmu_mosei" / "test.npz", **{**mosei_part(20, 0), "text": hidden})
    with pytest.raises(UserError, match=r"test\.npz: array 'text' is damaged or holds Python objects, .*plain numbers"):
        cmu_mosei(root)
