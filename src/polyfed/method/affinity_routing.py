"""Routing by affinity: a method whose clients leave the knowledge types in which they disagree with the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from polyfed.method.affinity import MEMBER, Affinity, Standing, cosines, judged
from polyfed.method.averaging import Averaging, AveragingState
from polyfed.method.companion import Watching
from polyfed.method.protocol import (
    MOST_NAMED,
    Ask,
    ClientStep,
    Clock,
    Conversation,
    Expects,
    Fold,
    Groups,
    Note,
    Order,
    Reducer,
    Reply,
    Request,
    Work,
    ask,
    expected,
    note,
)
from polyfed.model.architecture import Tensors
from polyfed.scenario.federation import Card, Client, ClientId, Roster

PARAMETERS = "parameters"

RETEST = "retest"
"""The group of the members' values of types that a client left: in an order to be tried, in a reply after training."""

KEPT = "kept"
"""The personal group of a client's own values, as last trained, of the types which it may be told to leave."""

SETTLE = "settle"
"""The step in which clients are told which types they leave and to which they return."""

KEEP, LEAVE, RETURN = "keep.", "leave.", "return."
"""What the numbers of an order begin with that name a type."""

Standings = Mapping[ClientId, Mapping[str, Standing]]


@dataclass(frozen=True)
class RoutedState:
    """The state of the averaging, and by client and type who stands how with the others.

    A client is a member, with the first standing, of every type that is not mentioned.
    """

    averaging: AveragingState
    standings: Standings = field(default_factory=dict)

    @property
    def parameters(self) -> Tensors:
        """The server's parameters."""
        return self.averaging.parameters

    def away(self, client: ClientId) -> list[str]:
        """Name the types that a client has left."""
        return [name for name, standing in self.standings.get(client, {}).items() if standing.away is not None]


@dataclass
class Remembering(Watching):
    """Hands replies to another reducer, and keeps them."""

    reducer: Reducer[Any]
    replies: dict[ClientId, Reply]

    def add(self, client: ClientId, reply: Reply) -> None:
        """Take one reply in."""
        self.clients.append(client)
        self.replies[client] = reply
        self.reducer.add(client, reply)

    def finish(self) -> Any:
        """Return what the other reducer found."""
        return self.reducer.finish()


def as_they_are(groups: Groups) -> Groups:
    """Return what arrives where nothing is changed on the way."""
    return groups


