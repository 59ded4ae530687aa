"""The simulator: holds a method's exchanges with clients that live on this machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polyfed.engine.agreement import Updates
from polyfed.engine.checklist import Checklist, Norms
from polyfed.engine.model_sizes import MOST_MODELS, model_sizes
from polyfed.engine.records import Recorder
from polyfed.engine.screen import Refusal, countable, screen, screen_own
from polyfed.engine.steps import Answer, Assignment, Crew, Jobs
from polyfed.engine.wire import MalformedMessageError, decode_reply, reply_bytes
from polyfed.errors import RunError
from polyfed.method.protocol import NOTES, Ask, Clock, Fold, Groups, Method, Order, Reply
from polyfed.model.architecture import Tensors
from polyfed.scenario.federation import ClientId, Federation

LARGEST_OVERHEAD = 1.5

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


def owned(groups: Groups) -> Groups:
    """Return groups that hold no more memory than they are worth.

    Tensors that came out of a stack of clients, or beside a large reply, would keep all of it alive: they are copied.
    """
    tensors = [value for held in groups.values() for value in held.values()]
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in tensors}
    if sum(storages.values()) <= LARGEST_OVERHEAD * sum(value.nbytes for value in tensors):
        return groups
    return {group: {name: value.clone() for name, value in held.items()} for group, held in groups.items()}


@dataclass
class PersonalStates:
    """Personal groups by client, and which of them changed since the last checkpoint."""

    held: dict[ClientId, Groups] = field(default_factory=dict)
    changed: set[ClientId] = field(default_factory=set)

    def keep(self, client: ClientId, groups: Groups) -> None:
        """Replace a client's personal groups."""
        before = self.held.get(client)
        if groups is not before and (groups or before):
            self.held[client] = owned(groups)
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
        self.diagnose = False
        self.refused: list[dict[str, Any]] = []
        self.bytes = {"up": 0, "down": 0}
        self.paths: Counter[str] = Counter()
        self.models: list[dict[str, Any]] = []
        self._modelled: set[tuple[str, tuple[str, ...]]] = set()
        self._checklists: dict[Hashable, tuple[Order, Checklist]] = {}
        self._updates: Updates | None = None

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
        """Return what holds the exchanges of one round.

        They are numbered by step: what a client draws to train must not depend on what else it was asked before.
        """
        held: Counter[str] = Counter()

        def exchange(wanted: Ask) -> Any:
            step = next((order.step for order in wanted.orders.values()), "")
            held[step] += 1
            return self._hold(wanted, clock, held[step] - 1)

        return exchange

    def _hold(self, wanted: Ask, clock: Clock, number: int) -> Any:
        sound: dict[ClientId, Reply] = {}
        accepted, refused_before = 0, len(self.refused)
        self._checklists.clear()
        self._updates = Updates(wanted.reading) if self.diagnose else None
        for answer, norms in self._answers(wanted, clock, number):
            reply = self._received(answer, norms, wanted, clock, number)
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
        self._record_agreement(wanted, clock, number)
        return wanted.reducer.finish() if isinstance(wanted, Fold) else sound

    def _record_agreement(self, wanted: Ask, clock: Clock, number: int) -> None:
        """Record how far the updates agree; what only prepares the round trains nothing that is kept."""
        if self._updates is None or wanted.aside or not wanted.orders:
            return
        step = next(iter(wanted.orders.values())).step
        line = self._updates.record(clock.round, number, step)
        if line is not None:
            self.recorder.write(line)

    def _answers(self, wanted: Ask, clock: Clock, number: int) -> Iterator[tuple[Answer, Norms | None]]:
        """Have the steps of all ordered clients run; answers come in ascending client id, with norms if known."""
        orders = wanted.orders

        def assign(client: ClientId) -> Assignment:
            return Assignment(client, orders[client], self.personal_of(client))

        waiting: dict[ClientId, tuple[Answer, Norms | None]] = {}
        left = iter(sorted(orders))
        following = next(left, None)
        for done in self.crew.train(self.arrange(list(orders)), assign, clock, number):
            self.paths.update(done.paths)
            waiting |= self._weighed(done.answers, wanted)
            while following in waiting:
                yield waiting.pop(following)
                following = next(left, None)

    def _weighed(self, answers: Sequence[Answer], wanted: Ask) -> dict[ClientId, tuple[Answer, Norms | None]]:
        """Compute the norms of the replies of one job together, where they were asked for alike."""
        alike: dict[Checklist, list[Answer]] = {}
        for answer in answers:
            alike.setdefault(self._checklist(answer.client, wanted), []).append(answer)
        found: dict[ClientId, tuple[Answer, Norms | None]] = {}
        for checklist, held in alike.items():
            norms = checklist.norms_of_many([answer.reply for answer in held])
            for place, answer in enumerate(held):
                found[answer.client] = answer, None if norms is None else norms[place]
        return found

    def _checklist(self, client: ClientId, wanted: Ask) -> Checklist:
        """Return the checklist of a client's order; clients that are sent the same things share one."""
        card, order = self.federation.cards[client], wanted.orders[client]
        parts = (order.tensors, order.expects, order.numbers, order.needs)
        key = (order.step, order.active, *map(id, parts), card.components)
        if key not in self._checklists:
            # The order is kept, so that no other one can come to have its parts' identities.
            self._checklists[key] = order, Checklist(order, card, self.screening.largest_growth, wanted.reading)
        return self._checklists[key][1]

    def _received(self, answer: Answer, norms: Norms | None, wanted: Ask, clock: Clock, number: int) -> Reply | None:
        """Screen, count and record one reply; None if it is lost or refused."""
        order = wanted.orders[answer.client]
        card, checklist = self.federation.cards[answer.client], self._checklist(answer.client, wanted)
        self._note_model(answer, order)
        self.bytes["down"] += checklist.down_total
        reply, broken = opened(answer, self.deliver(clock.round, answer.client, answer.reply))
        passes = checklist.passes(reply, card, norms if reply is answer.reply else None)
        # A reply that arrived as it left and passes has sound numbers; then only personal tensors may be amiss.
        certain = passes and reply is answer.reply and not answer.personal
        own = None if certain else screen_own(answer.reply, answer.personal, card)
        if own is None:
            self.personal.keep(answer.client, answer.personal)
        if own is None and passes:
            up, total = checklist.up(reply)
        else:
            up = reply_bytes(reply, card.components) if countable(reply) else {}
            total = sum(up.values())
            growth = self.screening.largest_growth
            refusal = broken or screen(reply, order, card, largest_growth=growth, reading=wanted.reading) or own
            if refusal is not None:
                self.bytes["up"] += total
                self._refuse(answer.client, refusal, clock, {"down": checklist.down, "up": up})
                return None
        self.bytes["up"] += total
        self.recorder.write(
            {
                "kind": "client",
                "round": clock.round,
                "exchange": number,
                "step": order.step,
                **({"aside": True} if wanted.aside else {}),
                "client": answer.client,
                "modalities": sorted(order.active),
                "examples": reply.examples,
                "numbers": dict(reply.numbers),
                "bytes": {"down": checklist.down, "up": up},
                "seconds": round(answer.seconds, 6),
                **noted(answer.personal),
                **({} if self._updates is None else {"divergence": self._updates.add(reply, order, card)}),
            }
        )
        accepted: Reply = reply
        return accepted

    def _note_model(self, answer: Answer, order: Order) -> None:
        """Keep how large the model of a step is, of the first client of each kind."""
        cards = self.federation.cards
        kind = order.step, cards[answer.client].components
        if not answer.fits or kind in self._modelled or len(self.models) >= MOST_MODELS:
            return
        self._modelled.add(kind)
        if kind not in {(held["step"], cards[held["client"]].components) for held in self.models}:
            self.models.append(model_sizes(order, cards[answer.client], answer.fits, self.initial))

    def _refuse(self, client: ClientId, refusal: Refusal, clock: Clock, counted: dict[str, dict[str, int]]) -> None:
        entry = {
            "round": clock.round,
            "client": client,
            "component": refusal.component,
            "reason": refusal.reason,
        }
        self.refused.append(entry)
        self.recorder.write({"kind": "refused", **entry, "bytes": counted})


def opened(answer: Answer, delivered: Any) -> tuple[Any, Refusal | None]:
    """Read what was delivered: nothing (a lost reply), a message in bytes, or a reply handed over in this process."""
    if delivered is None:
        return None, Refusal("reply", answer.lost or "lost on the way")
    if not isinstance(delivered, bytes):
        return delivered, None
    try:
        return decode_reply(delivered), None
    except MalformedMessageError as error:
        return None, Refusal("message", str(error))


def noted(personal: Groups) -> dict[str, dict[str, float]]:
    """Return what a client noted for the records, if it did: the tensors () of that personal group."""
    written = {name: value.item() for name, value in personal.get(NOTES, {}).items() if not value.dim()}
    return {NOTES: written} if written else {}


TOLD = 3


def told(refused: Sequence[Mapping[str, Any]]) -> str:
    """Tell the first refusals in one line."""
    first = [f"client {entry['client']}: {entry['component']}: {entry['reason']}" for entry in refused[:TOLD]]
    more = [f"and {len(refused) - TOLD} more, which the records name"] if len(refused) > TOLD else []
    return "; ".join(first + more)
