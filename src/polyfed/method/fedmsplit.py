"""FedMSplit: every client has a model of its own, whose blocks are mixed with those of clients like it.

Chen and Zhang, "FedMSplit: Correlation-Adaptive Federated Multi-Task Learning across Multimodal Split Networks", KDD
2022. The paper and its authors' code were not available: this is a reconstruction from third parties'
re-implementations (nmduonggg/Local-Missing-FL and hangpt01/Foundation_Multimodal_Missing_FL, which share their code).
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from polyfed.method.averaging import Averaging, AveragingState, Context, by_examples, named_by, starting
from polyfed.method.classic import NonNegative
from polyfed.method.combine import MeanOverHolders
from polyfed.method.companion import Asked, Together
from polyfed.method.objective import Proximal
from polyfed.method.protocol import (
    ClientStep,
    Clock,
    Cohort,
    Conversation,
    Groups,
    Note,
    Order,
    Orders,
    Reducer,
    Reply,
    Request,
    ask,
    fold,
    note,
)
from polyfed.method.select import whole_cohort
from polyfed.method.similarity import Block, Similarity, blocks_of, mixed, shares
from polyfed.method.training import Descend, Local, Trained, Training
from polyfed.model.architecture import Tensors
from polyfed.scenario.federation import Card, ClientId, Roster

Anchor = Literal["average", "personal"]

ANCHOR = "anchor"
"""The group of an order that holds the average of the blocks of which the client has its own."""


@dataclass(frozen=True)
class SplitState:
    """What the server keeps: a model per client, and so the memory of as many models as there are clients.

    ``parameters`` are the owners' averages of the last round in which each block was sent back; ``personal`` holds the
    blocks of each client that has taken part, by its id; ``selection`` is the selector's memory.
    """

    parameters: Tensors
    personal: Mapping[ClientId, Tensors]
    selection: Groups

    def model_of(self, client: ClientId) -> Tensors:
        """Return a client's own blocks and the average ones in place of those that it never sent."""
        return {**self.parameters, **self.personal.get(client, {})}


def equally(card: Card, reply: Reply) -> float:
    """Every client counts as one."""
    return 1.0


@dataclass(frozen=True)
class TowardsAverage:
    """Local training with a proximal term whose anchor is the average model, not the received one."""

    local: Local

    def __call__(self, training: Training) -> Generator[Request, Any, Trained]:
        """Train as if the average had been received; it starts from what was."""
        anchor = {**training.received, **training.groups.get(ANCHOR, {})}
        return (yield from self.local(replace(training, received=anchor)))


class Relative:
    """Hands replies on as if every client had been sent the same parameters: what counts is how far it went."""

    def __init__(self, reducer: Reducer[Groups], orders: Orders, parameters: Tensors) -> None:
        self._reducer, self._orders, self._parameters = reducer, orders, parameters

    @property
    def counted(self) -> tuple[ClientId, ...]:
        """Clients whose replies were handed on."""
        return self._reducer.counted

    def add(self, client: ClientId, reply: Reply) -> None:
        """Hand one reply on; parameters are missing from it where none were asked for."""
        if "parameters" in reply.tensors:
            sent = self._orders[client].tensors["parameters"]
            after = reply.tensors["parameters"]
            moved = {name: self._parameters[name] + (value - sent[name]) for name, value in after.items()}
            reply = replace(reply, tensors={**reply.tensors, "parameters": moved})
        self._reducer.add(client, reply)

    def finish(self) -> Groups:
        """Return what the reducer found."""
        return self._reducer.finish()


