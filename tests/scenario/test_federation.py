"""Cards and clients: made when they are asked for, and no sooner."""

from __future__ import annotations

import numpy as np
import pytest
from small_tables import dataset_of, federation_of, table_of

from polyfed.data.samples import Samples
from polyfed.registry import Chosen
from polyfed.scenario.federation import Card, Cards, Client, Split
from polyfed.scenario.modalities import SampleSkew
from polyfed.scenario.store import fingerprint

LABELS = [0, 1, 2] * 20
CARDS = Cards([("image",), ("audio",), ("image",)], [("digit",)] * 3, np.array([5, 6, 7]), {1: "ann"})


def test_cards_are_a_mapping_of_the_clients() -> None:
    assert list(CARDS) == [0, 1, 2]
    assert (len(CARDS), 2 in CARDS, 3 in CARDS, -1 in CARDS, "ann" in CARDS) == (3, True, False, False, False)
    assert dict(CARDS) == {
        0: Card(0, "client 0", ("image",), ("digit",), 5),
        1: Card(1, "ann", ("audio",), ("digit",), 6),
        2: Card(2, "client 2", ("image",), ("digit",), 7),
    }
    assert CARDS[1] is CARDS[1]


@pytest.mark.parametrize("client", [3, -1])
def test_a_client_that_does_not_exist_has_no_card(client: int) -> None:
    with pytest.raises(KeyError, match=str(client)):
        CARDS[client]


def test_components_are_found_once_for_clients_of_one_kind() -> None:
    asked = []

    def components(modalities: tuple[str, ...], tasks: tuple[str, ...]) -> tuple[str, ...]:
        asked.append((modalities, tasks))
        return (*modalities, *tasks)

    named = CARDS.with_components(components)
    assert asked == [(("image",), ("digit",)), (("audio",), ("digit",))]
    assert [card.components for card in named.values()] == [("image", "digit"), ("audio", "digit"), ("image", "digit")]
    assert [card.name for card in named.values()] == ["client 0", "ann", "client 2"]
    assert CARDS[0].components == ()


def test_samples_are_made_when_asked_for_and_once() -> None:
    samples = table_of(LABELS).everything()
    made = []

    def make(card: Card, split: Split) -> Samples:
        made.append((card.id, split))
        return samples.span(0, len(split))

    client = Client(CARDS[2], make)
    assert made == []
    assert len(client.train) == len(client.train) == len("train")
    assert len(client.test) == len("test")
    assert made == [(2, "train"), (2, "test")]


def test_a_client_of_given_samples() -> None:
    parts = [table_of(LABELS).everything().span(0, size) for size in (3, 2, 1)]
    client = Client.of(CARDS[0], *parts)
    assert client.card is CARDS[0]
    assert all(a is b for a, b in zip((client.train, client.validation, client.test), parts, strict=True))


def test_other_cards_come_with_the_clients() -> None:
    federation = federation_of(dataset_of(table_of(LABELS)))
    named = federation.with_cards(federation.cards.with_components(lambda modalities, tasks: ("head.digit",)))
    assert [client.card.components for client in named.clients()] == [("head.digit",)] * 3
    assert fingerprint(named) == fingerprint(federation)


def test_clients_of_one_federation_share_what_they_hold() -> None:
    """A client's rows are a piece of one tensor, so that loading it copies nothing."""
    one, other = list(federation_of(dataset_of(table_of(LABELS))).clients())[:2]
    assert one.train.rows.untyped_storage().data_ptr() == other.train.rows.untyped_storage().data_ptr()
    assert set(one.train.rows.tolist()).isdisjoint(other.train.rows.tolist())


def test_what_the_data_lacks_its_clients_lack() -> None:
    gap = [True, False, True] * 20
    for client in federation_of(dataset_of(table_of(LABELS, present={"image": gap}))).clients():
        for part in (client.train, client.validation, client.test):
            assert part.present["image"].tolist() == [gap[row] for row in part.rows.tolist()]
            assert part.present["audio"].all()


def test_thinned_samples_are_those_the_skew_names_in_the_order_of_the_data() -> None:
    federation = federation_of(
        dataset_of(table_of(LABELS)), 2, modalities=Chosen("sample-skew", {"base": "all"}), validation=0.4, seed=7
    )
    for client in federation.clients():
        kept = sorted(client.train.rows.tolist() + client.validation.rows.tolist())
        masks = SampleSkew(7, 0.5, 0.1).masks(client.card.id, ("audio", "image"), len(kept))
        assert not all(mask.all() for mask in masks.values())
        for part in (client.validation, client.train):
            chosen = [kept.index(row) for row in part.rows.tolist()]
            for name, mask in masks.items():
                assert part.present[name].tolist() == mask[chosen].tolist()
