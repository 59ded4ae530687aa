"""Running client steps: a job is some clients whose steps advance together, so that their requests can be stacked."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from polyfed.engine.evaluate import Evaluation, evaluate_client
from polyfed.engine.trainer import Pending, Trainer
from polyfed.errors import unknown
from polyfed.method.protocol import Clock, Fit, Groups, Method, Order, Work
from polyfed.model.architecture import Tensors
from polyfed.scenario.federation import ClientId, Federation, Roster


@dataclass(frozen=True)
class Assignment:
    """What one client is to do, and the personal groups it does it with."""

    client: ClientId
    order: Order
    personal: Groups


FitParts = tuple[Collection[str] | None, Collection[str] | None]


@dataclass(frozen=True)
class Answer:
    """What came of one client's step. ``lost`` tells why there is no reply, and is None where there is one.

    ``fits`` are the components of each model that was trained, and those of them that moved; None: all of the client's.
    """

    client: ClientId
    reply: Any
    personal: Groups
    seconds: float
    lost: str | None = None
    fits: Sequence[FitParts] = ()


@dataclass(frozen=True)
class Done:
    """What came of a job; ``paths`` counts its fits by how they were done."""

    answers: Sequence[Answer]
    paths: Mapping[str, int] = field(default_factory=dict)


Jobs = Sequence[tuple[ClientId, ...]]
Assign = Callable[[ClientId], Assignment]
Judge = Callable[[ClientId], tuple[Tensors, Tensors]]
"""Returns the parameters of a client's model: those the server deploys, and the client's own."""


class Crew(Protocol):
    """Who does the work: this process alone, or several."""

    def train(self, jobs: Jobs, assign: Assign, clock: Clock, exchange: int) -> Iterator[Done]:
        """Run client steps; what comes of each job, in the order of the jobs."""
        ...

    def evaluate(self, clients: Sequence[ClientId], parameters_of: Judge) -> Iterator[Evaluation]:
        """Evaluate clients' models on their own samples, in the order of the clients."""
        ...

    def close(self) -> None:
        """Let go of whatever is held."""
        ...


class Alone:
    """Everything in this process, one job after another."""

    def __init__(self, method: Method[Any], federation: Federation, judged: Federation, trainer: Trainer) -> None:
        self.method = method
        self.federation = federation
        self.judged = judged
        self.trainer = trainer

    def train(self, jobs: Jobs, assign: Assign, clock: Clock, exchange: int) -> Iterator[Done]:
        """Run client steps."""
        return (self.run([assign(client) for client in job], clock, exchange) for job in jobs)

    def run(self, job: Sequence[Assignment], clock: Clock, exchange: int) -> Done:
        """Run the steps of one job; whenever all have a request, the trainer answers them together."""
        started = time.perf_counter()
        works = {one.client: self._begin(one, clock) for one in job}
        pending: dict[ClientId, Pending] = {}
        finished: dict[ClientId, tuple[Any, Groups]] = {}
        answers: dict[ClientId, Any] = dict.fromkeys(works)
        fits: Counter[tuple[ClientId, str]] = Counter()  # not requests: measuring must not change what is drawn
        parts: dict[ClientId, list[FitParts]] = {client: [] for client in works}
        while answers:
            for client, answer in answers.items():
                try:
                    request = works[client].send(answer)
                except StopIteration as end:
                    finished[client] = end.value
                else:
                    purpose = request.purpose if isinstance(request, Fit) else "request"
                    if isinstance(request, Fit):
                        parts[client].append((request.components, request.trains))
                    key = clock.key(f"exchange {exchange} {purpose} {fits[client, purpose]}", client)
                    fits[client, purpose] += isinstance(request, Fit)
                    pending[client] = Pending(self.federation.cards[client], request, key)
            answers = dict(zip(pending, self.trainer.answer(list(pending.values())), strict=True)) if pending else {}
            pending.clear()
        seconds = (time.perf_counter() - started) / len(job)
        paths, self.trainer.paths = self.trainer.paths, Counter()
        answers_of = [Answer(k, *finished[k], seconds, fits=parts[k]) for k in works]
        return Done(answers_of, paths)

    def _begin(self, one: Assignment, clock: Clock) -> Work:
        steps = self.method.steps
        if one.order.step not in steps:
            raise unknown("step", one.order.step, steps, place=f"client {one.client}")
        return steps[one.order.step](one.order, one.personal, self.federation.client(one.client), clock)

    def evaluate(self, clients: Sequence[ClientId], parameters_of: Judge) -> Iterator[Evaluation]:
        """Evaluate clients."""
        for client in clients:
            deployed, personal = parameters_of(client)
            held = self.judged.client(client)
            yield from evaluate_client(held, self.trainer, {**deployed, **personal}, self.judged.tasks)

    def close(self) -> None:
        """There is nothing to let go of."""


def jobs_of(clients: Sequence[ClientId], cards: Roster, trainer: Trainer) -> list[tuple[ClientId, ...]]:
    """Put clients into jobs: one each, or as many of one model as the trainer likes to have at once.

    Jobs come in the order of their first clients, and clients ascend in each. So whoever does the work, the same
    clients are stacked; and once a job is done, all clients before its first one are.
    """
    waiting: dict[tuple[str, ...], list[ClientId]] = {}
    widths: dict[tuple[str, ...], int] = {}
    jobs: list[tuple[ClientId, ...]] = []
    for client in sorted(clients):
        card = cards[client]
        parts = card.components
        if parts not in widths:
            widths[parts] = trainer.width(card)
        group = waiting.setdefault(parts, [])
        group.append(client)
        if len(group) >= widths[parts]:
            jobs.append(tuple(group))
            group.clear()
    jobs.extend(tuple(group) for group in waiting.values() if group)
    return sorted(jobs)