@dataclass(frozen=True)
class Routed:
    """Another averaging, of whose knowledge types clients may leave some: they keep their own, which do not travel.

    ``types`` are the components of each type, ``arriving`` tells what clients receive when parameters are sent. Those
    who take part in a type are compared by the cosines of their updates, as ``rule`` says. Who leaves keeps its own
    values as it last trained them. Who leaves and who returns is told so at the end of the round, in an exchange with
    all who replied.
    """

    averaging: Averaging
    types: Mapping[str, tuple[str, ...]]
    rule: Affinity = field(default_factory=Affinity)
    arriving: Callable[[Groups], Groups] = as_they_are

    @property
    def steps(self) -> Mapping[str, ClientStep]:
        """What a client is asked to do: what the averaging asks, and to settle what it shares."""
        return {**self.averaging.steps, "train": self.train, SETTLE: self.settle}

    def begin(self, initial: Tensors, roster: Roster) -> RoutedState:
        """Start with everybody a member of all that it owns."""
        return RoutedState(self.averaging.begin(initial, roster))

    def enrol(self, initial: Tensors, card: Card) -> Groups:
        """Give a client first values of what it does not share."""
        return self.averaging.enrol(initial, card)

    def deploy(self, state: RoutedState, card: Card) -> Tensors:
        """Return the shared parameters of a client's components, but for the types that it has left."""
        return without(self.averaging.deploy(state.averaging, card), self._beginnings(state.away(card.id)))

    def _beginnings(self, types: Collection[str]) -> tuple[str, ...]:
        """Return what the names of these types' parameters begin with."""
        return tuple(f"{component}." for name in types for component in self.types[name])

    # ------------------------------------------------------------------------------------------ server

    def round(self, state: RoutedState, roster: Roster, clock: Clock) -> Conversation[RoutedState]:
        """Hold the averaging's exchanges without what clients have left; judge; tell who leaves and who returns."""
        conversation = self.averaging.round(state.averaging, roster, clock)
        replies: dict[ClientId, Reply] = {}
        answer: Any = None
        while True:
            try:
                wanted = conversation.send(answer)
            except StopIteration as end:
                averaging: AveragingState = end.value
                break
            answer = yield self._routed(wanted, state, clock, replies) if isinstance(wanted, Ask) else wanted
        standings, found = self._judged(state, roster, clock, replies)
        after = RoutedState(averaging, standings)
        yield from note(noted(sorted(self.types), after, found))
        told = {client: changes(state.away(client), after.away(client)) for client in sorted(replies)}
        if any(told.values()):
            orders = {k: Order(SETTLE, frozenset(roster[k].modalities), numbers=held) for k, held in told.items()}
            yield from ask(orders, aside=True)
        return after

    def _routed(self, wanted: Ask, state: RoutedState, clock: Clock, replies: dict[ClientId, Reply]) -> Ask:
        """Take out of an exchange what clients have left; replies after training are kept for the judgement."""
        training = isinstance(wanted, Fold) and not wanted.aside
        alike: dict[tuple[Any, ...], Order] = {}
        orders = {}
        for client, order in wanted.orders.items():
            away, held = state.away(client), state.standings.get(client, {})
            due = [name for name in away if training and self.rule.due(held[name], clock.round)]
            risks = [name for name in self.types if training and self.rule.may_leave(held.get(name, MEMBER))]
            key = id(order), *map(tuple, (away, due, risks))
            if key not in alike:
                alike[key] = self._order(order, away, due, risks)
            orders[client] = alike[key]
        if isinstance(wanted, Fold) and training:
            return replace(wanted, orders=orders, reducer=Remembering(wanted.reducer, replies))
        return replace(wanted, orders=orders)

    def _order(self, order: Order, away: Collection[str], due: Collection[str], risks: Collection[str]) -> Order:
        """Take out of one order what its client has left; add what it is to try and name what it is to keep."""
        sent = order.tensors.get(PARAMETERS, {})
        keep = {KEEP + name: 1.0 for name in risks if within(sent, self._beginnings([name]))}
        if keep:
            order = replace(order, numbers={**order.numbers, **keep})
        if not away:
            return order
        left = self._beginnings(away)
        tensors: dict[str, Tensors] = {group: without(held, left) for group, held in order.tensors.items()}
        expects: Expects = {group: without(held, left) for group, held in order.expects.items()}
        tried = within(sent, self._beginnings(due))
        if tried:
            tensors[RETEST] = self.arriving({PARAMETERS: tried})[PARAMETERS]
            expects = {**expects, **expected({RETEST: tried})}
        return replace(order, tensors=tensors, expects=expects)

    def _judged(
        self, state: RoutedState, roster: Roster, clock: Clock, replies: Mapping[ClientId, Reply]
    ) -> tuple[Standings, dict[str, list[float]]]:
        """Return everybody's standings after a round, and the members' cosines by type."""
        weights = {client: self.averaging.weigh(roster[client], reply) for client, reply in replies.items()}
        standings = {client: dict(held) for client, held in state.standings.items()}
        seen: dict[str, list[float]] = {}
        for name in self.types:
            sent = within(state.parameters, self._beginnings([name]))
            group = {client: RETEST if name in state.away(client) else PARAMETERS for client in replies}
            updates = {
                client: reply.tensors[group[client]]
                for client, reply in replies.items()
                if sent and sent.keys() <= reply.tensors.get(group[client], {}).keys() and weights[client] > 0
            }
            if not updates:
                continue
            members = {client: weights[client] for client in updates if group[client] == PARAMETERS}
            found = cosines(updates, members, self.arriving({PARAMETERS: sent})[PARAMETERS])
            before = {client: state.standings.get(client, {}).get(name, MEMBER) for client in updates}
            for client, standing in judged(self.rule, before, found, clock.round).items():
                if standing != MEMBER or before[client] != MEMBER:
                    standings.setdefault(client, {})[name] = standing
            seen[name] = [found[client] for client in sorted(members) if client in found]
        return standings, seen

    # ------------------------------------------------------------------------------------------ client

    def train(self, order: Order, personal: Groups, client: Client, clock: Clock) -> Work:
        """Client step: train; keep what was trained of the types named for it; try what the order brings to try."""
        reply, after = yield from self.averaging.train(order, personal, client, clock)
        if RETEST in order.tensors:
            tried = yield from self._tried(order, personal, client, clock)
            reply = replace(reply, tensors={**reply.tensors, RETEST: tried})
        kept = within(reply.tensors[PARAMETERS], self._beginnings(named(order, KEEP)))
        if kept or KEPT in after:
            after = {
                **{group: held for group, held in after.items() if group != KEPT},
                **({KEPT: kept} if kept else {}),
            }
        return reply, after

    def _tried(self, order: Order, personal: Groups, client: Client, clock: Clock) -> Generator[Request, Any, Tensors]:
        """Train a copy of the model with the members' values for one epoch; return these and forget the rest."""
        tried = order.tensors[RETEST]
        trial = replace(order, tensors={**order.tensors, PARAMETERS: {**order.tensors[PARAMETERS], **tried}})
        own = {name: value for name, value in personal[PARAMETERS].items() if name not in tried}
        context = self.averaging.context
        context = replace(context, recipe=replace(context.recipe, epochs=1, least_epochs=None))
        once = replace(self.averaging, context=context)
        reply, _ = yield from once.train(trial, {**personal, PARAMETERS: own}, client, clock)
        return {name: reply.tensors[PARAMETERS][name] for name in tried}

    def settle(self, order: Order, personal: Groups, client: Client, clock: Clock) -> Work:
        """Client step: what was kept of a type to leave becomes the client's own; what it returns to, it gives up."""
        yield from ()
        if not order.numbers:
            return Reply(0), personal
        left = within(personal.get(KEPT, {}), self._beginnings(named(order, LEAVE)))
        own = without(personal.get(PARAMETERS, {}), self._beginnings(named(order, RETURN)))
        others = {group: held for group, held in personal.items() if group != KEPT}
        return Reply(0), {**others, PARAMETERS: {**own, **left}}


