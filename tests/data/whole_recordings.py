"""A check shared by the sets in which one recording is paired with several images."""

from __future__ import annotations

from polyfed.data.dataset import Dataset
from polyfed.registry import Chosen
from polyfed.scenario.build import build


def check_recordings_are_kept_together(dataset: Dataset, clients: int) -> list[int]:
    """Deal the set by label skew, assert that nobody shares a recording, and return the clients' numbers of rows."""
    federation = build(
        dataset,
        clients=clients,
        partition=Chosen("dirichlet", {"alpha": 1.0}),
        modalities=Chosen("all"),
        tasks=Chosen("all"),
        validation=0.15,
        test=0.2,
        only_tasks=["digit"],
        seed=0,
    )
    sizes, seen = [], set[int]()
    for client in federation.clients():
        sizes.append(len(client.train) + len(client.validation))
        for part in (client.train, client.validation):
            heard = set(part.field("clip").tolist())
            assert heard
            assert not heard & seen
            seen |= heard
        assert abs(len(client.validation) - 0.15 * sizes[-1]) < 0.05 * sizes[-1]
    assert sum(sizes) == len(dataset.train)
    assert seen == set(dataset.train.fields["clip"].tolist())
    return sizes
