from __future__ import annotations

from typing import Any

import pytest
from tests.scenario.small_tables import dataset_of, federation_of, table_of
from tests.worlds import tiny

from polyfed.experiment.world import build_world
from polyfed.registry import Chosen
from polyfed.scenario.skew import label_distances


def test_distances_by_hand() -> None:
    """Everybody: half zeros, half ones. One client has zeros only: |1 − 1/2| + |0 − 1/2| = 1; the other ones only."""
    table = table_of([0] * 10 + [1] * 10)
    federation = federation_of(
        dataset_of(table), 2, partition=Chosen("shards", {"shards_per_client": 1}), validation=0.0, test=0.0
    )
    for client, held in label_distances(federation).items():
        for distances in held.values():
            assert all(value == pytest.approx(1.0) for value in distances.values()), client


@pytest.mark.parametrize("changes", [{}, {"scenario__modalities": {"name": "sample-skew", "base": "all"}}])
def test_distances_are_between_0_and_2_and_of_what_a_client_holds(changes: dict[str, Any]) -> None:
    federation = build_world(tiny(**changes)).federation
    found = label_distances(federation)
    assert set(found) == set(federation.cards)
    for client, held in found.items():
        card = federation.cards[client]
        assert set(held) == set(card.tasks)
        for distances in held.values():
            assert set(distances) == set(card.modalities)
            assert all(0 <= value <= 2 for value in distances.values())


def test_clients_that_hold_the_same_labels_are_at_no_distance() -> None:
    federation = federation_of(dataset_of(table_of([0, 1] * 20)), 1, validation=0.0, test=0.0)
    assert all(
        value == pytest.approx(0)
        for held in label_distances(federation).values()
        for distances in held.values()
        for value in distances.values()
    )
