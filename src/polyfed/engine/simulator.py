"""The simulator: holds a method's exchanges with clients that live on this machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polyfed.engine.records import Recorder
from polyfed.engine.screen import Refusal, countable, screen, screen_own
from polyfed.engine.steps import Answer, Assignment, Crew, Jobs
from polyfed.engine.wire import MalformedMessageError, decode_reply, order_bytes, reply_bytes
from polyfed.errors import RunError
from polyfed.method.protocol import Ask, Clock, Fold, Groups, Method, Order, Orders, Reply
from polyfed.model.architecture import Tensors
from polyfed.scenario.federation import ClientId, Federation

Deliver = Callable[[int, ClientId, Any], Any]


def untouched(round_number: int, client: ClientId, reply: Any) -> Any:
    """Deliver every reply as it is."""
    return reply


@dataclass(frozen=True)
class Screening:
    """When a reply is refused and when a round fails.

    ``quorum`` is the share of the clients asked whose replies must be sound; ``largest_growth`` limits how much the
    norm of a component may grow in one exchange.
    """

    quorum: float = 0.5
    largest_growth: float = 100.0


@dataclass
class PersonalStates:
    """Personal groups by client, and which of them changed since the last checkpoint."""

    held: dict[ClientId, Groups] = field(default_factory=dict)
    changed: set[ClientId] = field(default_factory=set)

    def keep(self, client: ClientId, groups: Groups) -> None:
        """Replace a client's personal groups."""
        if groups or self.held.get(client):
            self.held[client] = groups
            self.changed.add(client)

    def take_changed(self) -> dict[ClientId, Groups]:
        """Return what changed and call it saved."""
        changed = {client: self.held[client] for client in sorted(self.changed)}
        self.changed.clear()
        return changed


class Simulator:
    """Has client steps run, screens and counts their replies, and feeds them to the method in ascending client id.

    ``deliver`` stands for the network: it may hand on a reply, its bytes, damage either, or lose it (None).
    """

    def __init__(
        self,
        method: Method[Any],
        federation: Federation,
        crew: Crew,
        arrange: Callable[[Sequence[ClientId]], Jobs],
        recorder: Recorder,
        screening: Screening,
        initial: Tensors,
        personal: PersonalStates,
        deliver: Deliver = untouched,
    ) -> None:
        self.method = method
        self.federation = federation
        self.crew = crew
        self.arrange = arrange
        self.recorder = recorder
        self.screening = screening
        self.initial = initial
        self.personal = personal
        self.deliver = deliver
        self.refused: list[dict[str, Any]] = []
        self.bytes = {"up": 0, "down": 0}
        self.paths: Counter[str] = Counter()

    def personal_of(self, client: ClientId) -> Groups:
        """Return a client's personal groups; a client never asked before gets its first ones from the method."""
        if client in self.personal.held:
            return self.personal.held[client]
        return self.method.enrol(self.initial, self.federation.cards[client])

    def take_paths(self) -> dict[str, int]:
        """Return how many fits were done in which way since this was last asked."""
        paths, self.paths = dict(sorted(self.paths.items())), Counter()
        return paths

    def exchanger(self, clock: Clock) -> Callable[[Ask], Any]:
        """Return what holds the exchanges of one round."""
        number = 0

        def exchange(wanted: Ask) -> Any:
            nonlocal number
            number += 1
            return self._hold(wanted, clock, number - 1)

        return exchange

    def _hold(self, wanted: Ask, clock: Clock, number: int) -> Any:
        sound: dict[ClientId, Reply] = {}
        accepted, refused_before = 0, len(self.refused)
        for answer in self._answers(wanted.orders, clock, number):
            reply = self._received(answer, wanted.orders[answer.client], clock, number)
            if reply is None:
                continue
            accepted += 1
            if isinstance(wanted, Fold):
                wanted.reducer.add(answer.client, reply)
            else:
                sound[answer.client] = reply
        needed = self.screening.quorum * len(wanted.orders)
        if accepted < needed or (wanted.orders and not accepted):
            raise RunError(
                f"round {clock.round}: only {accepted} of {len(wanted.orders)} replies were sound, and the quorum "
                f"(engine.quorum) is {self.screening.quorum:g}. {told(self.refused[refused_before:])}"
            )
        return wanted.reducer.finish() if isinstance(wanted, Fold) else sound

    def _answers(self, orders: Orders, clock: Clock, number: int) -> Iterator[Answer]:
        """Have the steps of all ordered clients run; answers come in ascending client id."""

        def assign(client: ClientId) -> Assignment:
            return Assignment(client, orders[client], self.personal_of(client))

        waiting: dict[ClientId, Answer] = {}
        left = iter(sorted(orders))
        following = next(left, None)
        for done in self.crew.train(self.arrange(list(orders)), assign, clock, number):
            self.paths.update(done.paths)
            waiting |= {answer.client: answer for answer in done.answers}
            while following in waiting:
                yield waiting.pop(following)
                following = next(left, None)

    def _received(self, answer: Answer, order: Order, clock: Clock, number: int) -> Reply | None:
        """Screen, count and record one reply; None if it is lost or refused."""
        card = self.federation.cards[answer.client]
        down = order_bytes(order, card.components)
        self.bytes["down"] += sum(down.values())
        own = screen_own(answer.reply, answer.personal, card)
        if own is None:
            self.personal.keep(answer.client, answer.personal)
        reply, broken = opened(self.deliver(clock.round, answer.client, answer.reply))
        up = reply_bytes(reply, card.components) if countable(reply) else {}
        self.bytes["up"] += sum(up.values())
        refusal = broken or screen(reply, order, card, largest_growth=self.screening.largest_growth) or own
        if refusal is not None:
            self._refuse(answer.client, refusal, clock, {"down": down, "up": up})
            return None
        self.recorder.write(
            {
                "kind": "client",
                "round": clock.round,
                "exchange": number,
                "step": order.step,
                "client": answer.client,
                "modalities": sorted(order.active),
                "examples": reply.examples,
                "numbers": dict(reply.numbers),
                "bytes": {"down": down, "up": up},
                "seconds": round(answer.seconds, 6),
            }
        )
        accepted: Reply = reply
        return accepted

    def _refuse(self, client: ClientId, refusal: Refusal, clock: Clock, counted: dict[str, dict[str, int]]) -> None:
        entry = {
            "round": clock.round,
            "client": client,
            "component": refusal.component,
            "reason": refusal.reason,
        }
        self.refused.append(entry)
        self.recorder.write({"kind": "refused", **entry, "bytes": counted})


def opened(delivered: Any) -> tuple[Any, Refusal | None]:
    """Read what was delivered: nothing (a lost reply), a message in bytes, or a reply handed over in this process."""
    if delivered is None:
        return None, Refusal("reply", "lost on the way")
    if not isinstance(delivered, bytes):
        return delivered, None
    try:
        return decode_reply(delivered), None
    except MalformedMessageError as error:
        return None, Refusal("message", str(error))


TOLD = 3


def told(refused: Sequence[Mapping[str, Any]]) -> str:
    """Tell the first refusals in one line."""
    first = [f"client {entry['client']}: {entry['component']}: {entry['reason']}" for entry in refused[:TOLD]]
    more = [f"and {len(refused) - TOLD} more, which the records name"] if len(refused) > TOLD else []
    return "; ".join(first + more)
