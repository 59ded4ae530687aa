"""Who takes part: cards (what the server may know), clients (a card and private samples) and the federation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from polyfed.data.samples import Samples, concatenate
from polyfed.data.schema import Modality, Task

ClientId = int


@dataclass(frozen=True)
class Card:
    """What the server may know of a client.

    ``examples`` counts training samples; ``components`` are the parts of the client's model (filled in by the model).
    """

    id: ClientId
    name: str
    modalities: tuple[str, ...]
    tasks: tuple[str, ...]
    examples: int
    components: tuple[str, ...] = ()

    @property
    def group(self) -> str:
        """Name of the client's modality group, such as ``audio+image``."""
        return "+".join(self.modalities)


Roster = Mapping[ClientId, Card]


@dataclass(frozen=True)
class Client:
    """A card and its private train, validation and test samples."""

    card: Card
    train: Samples
    validation: Samples
    test: Samples


@dataclass(frozen=True)
class Federation:
    """Modalities, tasks and clients. ``load`` makes a client when it is asked for, so that many cost little.

    After ``pooled``, ``members`` are the clients whose data the pooled model is judged on.
    """

    modalities: Mapping[str, Modality]
    tasks: Mapping[str, Task]
    cards: Roster
    load: Callable[[ClientId], Client]
    members: Federation | None = None

    def client(self, client: ClientId) -> Client:
        """Return one client with its samples."""
        return self.load(client)

    def clients(self) -> Iterator[Client]:
        """Iterate over the clients in ascending id."""
        return (self.load(client) for client in sorted(self.cards))

    def with_cards(self, cards: Roster) -> Federation:
        """Return the federation with other cards (the model adds component names)."""
        return replace(self, cards=cards, load=lambda k: replace(self.load(k), card=cards[k]))

    def pooled(self) -> Federation:
        """Return one client that holds everybody's samples: the centralized reference.

        Samples keep the masks of who held what; the clients stay known as ``members``, on which the model is judged.
        """
        clients = list(self.clients())
        train = concatenate([client.train for client in clients])
        validation = concatenate([client.validation for client in clients])
        test = concatenate([client.test for client in clients])
        card = Card(0, "all clients together", train.modalities, train.tasks, len(train))
        pool = Client(card, train, validation, test)
        return Federation(self.modalities, self.tasks, {0: card}, lambda _: pool, members=self)