# ---------------------------------------------------------------------------------------------- names


def within(held: Mapping[str, Any], beginnings: tuple[str, ...]) -> dict[str, Any]:
    """Return what has a name that begins so."""
    return {name: value for name, value in held.items() if name.startswith(beginnings)}


def without(held: Mapping[str, Any], beginnings: tuple[str, ...]) -> dict[str, Any]:
    """Return what has no name that begins so."""
    return {name: value for name, value in held.items() if not name.startswith(beginnings)}


def named(order: Order, beginning: str) -> list[str]:
    """Name the types that an order's numbers name with this beginning."""
    return [number.removeprefix(beginning) for number in order.numbers if number.startswith(beginning)]


def changes(before: Collection[str], after: Collection[str]) -> dict[str, float]:
    """Return the numbers that tell a client which types it has left and to which it has returned."""
    left = {LEAVE + name: 1.0 for name in after if name not in before}
    return {**left, **{RETURN + name: 1.0 for name in before if name not in after}}


def noted(types: Collection[str], state: RoutedState, found: Mapping[str, list[float]]) -> Note:
    """Note how many clients have left each type, and the mean cosine of its members; of the first types by name."""
    counts = Counter(name for client in state.standings for name in state.away(client))
    shown = list(types)[:MOST_NAMED]
    means = {f"cosine.{name}": fmean(found[name]) for name in shown if found.get(name)}
    return Note({**{f"left.{name}": float(counts[name]) for name in shown}, **means})
