"""Selectors: which clients take part in a round, and with which modalities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Protocol

import numpy as np
from pydantic import Field

from polyfed.errors import UserError
from polyfed.method.protocol import Clock, Conversation
from polyfed.registry import Registry
from polyfed.rng import numpy_generator
from polyfed.scenario.federation import ClientId, Roster

Chosen = Mapping[ClientId, frozenset[str]]


class Selector(Protocol):
    """A conversation that answers the chosen clients and their active modalities; it may itself exchange."""

    def __call__(self, roster: Roster, clock: Clock) -> Conversation[Chosen]:
        """Choose the cohort of a round."""
        ...


def everyone() -> Selector:
    """All clients take part in every round, with all their modalities."""

    def choose(roster: Roster, clock: Clock) -> Conversation[Chosen]:
        yield from ()
        return {client: frozenset(card.modalities) for client, card in roster.items()}

    return choose


def uniform(*, clients: Annotated[int, Field(ge=1, description="clients per round")] = 10) -> Selector:
    """A fixed number of clients drawn without replacement, all equally likely (McMahan et al., 2017)."""

    def choose(roster: Roster, clock: Clock) -> Conversation[Chosen]:
        yield from ()
        if clients > len(roster):
            raise UserError(f"select.clients: {clients} clients per round, but the federation has {len(roster)}")
        ids = np.fromiter(roster, dtype=np.int64, count=len(roster))
        drawn = numpy_generator(*clock.key("select")).choice(ids, clients, replace=False, shuffle=False)
        return {client: frozenset(roster[client].modalities) for client in sorted(drawn.tolist())}

    return choose


SELECTORS: Registry[Selector] = Registry("selection")
SELECTORS.add("all", everyone)
SELECTORS.add("random", uniform)
