"""Who takes part: cards (what the server may know), clients (a card and private samples) and the federation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from polyfed.data.samples import Samples, concatenate
from polyfed.data.schema import Modality, Task
from polyfed.scenario.holdings import Names
from polyfed.scenario.parts import IntArray

ClientId = int
Split = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True)
class Card:
    """What the server may know of a client.

    ``examples`` counts training samples; ``components`` are the parts of the client's model (filled in by the model).
    """

    id: ClientId
    name: str
    modalities: Names
    tasks: Names
    examples: int
    components: Names = ()

    @property
    def group(self) -> str:
        """Name of the client's modality group, such as ``audio+image``."""
        return "+".join(self.modalities)


Roster = Mapping[ClientId, Card]


class Cards(Mapping[ClientId, Card]):
    """The cards of clients 0, 1, ..., each made when it is first asked for.

    ``modalities``, ``tasks`` and ``examples`` have an entry per client; ``names`` name those clients that are not just
    "client 3".
    """

    def __init__(
        self,
        modalities: Sequence[Names],
        tasks: Sequence[Names],
        examples: IntArray,
        names: Mapping[ClientId, str],
    ) -> None:
        self.ids: Sequence[ClientId] = range(len(examples))
        self._known: Collection[ClientId] = self.ids
        self._modalities, self._tasks, self._examples, self._names = modalities, tasks, examples, names
        self._kinds = tuple(dict.fromkeys(zip(modalities, tasks, strict=True)))
        self._components: Mapping[tuple[Names, Names], Names] = {}
        self._made: dict[ClientId, Card] = {}

    def __getitem__(self, client: ClientId) -> Card:
        card = self._made.get(client)
        if card is None:
            card = self._made[client] = self._card(client)
        return card

    def __iter__(self) -> Iterator[ClientId]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, client: object) -> bool:
        return client in self._known

    def _card(self, client: ClientId) -> Card:
        if client not in self._known:
            raise KeyError(client)
        modalities, tasks = self._modalities[client], self._tasks[client]
        return Card(
            client,
            self._names.get(client) or f"client {client}",
            modalities,
            tasks,
            self._examples.item(client),
            self._components.get((modalities, tasks), ()),
        )

    def only(self, clients: Sequence[ClientId]) -> Cards:
        """Return the cards of some clients."""
        cards = copy(self)
        cards.ids = clients
        cards._known = frozenset(clients)
        kinds = [(self._modalities[client], self._tasks[client]) for client in clients]
        cards._kinds, cards._made = tuple(dict.fromkeys(kinds)), {}
        return cards

    def keeping(self, modalities: Collection[str]) -> Cards:
        """Return the cards with these modalities only, of the clients that hold one of them.

        They count the samples as before; see ``counting``.
        """
        cards = copy(self)
        cards._modalities = [tuple(name for name in held if name in modalities) for held in self._modalities]
        return cards.only([client for client in self.ids if cards._modalities[client]])

    def counting(self, examples: Mapping[ClientId, int]) -> Cards:
        """Return the cards with other numbers of training samples, of the clients that have some."""
        cards = copy(self)
        cards._examples = self._examples.copy()
        cards._examples[list(examples)] = list(examples.values())
        return cards.only([client for client in self.ids if examples[client]])

    @property
    def models(self) -> tuple[Names, ...]:
        """Return the different sets of components among the clients."""
        return tuple(dict.fromkeys(self._components.values()))

    @property
    def mean_examples(self) -> float:
        """Return the mean number of training samples of a client."""
        return float(np.mean(self._examples[np.asarray(self.ids)]))

    def with_components(self, components: Callable[[Names, Names], Names]) -> Cards:
        """Return the cards with the components that a client with such modalities and tasks has."""
        cards = copy(self)
        cards._components = {kind: components(*kind) for kind in self._kinds}
        cards._made = {}
        return cards


