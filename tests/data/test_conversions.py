"""The lines in docs/datasets.md that make our files of published ones, run on small files laid out like these."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.multimedia import mosei_part, vehicle_rows

from polyfed.data.cmu_mosei_files import parts
from polyfed.data.vehicle_sensor import vehicle_sensor

PAGE = Path(__file__).parents[2] / "docs" / "datasets.md"
SPLITS = ("train", "valid", "test")


def run_block(holding: str) -> None:
    """Run the one code block of the page that holds a text."""
    blocks: list[str] = re.findall(
        r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    (code,) = [block for block in blocks if holding in block]
    exec(compile(code, str(PAGE), "exec"), {})


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cmu_mosei").mkdir()
    return tmp_path


def test_the_pickle_of_mosei(here: Path) -> None:
    raw = {split: mosei_part(10, seed) for seed, split in enumerate(SPLITS)}
    stored: dict[str, dict[str, Any]] = {
        split: {**part, "vision": part["video"], "labels": part["labels"][:, :1, None], "id": np.array([["a"]] * 10)}
        for split, part in raw.items()
    }
    (here / "mosei_senti_data.pkl").write_bytes(pickle.dumps(stored))
    run_block("mosei_senti_data.pkl")
    for split, part in zip(SPLITS, parts(here), strict=True):
        np.testing.assert_array_equal(part.features["video"], raw[split]["video"])
        np.testing.assert_array_equal(part.labels, raw[split]["labels"][:, :1])


def test_the_hdf5_files_of_mosei(here: Path) -> None:
    h5py = pytest.importorskip("h5py")
    raw = {split: mosei_part(10, seed) for seed, split in enumerate(SPLITS)}
    for split, part in raw.items():
        happy, sad, anger, surprise, disgust, fear = part["labels"][:, 1:].T
        by_alphabet = np.stack([anger, disgust, fear, happy, sad, surprise], axis=1)
        arrays = {f"y_{split}": part["labels"][:, :1], f"ey_{split}": by_alphabet, f"text_{split}_emb": part["text"]}
        for name, values in {**arrays, f"audio_{split}": part["audio"], f"video_{split}": part["video"]}.items():
            with h5py.File(f"{name}.h5", "w") as file:
                file["d1"] = values
    run_block("import h5py")
    for split, part in zip(SPLITS, parts(here), strict=True):
        np.testing.assert_array_equal(part.labels, raw[split]["labels"])


def test_the_matlab_file_of_the_vehicles(here: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    raw = vehicle_rows(3, 8)
    cells = {name: np.empty((3, 1), dtype=object) for name in "XY"}
    for node in range(3):
        mine = raw["node"] == node + 1
        cells["X"][node, 0] = np.tile(raw["acoustic"][mine], 10)
        cells["Y"][node, 0] = raw["label"][mine][:, None].astype(float)
    scipy_io.savemat("vehicle.mat", cells)
    run_block("vehicle.mat")
    data = vehicle_sensor(here)
    assert {name: modality.shape for name, modality in data.modalities.items()} == {"audio": (50,), "seismic": (50,)}
    assert data.train.fields["node"].tolist() == [0] * 6 + [1] * 6 + [2] * 6
    first = raw["label"][raw["node"] == 1][:6]
    assert data.train.everything().batch().targets["vehicle"][:6].tolist() == ((first + 1) // 2).tolist()
