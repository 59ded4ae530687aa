"""P21 of DisentAFL's specification, on the federations of its examples: no sample is in two parts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from tests.multimedia import write_mosei, write_vehicle

from polyfed.experiment import config
from polyfed.experiment.world import build_world
from polyfed.scenario.federation import Federation, Split

EXAMPLES = Path(__file__).parents[2] / "examples" / "disentafl"
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def federation_of(name: str, **changes: Any) -> Federation:
    return build_world(config.load(EXAMPLES / f"{name}.yaml", {"model.width": 8, **changes})).federation


def downloaded(name: str, **changes: Any) -> Federation:
    if not Path(os.environ.get("POLYFED_DATA", "nowhere")).is_dir():
        pytest.skip("POLYFED_DATA names no folder of downloaded sets")
    return federation_of(name, **changes)


def check_disjoint(federation: Federation) -> None:
    """Every row of the training table, and of the test table, is in one part of one client."""
    tables: dict[int, list[int]] = {}
    for client in federation.clients():
        for split in SPLITS:
            samples = client.samples(split)
            assert len(samples), (client.card.name, split)
            tables.setdefault(id(samples.table), []).extend(samples.rows.tolist())
    assert sum(map(len, tables.values())) > 0
    for rows in tables.values():
        assert len(set(rows)) == len(rows)


def units(federation: Federation, split: Split, field: str) -> list[set[int]]:
    return [set(client.samples(split).field(field).tolist()) for client in federation.clients()]


def check_units_are_whole(found: list[set[int]]) -> None:
    """No unit is in two of these parts."""
    assert all(found)
    assert sum(map(len, found)) == len(set().union(*found))


@pytest.mark.parametrize(("rho", "clients"), [(1, 36), (0.5, 34), (0, 20)])
def test_the_second_scenario(rho: float, clients: int, tmp_path: Path) -> None:
    write_mosei(tmp_path, rows=480)
    write_vehicle(tmp_path, nodes=23, rows=24)
    federation = federation_of("scenario2", **{"data.root": str(tmp_path), "scenario.rho": rho})
    assert len(federation.cards) == clients
    check_disjoint(federation)
    of_nodes = [client for client in federation.clients() if client.card.tasks == ("vehicle",)]
    nodes = [set(client.train.field("vehicle_node").tolist()) for client in of_nodes]
    check_units_are_whole(nodes)
    assert [set(client.test.field("vehicle_node").tolist()) for client in of_nodes] == nodes


def test_its_stand_in_tears_no_bout_apart() -> None:
    federation = downloaded("uci_har")
    assert len(federation.cards) == 34
    check_disjoint(federation)
    check_units_are_whole([each for split in SPLITS for each in units(federation, split, "bout")])


def test_the_first_scenario_trains_and_tests_on_different_recordings() -> None:
    federation = downloaded("scenario1")
    assert len(federation.cards) == 27
    check_disjoint(federation)
    check_units_are_whole([set().union(*units(federation, split, "av_clip")) - {-1} for split in SPLITS])
