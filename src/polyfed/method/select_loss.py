"""Power-of-Choice: of some candidates, those with the largest training losses (Cho et al., arXiv:2010.01243)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from polyfed.data.samples import Samples
from polyfed.errors import UserError
from polyfed.method.companion import Asked, Unwatched, Watching
from polyfed.method.objective import supervised
from polyfed.method.protocol import (
    ClientStep,
    Clock,
    Cohort,
    Conversation,
    Groups,
    Measure,
    Order,
    Reducer,
    Reply,
    Work,
    ask,
    join,
    measure,
)
from polyfed.method.select import Draft, Everyone, PerRound, Selector, check_size, ids_of, whole_cohort
from polyfed.model.architecture import Tensors
from polyfed.rng import numpy_generator
from polyfed.scenario.federation import Card, Client, ClientId, Roster

JUDGE = "judge loss"
"""The step in which a candidate measures the loss of the model it is sent."""

LOSS = "loss"
"""The number of its reply."""

LOSSES, LAST = "losses", "last"
"""The group and the tensor of memory: (clients,) each one's loss when it last took part, infinite if never."""

USUAL = 10
"""Candidates unless told otherwise."""

Estimate = Literal["whole", "batch", "last"]
Drawn = Literal["examples", "uniform"]


@dataclass(frozen=True)
class LargestLoss(Everyone):
    """Of drawn candidates the ``clients`` with the largest losses take part; equal ones are drawn among.

    A loss is the sum over the client's tasks of their mean. ``estimate`` whole has candidates measure it on all their
    training samples, batch on ``batch_size`` of them, drawn anew (cpow-d); with last nobody is asked: it is that
    of the client's last training, infinite if it has never taken part (rpow-d). Candidates whose answer is lost come
    last. ``draw`` examples draws candidates one after another with chances proportional to their samples.
    """

    clients: int
    candidates: int | None = None
    draw: Drawn = "examples"
    estimate: Estimate = "whole"
    batch_size: int = 32

    @property
    def steps(self) -> Mapping[str, ClientStep]:
        """Candidates measure a loss, unless past ones are used."""
        return {} if self.estimate == "last" else {JUDGE: self.judge}

    def begin(self, initial: Tensors, roster: Roster) -> Groups:
        """No loss is known yet; raises UserError for a number of candidates that cannot be."""
        check_size(self.clients, roster)
        if self.candidates is not None and not self.clients <= self.candidates <= len(roster):
            raise UserError(
                f"select.candidates: {self.candidates} candidates; choose from {self.clients} (select.clients, the "
                f"clients per round) to {len(roster)} (the federation)"
            )
        return {LOSSES: {LAST: torch.full((len(roster),), math.inf, dtype=torch.float64)}} if not self.steps else {}

    def watch(self, held: Groups, asked: Asked) -> Reducer[Groups]:
        """Remember the losses of those who took part, if they are used."""
        return Unwatched(held) if self.steps or asked.starting else LastLosses(held, asked)

    def judge(self, order: Order, personal: Groups, client: Client, clock: Clock) -> Work:
        """Client step: measure the loss of the received model on training samples."""
        parameters = join(order.tensors["parameters"], personal.get("parameters", {}), client=client.card.id)
        data = client.train.holding(order.active)
        if self.estimate == "batch":
            data = mini_batch(data, self.batch_size, clock.generator("judge", client.card.id))
        numbers = (yield from measure(Measure(supervised, parameters, data, order.active))) if len(data) else {}
        return Reply(len(data), {}, {LOSS: loss_of(client.card, numbers) or 0.0}), personal

    def choose(self, draft: Draft, memory: Groups, roster: Roster, clock: Clock) -> Conversation[tuple[Cohort, Groups]]:
        """Draw candidates, learn their losses, choose the cohort."""
        generator, ids = numpy_generator(*clock.key("select")), ids_of(roster)
        count = self.candidates or min(len(ids), max(USUAL, self.clients))
        sizes = [roster[client].examples if self.draw == "examples" else 1 for client in ids]
        places = successive(generator, sizes, count)
        if self.estimate == "last":
            losses = memory[LOSSES][LAST].numpy()[places]
        else:
            replies = yield from ask(judged(draft(whole_cohort(roster, [ids[place] for place in places]))), aside=True)
            answers = (replies.get(ids[place]) for place in places)
            losses = np.array([-math.inf if reply is None else reply.numbers[LOSS] for reply in answers])
        order = np.lexsort((generator.random(count), -losses))
        return whole_cohort(roster, [ids[places[number]] for number in order[: self.clients].tolist()]), memory


def successive(generator: np.random.Generator, sizes: Sequence[int], count: int) -> list[int]:
    """Draw places one after another, each with a chance proportional to its size among those that are left.

    If every place waits for an exponential time of rate ``size``, those that come first are distributed just so
    (Efraimidis and Spirakis, 2006). Places of size zero come last, in random order.
    """
    rates, waits = np.asarray(sizes, dtype=np.float64), generator.exponential(size=len(sizes))
    times = np.divide(waits, rates, out=np.full(len(waits), math.inf), where=rates > 0)
    found: list[int] = np.lexsort((waits, times))[:count].tolist()
    return found


def judged(orders: Mapping[ClientId, Order]) -> dict[ClientId, Order]:
    """Make orders to train orders to judge: they carry the parameters alone, and a loss comes back."""
    alike = {
        id(order): Order(
            JUDGE, order.active, {"parameters": order.tensors["parameters"]}, needs={LOSS: (0.0, math.inf)}
        )
        for order in orders.values()
    }
    return {client: alike[id(order)] for client, order in orders.items()}


def mini_batch(data: Samples, size: int, generator: torch.Generator) -> Samples:
    """Draw so many samples without replacement."""
    return data.take(torch.randperm(len(data), generator=generator)[:size])


def loss_of(card: Card, numbers: Mapping[str, float]) -> float | None:
    """Return the sum over a client's tasks of the losses in these numbers; None if there are none."""
    found = [numbers[name] for task in card.tasks if (name := f"loss.{task}") in numbers]
    return sum(found) if found else None


@dataclass
class LastLosses(Watching):
    """Renews the losses of those who took part."""

    memory: Groups
    asked: Asked
    found: dict[ClientId, float] = field(default_factory=dict)

    def add(self, client: ClientId, reply: Reply) -> None:
        """Take one reply in."""
        self.clients.append(client)
        # without a loss, be it for want of samples, there is no reason to choose the client before others
        self.found[client] = loss_of(self.asked.roster[client], reply.numbers) or 0.0

    def finish(self) -> Groups:
        """Return the renewed memory."""
        last = self.memory[LOSSES][LAST].clone()
        for place, client in enumerate(ids_of(self.asked.roster)):
            last[place] = self.found.get(client, last[place])
        return {**self.memory, LOSSES: {LAST: last}}


def power_of_choice(
    *,
    clients: PerRound = 10,
    candidates: Annotated[
        int | None, Field(ge=1, description="clients drawn to be chosen from; null: 10, or clients if that is more")
    ] = None,
    draw: Annotated[
        Drawn, Field(description="examples: candidates with many samples are likelier; uniform: all equally likely")
    ] = "examples",
    estimate: Annotated[
        Estimate,
        Field(description="loss of the current model on all samples (whole) or a few (batch), or of the last training"),
    ] = "whole",
    batch_size: Annotated[int, Field(ge=1, description="samples that the estimate batch looks at")] = 32,
) -> Selector:
    """Power-of-Choice (Cho et al., 2020): of some candidates, the clients with the largest training losses."""
    return LargestLoss(clients, candidates, draw, estimate, batch_size)