class Client:
    """A card and the client's private train, validation and test samples, each made when it is first asked for.

    ``make`` makes the samples of one split.
    """

    __slots__ = ("_made", "_make", "card")

    def __init__(self, card: Card, make: Callable[[Card, Split], Samples]) -> None:
        self.card = card
        self._make = make
        self._made: dict[Split, Samples] = {}

    @staticmethod
    def of(card: Card, train: Samples, validation: Samples, test: Samples) -> Client:
        """Return a client of samples that are there already."""
        return Ready({"train": train, "validation": validation, "test": test}).load(card)

    @property
    def train(self) -> Samples:
        """What the client trains on."""
        return self.samples("train")

    @property
    def validation(self) -> Samples:
        """What choices between models are made on."""
        return self.samples("validation")

    @property
    def test(self) -> Samples:
        """What the final model is judged on."""
        return self.samples("test")

    def samples(self, split: Split) -> Samples:
        """Return the samples of one split."""
        found = self._made.get(split)
        if found is None:
            found = self._made[split] = self._make(self.card, split)
        return found


@dataclass(frozen=True)
class Ready:
    """Samples by split that are there already, whatever the card."""

    splits: Mapping[Split, Samples]

    def load(self, card: Card) -> Client:
        """Return a client with these samples."""
        return Client(card, self.samples)

    def samples(self, card: Card, split: Split) -> Samples:
        """Return the samples of one split."""
        return self.splits[split]


@dataclass(frozen=True)
class Federation:
    """Modalities, tasks and clients. ``load`` makes a client of its card when it is asked for, so many cost little.

    After ``pooled``, ``members`` are the clients whose data the pooled model is judged on. ``server_test`` are the
    test samples of all clients with everything the data has of them: what a server would judge the global model on.
    """

    modalities: Mapping[str, Modality]
    tasks: Mapping[str, Task]
    cards: Cards
    load: Callable[[Card], Client]
    members: Federation | None = None
    server_test: Samples | None = None

    def client(self, client: ClientId) -> Client:
        """Return one client with its samples."""
        return self.load(self.cards[client])

    def clients(self) -> Iterator[Client]:
        """Iterate over the clients in ascending id."""
        return map(self.client, self.cards.ids)

    def with_cards(self, cards: Cards) -> Federation:
        """Return the federation with other cards (the model adds component names)."""
        return replace(self, cards=cards)

    def pooled(self) -> Federation:
        """Return one client that holds everybody's samples: the centralized reference.

        Samples keep the masks of who held what; the clients stay known as ``members``, on which the model is judged.
        """
        splits: dict[Split, Samples] = {
            split: concatenate([client.samples(split) for client in self.clients()]) for split in get_args(Split)
        }
        train = splits["train"]
        cards = Cards([train.modalities], [train.tasks], np.array([len(train)]), {0: "all clients together"})
        return Federation(self.modalities, self.tasks, cards, Ready(splits).load, self, self.server_test)

    def keeping(self, modalities: Collection[str]) -> Federation:
        """Return the federation with these modalities only. Clients that hold none of them, or no sample, stay out.

        All else is as it was: who holds what of which samples, and which are for training.
        """
        kept, test = Kept(self), self.server_test
        cards = self.cards.keeping(modalities)
        examples = {client: len(kept.samples(card, "train")) for client, card in cards.items()}
        return replace(
            self,
            modalities={name: held for name, held in self.modalities.items() if name in modalities},
            cards=cards.counting(examples),
            load=kept.load,
            server_test=None if test is None else restricted(test, [m for m in test.modalities if m in modalities]),
        )


@dataclass(frozen=True)
class Kept:
    """Clients of a federation, with fewer modalities than they hold there; samples that have none of them are gone."""

    federation: Federation

    def load(self, card: Card) -> Client:
        """Return a client, whose samples are made when they are asked for."""
        return Client(card, self.samples)

    def samples(self, card: Card, split: Split) -> Samples:
        """Make a client's samples of one split."""
        return restricted(self.federation.client(card.id).samples(split), card.modalities)


def restricted(samples: Samples, modalities: Sequence[str]) -> Samples:
    """Return the samples that have one of these modalities, with these modalities only."""
    held = [name for name in samples.modalities if name in modalities]
    return samples.only(held, samples.tasks).holding(held)
