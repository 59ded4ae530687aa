"""DivFL: a cohort whose updates stand for everybody's (Balakrishnan et al., ICLR 2022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from polyfed.errors import UserError
from polyfed.method.companion import Asked, Watching
from polyfed.method.facility import Draw, enough, lazy_greedy, represented, stochastic_greedy
from polyfed.method.protocol import Clock, Cohort, Conversation, Groups, Reducer, Reply, untrained
from polyfed.method.select import Draft, Everyone, PerRound, Selector, Weigh, check_size, ids_of, whole_cohort
from polyfed.method.updates import Track, blank, distances, remembered
from polyfed.model.architecture import Tensors
from polyfed.rng import numpy_generator
from polyfed.scenario.federation import ClientId, Roster

WHOLE = "whole"
"""The track of updates of all parameters."""

WEIGHTS = "weights"
"""The group of memory that holds how many clients each of the cohort stands for, (clients,)."""

Greedy = Literal["stochastic", "full"]
Shares = Literal["examples", "represented"]
StartEpochs = Annotated[int, Field(ge=1, description="local epochs of the start-up pass of all clients")]
Candidates = Annotated[
    int | None, Field(ge=1, description="clients looked at per step; null: max(clients, a tenth of all)")
]


def drawing(clock: Clock) -> Draw:
    """Return what draws candidates in a round, one set after another."""
    generator = numpy_generator(*clock.key("select"))

    def draw(places: Sequence[int], count: int) -> Sequence[int]:
        chosen = generator.choice(len(places), count, replace=False, shuffle=False)
        return [places[place] for place in chosen.tolist()]

    return draw


@dataclass
class Renewal(Watching):
    """Renews the updates of clients from their replies; ``tracks`` tells which of each client's.

    For tracks in ``gradients`` it is not the update that counts but the group of that name in the reply, times
    ``scale``. An update of which the client says that part was not trained tells nothing.

    New updates are gathered in one block per track: small tensors made one by one among the large temporary ones of the
    replies would keep the room of these from being used again.
    """

    memory: Groups
    asked: Asked
    kinds: Mapping[str, Track]
    tracks: Callable[[ClientId], Sequence[str]]
    gradients: Mapping[str, str] = field(default_factory=dict)
    scale: Callable[[str, ClientId], float] = lambda track, client: 1.0
    new: dict[str, dict[ClientId, Tensor]] = field(default_factory=dict)
    _blocks: dict[str, Tensor] = field(default_factory=dict)

    def add(self, client: ClientId, reply: Reply) -> None:
        """Take one reply in; where nothing was trained, nothing is learnt."""
        self.clients.append(client)
        count = len(self.asked.roster)
        for name in self.tracks(client):
            kind = self.kinds[name]
            update = self._update(name, kind, client, reply)
            if update is None:
                continue
            held = self.new.setdefault(name, {})
            if not held:
                self._blocks[name] = torch.empty(len(self.asked.cohort), kind.kept(count))
            held[client] = self._blocks[name][len(held)].copy_(kind.vector(update, count))

    def _update(self, track: str, kind: Track, client: ClientId, reply: Reply) -> Tensors | None:
        if track in self.gradients:
            factor = self.scale(track, client)
            return {name: value * factor for name, value in reply.tensors[self.gradients[track]].items()}
        before, after = self.asked.parameters, reply.tensors.get("parameters")
        idle = tuple(f"{name}." for name in untrained(reply))
        if idle and any(name.startswith(idle) for name in kind.names):
            return None
        return after and {name: before[name] - after[name] for name in kind.names if name in after}

    def finish(self) -> Groups:
        """Return the renewed memory."""
        memory = self.memory
        for name, vectors in self.new.items():
            memory = remembered(memory, name, vectors, self.asked.roster)
        return memory


@dataclass(frozen=True)
class Diverse(Everyone):
    """``clients`` chosen greedily so that Σ_k min_{i chosen} ‖g_k − g_i‖ is small, g being the clients' last updates.

    Before the first round every client trains ``start_epochs`` for its first update; with ``fresh`` before every
    round. ``greedy`` stochastic looks at ``candidates`` drawn clients per step, full at all. With ``shares``
    represented a reply counts by how many clients it stands for, instead of by its samples.
    """

    clients: int
    greedy: Greedy = "stochastic"
    candidates: int | None = None
    fresh: bool = False
    start_epochs: int = 1
    shares: Shares = "examples"

    def starts(self, clock: Clock) -> int | None:
        """Everybody trains once before there is anything to choose by."""
        return self.start_epochs if clock.round == 1 or self.fresh else None

    def begin(self, initial: Tensors, roster: Roster) -> Groups:
        """Nothing is known yet."""
        return blank(self._tracks(initial), len(roster))

    def _tracks(self, parameters: Tensors) -> dict[str, Track]:
        return {WHOLE: Track.of(parameters, tuple(parameters))}

    def watch(self, held: Groups, asked: Asked) -> Reducer[Groups]:
        """Remember the updates of those who took part."""
        return Renewal(held, asked, self._tracks(asked.parameters), lambda client: (WHOLE,))

    def choose(self, draft: Draft, memory: Groups, roster: Roster, clock: Clock) -> Conversation[tuple[Cohort, Groups]]:
        """Choose the cohort of a round."""
        yield from ()
        check_size(self.clients, roster)
        found = distances(memory, WHOLE)
        if self.greedy == "full":
            chosen = lazy_greedy(found, self.clients)
        else:
            candidates = self.candidates or enough(len(roster), self.clients)
            chosen = stochastic_greedy(found, self.clients, candidates, drawing(clock))
        ids = ids_of(roster)
        if self.shares == "represented":
            stands_for = represented(found, chosen)
            held = {str(ids[place]): torch.tensor(float(n)) for place, n in zip(chosen, stands_for, strict=True)}
            memory = {**memory, WEIGHTS: held}
        return whole_cohort(roster, [ids[place] for place in chosen]), memory

    @property
    def weighs(self) -> bool:
        """Whether replies count by how many clients they stand for."""
        return self.shares == "represented"

    def reweighed(self, memory: Groups, weigh: Weigh) -> Weigh:
        """Weigh replies by how many clients they stand for, if asked to."""
        if self.shares == "examples":
            return weigh
        return lambda card, reply: memory[WEIGHTS][str(card.id)].item() if reply.examples else 0.0


def divfl(
    *,
    clients: PerRound = 10,
    greedy: Annotated[
        Greedy, Field(description="stochastic: of drawn candidates; full: of all clients")
    ] = "stochastic",
    candidates: Candidates = None,
    fresh: Annotated[bool, Field(description="all clients train before every round, not only once")] = False,
    start_epochs: StartEpochs = 1,
    shares: Annotated[
        Shares, Field(description="replies count by samples, or by how many clients they represent")
    ] = "examples",
) -> Selector:
    """DivFL (Balakrishnan et al., ICLR 2022): clients whose last updates are near to everybody's."""
    if greedy == "full" and candidates is not None:
        raise UserError(f"select.candidates: {candidates}, but select.greedy full looks at all clients; leave one out")
    return Diverse(clients, greedy, candidates, fresh, start_epochs, shares)