@dataclass(frozen=True)
class FedMSplit:
    """Blocks are mixed by w_k ← Σ_l A_kl c_kl w_l / Σ_l A_kl c_kl over the clients l that sent the block this round.

    A_kl is the softmax over l of the similarity of the blocks of k and l, c_kl its mean over all blocks that k and l
    have in common (see ``polyfed.method.similarity``). Clients minimise their loss plus ``proximal`` · ‖w − anchor‖².
    """

    context: Context
    proximal: float = 0.01
    anchor: Anchor = "average"
    similarity: Similarity = "dot"
    weigh_examples: bool = False

    @property
    def averaging(self) -> Averaging:
        """Return averaging that trains alike and makes the orders of one client, given its model."""
        # Proximal halves its factor, this method does not.
        local: Local = Descend(Proximal(2 * self.proximal), anchored=True) if self.proximal else Descend()
        if self._sends_anchor:
            local = TowardsAverage(local)
        return Averaging(self.context, local=local, weigh=by_examples if self.weigh_examples else equally)

    @property
    def _sends_anchor(self) -> bool:
        return self.proximal > 0 and self.anchor == "average"

    @property
    def steps(self) -> Mapping[str, ClientStep]:
        """What a client is asked to do: train, start, and whatever the selector asks."""
        return self.averaging.steps

    def begin(self, initial: Tensors, roster: Roster) -> SplitState:
        """Start everybody from the first values."""
        return SplitState(dict(initial), {}, self.averaging.begin(initial, roster).selection)

    def enrol(self, initial: Tensors, card: Card) -> Groups:
        """Nothing stays on the client: the server keeps its blocks."""
        return {}

    def round(self, state: SplitState, roster: Roster, clock: Clock) -> Conversation[SplitState]:
        """Choose, train, find out who is alike, mix."""
        state = yield from self._started(state, roster, clock)
        select = self.context.select

        def draft(cohort: Cohort) -> dict[ClientId, Order]:
            return self.orders(state, roster, cohort)

        chosen, selection = yield from select.choose(draft, state.selection, roster, clock)
        orders = draft(chosen)
        replies = yield from ask(orders)
        by_card = select.reweighed(selection, self.averaging.weigh)
        weights = {client: by_card(roster[client], reply) for client, reply in replies.items()}
        held = {client: reply.tensors["parameters"] for client, reply in replies.items()}
        blocks = blocks_of(held, {client: roster[client].components for client in held})
        portions = shares(blocks, held, self.similarity, weights)
        yield from note(self_weights(blocks, portions))
        watch = Relative(select.watch(selection, Asked(state.parameters, chosen, roster)), orders, state.parameters)
        mean, selection = reduced(replies, MeanOverHolders(lambda client, reply: weights[client]), watch)
        personal = dict(state.personal)
        for client, renewed in mixed(blocks, portions, held).items():
            personal[client] = {**personal.get(client, {}), **renewed}
        return SplitState({**state.parameters, **mean.values}, personal, selection)

    def _started(self, state: SplitState, roster: Roster, clock: Clock) -> Conversation[SplitState]:
        """Hold the start-up pass, if the selector wants one before this round."""
        select = self.context.select
        epochs = select.starts(clock)
        if epochs is None:
            return state
        asked = Asked(state.parameters, whole_cohort(roster, roster), roster, starting=True)
        orders = {k: starting(order, epochs) for k, order in self.orders(state, roster, asked.cohort).items()}
        watch = Relative(select.watch(state.selection, asked), orders, state.parameters)
        selection = yield from fold(orders, watch, aside=True)
        return replace(state, selection=selection)

    def orders(self, state: SplitState, roster: Roster, cohort: Cohort) -> dict[ClientId, Order]:
        """Make the orders of a round: each client is sent its own model, and the average one if that is the anchor."""
        averaging = self.averaging
        orders = {}
        for client in sorted(cohort):
            own = AveragingState(state.model_of(client), {}, state.selection)
            order = averaging.orders(own, roster, {client: cohort[client]})[client]
            own_names = state.personal.get(client, {}).keys() & order.tensors["parameters"].keys()
            if self._sends_anchor and own_names:
                average = {name: state.parameters[name] for name in sorted(own_names)}
                order = replace(order, tensors={**order.tensors, ANCHOR: average})
            orders[client] = order
        return orders

    def deploy(self, state: SplitState, card: Card) -> Tensors:
        """Return the client's own model; of a client that has not taken part yet, the average one."""
        model = state.model_of(card.id)
        return {name: model[name] for name in named_by(tuple(state.parameters), card.components)}


def reduced(replies: Mapping[ClientId, Reply], *reducers: Reducer[Any]) -> tuple[Any, ...]:
    """Feed replies to reducers in ascending client id and return what each of them found."""
    together = Together(*reducers)
    for client in sorted(replies):
        together.add(client, replies[client])
    return together.finish()


def self_weights(blocks: Sequence[Block], portions: Sequence[Tensor]) -> Note:
    """Note the shares that clients' own blocks have in their new ones: means by kind of block, and by client."""
    kinds: dict[str, list[float]] = {}
    clients: dict[ClientId, list[float]] = {}
    for block, portion in zip(blocks, portions, strict=True):
        for client, own in zip(block.owners, portion.diagonal().tolist(), strict=True):
            kinds.setdefault(block.kind, []).append(own)
            clients.setdefault(client, []).append(own)
    return Note(
        {f"self_weight.{kind}": fmean(own) for kind, own in sorted(kinds.items())},
        {client: {"self_weight": fmean(own)} for client, own in sorted(clients.items())},
    )


def fedmsplit(
    context: Context,
    *,
    similarity: Annotated[
        Similarity, Field(description="of blocks: scaled inner product, or cosine (whatever the blocks' size)")
    ] = "dot",
    proximal: Annotated[NonNegative, Field(description="weight of the squared distance from the anchor")] = 0.01,
    anchor: Annotated[Anchor, Field(description="the owners' average, or the client's own blocks")] = "average",
    weigh_examples: Annotated[bool, Field(description="clients count by their samples, instead of equally")] = False,
) -> FedMSplit:
    """FedMSplit (after Chen and Zhang, KDD 2022): each client's blocks are mixed with those of clients like it.

    A reconstruction from third parties' re-implementations; the paper was not available. The server keeps a model per
    client.
    """
    return FedMSplit(context, proximal, anchor, similarity, weigh_examples)
