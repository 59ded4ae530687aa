from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.multimedia import vehicle_rows, write_vehicle

from polyfed.data.catalog import DATASETS
from polyfed.data.check import check
from polyfed.data.vehicle_sensor import vehicle_sensor
from polyfed.errors import UserError
from polyfed.registry import Chosen
from polyfed.scenario.build import build


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_vehicle(tmp_path, nodes=3, rows=10)
    return tmp_path


def test_the_first_three_quarters_of_every_node_are_to_train_on(root: Path) -> None:
    data, raw = DATASETS.build("vehicle-sensor", {}, root), vehicle_rows(3, 10)
    assert data.test is not None
    assert (len(data.train), len(data.test)) == (21, 9)
    assert {name: (m.kind, m.shape, m.family) for name, m in data.modalities.items()} == {
        "audio": ("vector", (10,), "audio"),
        "seismic": ("vector", (7,), "seismic"),
    }
    for table, first, last in ((data.train, 0, 7), (data.test, 7, 10)):
        batch = table.everything().batch()
        assert batch.inputs["audio"].dtype == torch.float32
        for node in (1, 2, 3):
            mine = table.fields["node"] == node
            of_node = raw["node"] == node
            label = raw["label"][of_node][first:last]
            assert batch.targets["vehicle"][mine].tolist() == ((label + 1) // 2).tolist()
            for name, array in (("audio", "acoustic"), ("seismic", "seismic")):
                values = raw[array][of_node].astype(np.float64)
                known = values[:7]
                expected = (values[first:last] - known.mean(0)) / known.std(0)
                np.testing.assert_allclose(batch.inputs[name][mine], expected, atol=1e-5)
    assert check("vehicle-sensor", root) == []


def test_a_feature_that_never_changes_becomes_zero_and_labels_may_be_0_and_1(tmp_path: Path) -> None:
    raw = vehicle_rows(2, 4)
    raw["seismic"][:, 2] = 5
    write_vehicle(tmp_path, nodes=2, rows=4, seismic=raw["seismic"], label=(raw["label"] + 1.0) / 2)
    batch = vehicle_sensor(tmp_path).train.everything().batch()
    assert (batch.inputs["seismic"][:, 2] == 0).all()
    assert batch.targets["vehicle"].tolist() == ((raw["label"] + 1) // 2)[:6].tolist()


def test_clients_can_take_whole_nodes_and_are_tested_on_them(root: Path) -> None:
    federation = build(
        vehicle_sensor(root),
        clients=None,
        partition=Chosen("natural", {"field": "node"}),
        modalities=Chosen("all"),
        tasks=Chosen("all"),
        validation=0.1,
        test=0.2,
        only_tasks=None,
        seed=0,
    )
    for node, client in enumerate(federation.clients(), start=1):
        assert client.card.name == f"node {node}"
        for part in (client.train, client.validation, client.test):
            assert set(part.field("node").tolist()) == {node}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"acoustic": np.zeros((29, 10))}, r"array 'acoustic' has the shape \(29, 10\), expected \(30, features\)"),
        ({"seismic": np.zeros(30)}, r"array 'seismic' has the shape \(30,\), expected \(30, features\)"),
        ({"seismic": np.zeros((30, 0))}, r"array 'seismic' has the shape \(30, 0\), expected"),
        ({"acoustic": np.full((30, 2), np.inf)}, "array 'acoustic', row 0 holds a value that is not finite"),
        ({"acoustic": np.full((30, 2), 1e300)}, r"array 'acoustic' holds 1e\+300, more than .*float32"),
        ({"label": np.zeros((30, 1))}, r"array 'label' has shape \(30, 1\), expected \(30,\)"),
        ({"label": np.arange(30)}, "array 'label', row 2 is 2, expected -1 and 1, or 0 and 1"),
        ({"label": np.arange(30) - 1}, "array 'label', row 1 is 0, expected -1 and 1"),
        ({"node": np.zeros((30, 1), int)}, r"array 'node' has the shape \(30, 1\), expected \(rows,\)"),
        ({"node": np.zeros(30)}, r"'node' has type float64, expected whole numbers \(array\.astype\('int64'\)"),
        ({"node": np.array([*[1] * 29, 5])}, "node 5 has one row, but needs two or more"),
    ],
)
def test_a_wrong_layout_is_refused_by_array(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_vehicle(tmp_path, nodes=3, rows=10, **changes)
    with pytest.raises(UserError, match=rf"vehicle_sensor\.npz: .*{message}"):
        vehicle_sensor(tmp_path)
    assert len(check("vehicle-sensor", tmp_path)) == 1


def test_a_missing_file_is_named_with_what_to_get_and_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Vehicle Sensor was not found under .*Duarte.*vehicle_sensor\.npz into"):
        vehicle_sensor(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1 0.5 0.25\n", r"damaged, or not an \.npz file whatever its name; numpy\.savez writes one$"),
        (b"", r"damaged, or not an \.npz file"),
        (None, r"damaged, perhaps only a part of it was copied; copy it, or make it, again$"),
    ],
)
def test_a_file_that_is_none_is_refused_in_our_words(root: Path, content: bytes | None, message: str) -> None:
    """None of numpy's, which are an advice to load the file unsafely; None stands for the first half of the file."""
    path = root / "vehicle_sensor.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(UserError, match=rf"vehicle_sensor\.npz: {message}"):
        vehicle_sensor(root)


def test_a_zip_file_of_something_else_is_refused(root: Path) -> None:
    with zipfile.ZipFile(root / "vehicle_sensor.npz", "w") as archive:
        for name in vehicle_rows(1, 1):
            archive.writestr(name, "1 0.5")
    with pytest.raises(UserError, match=r"vehicle_sensor\.npz: 'acoustic' is not an array of numpy"):
        vehicle_sensor(root)
