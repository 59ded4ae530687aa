"""Companions: what travels beside the parameters, and what the server makes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from polyfed.method.protocol import Clock, Cohort, Expects, Groups, Reducer, Reply
from polyfed.model.architecture import Tensors
from polyfed.scenario.federation import Card, ClientId, Roster

INACTIVE = "inactive"
"""The group of an order that holds the components which a client does not train this time."""


@dataclass(frozen=True)
class Asked:
    """Whom the server asked with which parameters; ``starting`` tells the start-up pass from training."""

    parameters: Tensors
    cohort: Cohort
    roster: Roster
    starting: bool = False


class Companion(Protocol):
    """Something the server keeps (named tensors), sends beside the parameters and renews from the replies.

    What is sent and expected is the same for clients with equal modalities, tasks and components.
    """

    @property
    def whole(self) -> bool:
        """Whether clients are also sent the components that they do not train this time (group ``inactive``)."""
        ...

    def starts(self, clock: Clock) -> int | None:
        """Return the local epochs of a start-up pass of all clients before this round; None for no such pass.

        What they train in it is discarded.
        """
        ...

    def begin(self, initial: Tensors, roster: Roster) -> Groups:
        """Return what is kept at first."""
        ...

    def send(self, held: Groups, card: Card, active: frozenset[str]) -> Groups:
        """Return the groups that a client is sent."""
        ...

    def expects(self, held: Groups, parameters: Tensors, card: Card, active: frozenset[str]) -> Expects:
        """Return what a client's reply must hold beside its parameters, given those of the server."""
        ...

    def watch(self, held: Groups, asked: Asked) -> Reducer[Groups]:
        """Return a reducer that is fed the replies and returns what is kept from now on."""
        ...


@dataclass
class Watching:
    """A base for reducers: remembers whose replies were added, in ``clients``."""

    clients: list[ClientId] = field(default_factory=list, init=False)

    @property
    def counted(self) -> tuple[ClientId, ...]:
        """Clients whose replies were added."""
        return tuple(self.clients)


class Unwatched:
    """A reducer that takes no notice of replies."""

    def __init__(self, held: Groups) -> None:
        self._held = held

    @property
    def counted(self) -> tuple[ClientId, ...]:
        """Nobody was counted."""
        return ()

    def add(self, client: ClientId, reply: Reply) -> None:
        """Drop a reply."""

    def finish(self) -> Groups:
        """Return what was kept before."""
        return self._held


@dataclass(frozen=True)
class Unaccompanied:
    """Nothing travels beside the parameters: a base for companions that differ in some respect."""

    @property
    def whole(self) -> bool:
        """Clients are sent what they train."""
        return False

    def starts(self, clock: Clock) -> int | None:
        """There is no start-up pass."""
        return None

    def begin(self, initial: Tensors, roster: Roster) -> Groups:
        """Nothing is kept."""
        return {}

    def send(self, held: Groups, card: Card, active: frozenset[str]) -> Groups:
        """Nothing is sent."""
        return {}

    def expects(self, held: Groups, parameters: Tensors, card: Card, active: frozenset[str]) -> Expects:
        """Nothing is expected."""
        return {}

    def watch(self, held: Groups, asked: Asked) -> Reducer[Groups]:
        """Replies are not looked at."""
        return Unwatched(held)


class Together:
    """Feeds each reply to several reducers; finishes with what each of them found."""

    def __init__(self, *reducers: Reducer[Any]) -> None:
        self._reducers = reducers

    @property
    def counted(self) -> tuple[ClientId, ...]:
        """Clients whose replies one of the reducers counted."""
        return tuple(sorted({client for reducer in self._reducers for client in reducer.counted}))

    def add(self, client: ClientId, reply: Reply) -> None:
        """Take one reply in."""
        for reducer in self._reducers:
            reducer.add(client, reply)

    def finish(self) -> tuple[Any, ...]:
        """Return the reduced values."""
        return tuple(reducer.finish() for reducer in self._reducers)
