"""Selectors: which clients take part in a round, and with which modalities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Protocol

from pydantic import Field

from polyfed.errors import UserError
from polyfed.method.protocol import ClientStep, Clock, Conversation, Groups
from polyfed.model.architecture import Tensors
from polyfed.registry import Registry
from polyfed.rng import numpy_generator
from polyfed.scenario.federation import Cards, ClientId, Roster

Cohort = Mapping[ClientId, frozenset[str]]
"""The chosen clients and the modalities each is to use."""


class Selector(Protocol):
    """Chooses the cohort of a round. Its memory is named tensors, which the method keeps in its state."""

    @property
    def steps(self) -> Mapping[str, ClientStep]:
        """What it asks of clients itself, such as to measure a loss; names must differ from the method's steps."""
        ...

    def begin(self, initial: Tensors, roster: Roster) -> Groups:
        """Return the first memory."""
        ...

    def choose(
        self, parameters: Tensors, memory: Groups, roster: Roster, clock: Clock
    ) -> Conversation[tuple[Cohort, Groups]]:
        """Choose a cohort for the server's current parameters; may hold exchanges. Returns it and the new memory."""
        ...


@dataclass(frozen=True)
class Everyone:
    """All clients, with all their modalities."""

    @property
    def steps(self) -> Mapping[str, ClientStep]:
        """Nothing is asked."""
        return {}

    def begin(self, initial: Tensors, roster: Roster) -> Groups:
        """Nothing is remembered."""
        return {}

    def choose(
        self, parameters: Tensors, memory: Groups, roster: Roster, clock: Clock
    ) -> Conversation[tuple[Cohort, Groups]]:
        """Choose every client."""
        yield from ()
        return {client: frozenset(card.modalities) for client, card in roster.items()}, memory


@dataclass(frozen=True)
class Uniform(Everyone):
    """``clients`` of them drawn without replacement, all equally likely, with all their modalities."""

    clients: int

    def choose(
        self, parameters: Tensors, memory: Groups, roster: Roster, clock: Clock
    ) -> Conversation[tuple[Cohort, Groups]]:
        """Draw the cohort of a round."""
        yield from ()
        if self.clients > len(roster):
            raise UserError(f"select.clients: {self.clients} clients per round, but the federation has {len(roster)}")
        places = numpy_generator(*clock.key("select")).choice(len(roster), self.clients, replace=False, shuffle=False)
        ids = roster.ids if isinstance(roster, Cards) else list(roster)
        drawn = sorted(ids[place] for place in places.tolist())
        return {client: frozenset(roster[client].modalities) for client in drawn}, memory


def everyone() -> Selector:
    """All clients take part in every round, with all their modalities."""
    return Everyone()


def uniform(*, clients: Annotated[int, Field(ge=1, description="clients per round")] = 10) -> Selector:
    """A fixed number of clients drawn without replacement, all equally likely (McMahan et al., 2017)."""
    return Uniform(clients)


SELECTORS: Registry[Selector] = Registry("selection")
SELECTORS.add("all", everyone)
SELECTORS.add("random", uniform)
