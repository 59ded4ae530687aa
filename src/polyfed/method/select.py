"""Selectors: which clients take part in a round, and with which modalities."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

from pydantic import Field

from polyfed.data.schema import Task
from polyfed.errors import UserError
from polyfed.method.companion import Companion, Unaccompanied
from polyfed.method.protocol import ClientStep, Clock, Cohort, Conversation, Groups, Order, Reply
from polyfed.method.training import Local
from polyfed.rng import numpy_generator
from polyfed.scenario.federation import Card, Cards, ClientId, Roster

Draft = Callable[[Cohort], dict[ClientId, Order]]
"""Makes a cohort's orders to train; a selector that wants something else of clients changes their step."""


Weigh = Callable[[Card, Reply], float]
"""The weight of a reply."""


class Selector(Companion, Protocol):
    """Chooses the cohort of a round. What it remembers is named tensors, which the method keeps in its state."""

    @property
    def steps(self) -> Mapping[str, ClientStep]:
        """What it asks of clients itself, such as to measure a loss; names must differ from the method's steps."""
        ...

    @property
    def weighs(self) -> bool:
        """Whether it has replies count otherwise than by samples."""
        ...

    def check(self, roster: Roster, tasks: Mapping[str, Task]) -> None:
        """Raise UserError if it cannot choose among these clients."""
        ...

    def around(self, local: Local, tasks: Mapping[str, Task]) -> Local:
        """Return local training that also reports what the selector wants to know."""
        ...

    def reweighed(self, memory: Groups, weigh: Weigh) -> Weigh:
        """Return the weights of the cohort's replies, given those that the method would have used."""
        ...

    def choose(self, draft: Draft, memory: Groups, roster: Roster, clock: Clock) -> Conversation[tuple[Cohort, Groups]]:
        """Choose a cohort; may hold exchanges. Returns it and the new memory."""
        ...


@dataclass(frozen=True)
class Everyone(Unaccompanied):
    """All clients, with all their modalities: also a base for other selectors."""

    @property
    def steps(self) -> Mapping[str, ClientStep]:
        """Nothing is asked."""
        return {}

    @property
    def weighs(self) -> bool:
        """Replies count as the method says."""
        return False

    def check(self, roster: Roster, tasks: Mapping[str, Task]) -> None:
        """Anybody will do."""

    def around(self, local: Local, tasks: Mapping[str, Task]) -> Local:
        """Nothing else is reported."""
        return local

    def reweighed(self, memory: Groups, weigh: Weigh) -> Weigh:
        """Replies count as the method says."""
        return weigh

    def choose(self, draft: Draft, memory: Groups, roster: Roster, clock: Clock) -> Conversation[tuple[Cohort, Groups]]:
        """Choose every client."""
        yield from ()
        return whole_cohort(roster, roster), memory


def whole_cohort(roster: Roster, clients: Iterable[ClientId]) -> Cohort:
    """Return these clients, in ascending order, each with all its modalities."""
    return {client: frozenset(roster[client].modalities) for client in sorted(clients)}


def ids_of(roster: Roster) -> Sequence[ClientId]:
    """Return all client ids, ascending."""
    return roster.ids if isinstance(roster, Cards) else sorted(roster)


def check_size(clients: int, roster: Roster) -> None:
    """Raise UserError if a cohort is to be larger than the federation."""
    if clients > len(roster):
        raise UserError(f"select.clients: {clients} clients per round, but the federation has {len(roster)}")


@dataclass(frozen=True)
class Uniform(Everyone):
    """``clients`` of them drawn without replacement, all equally likely, with all their modalities."""

    clients: int

    def choose(self, draft: Draft, memory: Groups, roster: Roster, clock: Clock) -> Conversation[tuple[Cohort, Groups]]:
        """Draw the cohort of a round."""
        yield from ()
        check_size(self.clients, roster)
        places = numpy_generator(*clock.key("select")).choice(len(roster), self.clients, replace=False, shuffle=False)
        ids = ids_of(roster)
        return whole_cohort(roster, [ids[place] for place in places.tolist()]), memory


@dataclass(frozen=True)
class InTurn(Everyone):
    """``clients`` of them in turn, by id, with all their modalities; after the last one comes the first again.

    Nothing is remembered: round r begins after the (r − 1) · ``clients`` places of the rounds before it.
    """

    clients: int

    def choose(self, draft: Draft, memory: Groups, roster: Roster, clock: Clock) -> Conversation[tuple[Cohort, Groups]]:
        """Take those whose turn it is."""
        yield from ()
        check_size(self.clients, roster)
        ids, first = ids_of(roster), (clock.round - 1) * self.clients
        return whole_cohort(roster, [ids[(first + place) % len(ids)] for place in range(self.clients)]), memory


PerRound = Annotated[int, Field(ge=1, description="clients per round")]


def everyone() -> Selector:
    """All clients take part in every round, with all their modalities."""
    return Everyone()


def uniform(*, clients: PerRound = 10) -> Selector:
    """A fixed number of clients drawn without replacement, all equally likely (McMahan et al., 2017)."""
    return Uniform(clients)


def round_robin(*, clients: PerRound = 10) -> Selector:
    """A fixed number of clients in turn, by id; after the last one comes the first again."""
    return InTurn(clients)
