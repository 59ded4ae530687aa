"""Averaging: a federated algorithm assembled from parts (local training, sharing, selection, combination, server)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Literal

from polyfed.data.schema import Task
from polyfed.errors import UserError
from polyfed.method.combine import Combine, diluted, mean_over_holders
from polyfed.method.companion import INACTIVE, Asked, Companion, Together, Unaccompanied
from polyfed.method.protocol import (
    ClientStep,
    Clock,
    Cohort,
    Conversation,
    Groups,
    Order,
    Recipe,
    Reply,
    Work,
    expected,
    fold,
    join,
    note,
)
from polyfed.method.select import Everyone, Selector, whole_cohort
from polyfed.method.server import Replace, ServerOptimizer
from polyfed.method.training import Descend, Local, Training, recipe_of
from polyfed.model.architecture import Tensors, component_of
from polyfed.scenario.federation import Card, Client, ClientId, Roster

Components = Callable[[Collection[str], Collection[str]], tuple[str, ...]]
Missing = Literal["renormalise", "dilute"]


@dataclass(frozen=True)
class Context:
    """What a method's builder is given: the training recipe, the selector, the tasks and the model's components.

    ``participation`` is the share of clients that take part in a round; ``widths`` returns the widths of the features
    by modality. ``seed`` is the experiment's, for what is drawn before the first round.
    """

    recipe: Recipe
    components: Components
    select: Selector = field(default_factory=Everyone)
    tasks: Mapping[str, Task] = field(default_factory=dict)
    participation: float = 1.0
    widths: Callable[[], Mapping[str, int]] = dict
    seed: int = 0


def everything(parameter: str) -> bool:
    """Share every parameter."""
    return True


def nothing(parameter: str) -> bool:
    """Keep every parameter on the client."""
    return False


def by_examples(card: Card, reply: Reply) -> float:
    """Weight of FedAvg: the number of training samples."""
    return float(reply.examples)


def equally(card: Card, reply: Reply) -> float:
    """Weigh all clients alike that have samples."""
    return float(reply.examples > 0)


@dataclass(frozen=True)
class AveragingState:
    """The server's parameters (shared ones only), and what its optimiser, selector and companion remember."""

    parameters: Tensors
    memory: Groups
    selection: Groups
    companion: Groups = field(default_factory=dict)


EPOCHS = "epochs"
"""The number of an order to start: local epochs of the start-up pass."""


@dataclass(frozen=True)
class Averaging:
    """Each chosen client trains on its own samples; what it shares is averaged over those who hold it.

    ``local`` is the local training, ``share`` tells which parameter names travel, ``combine`` reduces the replies with
    weights from ``weigh``, ``needs`` is the range of each number that a reply must hold,
    ``missing`` tells what a client without a component means for its average (``renormalise``: it does not count,
    ``dilute``: it counts as unchanged), ``server`` what is done with the average, ``companion`` what travels beside the
    parameters. Whom to ask, with which modalities, and the training recipe are in ``context``.
    """

    context: Context
    local: Local = field(default_factory=Descend)
    share: Callable[[str], bool] = everything
    weigh: Callable[[Card, Reply], float] = by_examples
    combine: Combine = mean_over_holders
    missing: Missing = "renormalise"
    server: ServerOptimizer = field(default_factory=Replace)
    needs: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    companion: Companion = field(default_factory=Unaccompanied)

    @property
    def steps(self) -> Mapping[str, ClientStep]:
        """What a client is asked to do: train, start, and whatever the selector asks."""
        return {"train": self.train, "start": self.start, **self.context.select.steps}

    def begin(self, initial: Tensors, roster: Roster) -> AveragingState:
        """Start from the first values of what is shared."""
        shared = {name: value for name, value in initial.items() if self.share(name)}
        self.context.select.check(roster, self.context.tasks)
        if self.context.select.weighs and self.weigh is not by_examples:
            raise UserError("select.shares: represented, but this method weighs replies itself; use shares: examples")
        selection = self.context.select.begin(shared, roster)
        return AveragingState(shared, {}, selection, self.companion.begin(shared, roster))

    def enrol(self, initial: Tensors, card: Card) -> Groups:
        """Give a client first values of what it does not share."""
        own = named_by(tuple(initial), card.components)
        kept = {name: initial[name] for name in own if not self.share(name)}
        return {"parameters": kept} if kept else {}

    def round(self, state: AveragingState, roster: Roster, clock: Clock) -> Conversation[AveragingState]:
        """Choose, train, average, update."""
        state = yield from self._started(state, roster, clock)
        select = self.context.select

        def draft(cohort: Cohort) -> dict[ClientId, Order]:
            return self.orders(state, roster, cohort)

        chosen, selection = yield from select.choose(draft, state.selection, roster, clock)
        asked = Asked(state.parameters, chosen, roster)
        weigh = select.reweighed(selection, self.weigh)
        reducer = Together(
            self.combine(lambda client, reply: weigh(roster[client], reply), state.parameters, clock),
            select.watch(selection, asked),
            self.companion.watch(state.companion, asked),
        )
        mean, selection, companion = yield from fold(draft(chosen), reducer)
        if mean.note is not None:
            yield from note(mean.note)
        if self.missing == "dilute":
            mean = diluted(mean, state.parameters)
        parameters, memory = self.server.update(state.parameters, mean.values, state.memory)
        return AveragingState(parameters, memory, selection, companion)

    def _started(self, state: AveragingState, roster: Roster, clock: Clock) -> Conversation[AveragingState]:
        """Hold the start-up pass, if the selector or the companion wants one before this round."""
        parts = self.context.select, self.companion
        wanted = [epochs for part in parts if (epochs := part.starts(clock)) is not None]
        if not wanted:
            return state
        asked = Asked(state.parameters, whole_cohort(roster, roster), roster, starting=True)
        orders = self.orders(state, roster, asked.cohort)
        alike = {id(order): starting(order, max(wanted)) for order in orders.values()}
        select, companion = parts
        reducer = Together(select.watch(state.selection, asked), companion.watch(state.companion, asked))
        remembered, kept = yield from fold({k: alike[id(order)] for k, order in orders.items()}, reducer, aside=True)
        return replace(state, selection=remembered, companion=kept)

    def orders(self, state: AveragingState, roster: Roster, chosen: Cohort) -> dict[ClientId, Order]:
        """Make the orders of a round; clients with equal components share one set of tensors."""
        by_components: dict[tuple[str, ...], Order] = {}
        alike: dict[tuple[frozenset[str], tuple[str, ...], tuple[str, ...], tuple[str, ...]], Order] = {}
        orders = {}
        for client in sorted(chosen):
            card, active = roster[client], chosen[client]
            key = active, card.tasks, card.components, card.modalities
            if key not in alike:
                called = self.context.components(active, card.tasks)
                components = tuple(name for name in called if name in card.components)
                if components not in by_components:
                    names = named_by(tuple(state.parameters), components)
                    tensors = {"parameters": {name: state.parameters[name] for name in names}}
                    by_components[components] = Order("train", active, tensors, {}, expected(tensors), self.needs)
                alike[key] = self._accompanied(replace(by_components[components], active=active), state, card)
            orders[client] = alike[key]
        return orders

    def _accompanied(self, order: Order, state: AveragingState, card: Card) -> Order:
        """Add what the selector and the companion send and expect."""
        sent: dict[str, Tensors] = dict(order.tensors)
        expects = dict(order.expects)
        parts = (self.context.select, state.selection), (self.companion, state.companion)
        for part, held in parts:
            sent |= part.send(held, card, order.active)
            expects |= part.expects(held, state.parameters, card, order.active)
        if any(part.whole for part, _ in parts):
            names = named_by(tuple(state.parameters), card.components)
            inactive = {name: state.parameters[name] for name in names if name not in sent["parameters"]}
            sent |= {INACTIVE: inactive} if inactive else {}
        unchanged = len(sent) == len(order.tensors) and len(expects) == len(order.expects)
        return order if unchanged else replace(order, tensors=sent, expects=expects)

    def train(self, order: Order, personal: Groups, client: Client, clock: Clock) -> Work:
        """Client step: fit the received and personal parameters to the client's training samples."""
        training = self._training(order, personal, client, clock)
        trained = yield from self.context.select.around(self.local, self.context.tasks)(training)
        shared = {name: trained.parameters[name] for name in training.received}
        kept = {name: value for name, value in trained.parameters.items() if name not in training.received}
        if kept or trained.personal:
            personal = {**personal, **trained.personal, **({"parameters": kept} if kept else {})}
        return Reply(len(training.data), {"parameters": shared, **trained.groups}, trained.numbers), personal

    def start(self, order: Order, personal: Groups, client: Client, clock: Clock) -> Work:
        """Client step of the start-up pass: train for some epochs, or only report; the client keeps nothing of it."""
        training = self._training(order, personal, client, clock)
        recipe = replace(training.recipe, epochs=int(order.numbers[EPOCHS]))
        local = self.context.select.around(self.local, self.context.tasks)
        trained = yield from local(replace(training, recipe=recipe, starting=True))
        shared = {"parameters": {name: trained.parameters[name] for name in training.received}} if recipe.epochs else {}
        return Reply(len(training.data), {**shared, **trained.groups}, trained.numbers), personal

    def _training(self, order: Order, personal: Groups, client: Client, clock: Clock) -> Training:
        received = order.tensors["parameters"]
        start = join(received, personal.get("parameters", {}), client=client.card.id)
        stray = start.keys() - set(named_by(tuple(start), client.card.components))
        if stray:
            raise LookupError(f"client {client.card.id}: {min(stray)!r} belongs to none of its components")
        data = client.train.holding(order.active)
        recipe = recipe_of(self.context.recipe, clock, client.card.id)
        groups = {group: held for group, held in order.tensors.items() if group != "parameters"}
        return Training(client, clock, start, received, data, order.active, recipe, personal, groups)

    def deploy(self, state: AveragingState, card: Card) -> Tensors:
        """Return the shared parameters of one client's components."""
        return {name: state.parameters[name] for name in named_by(tuple(state.parameters), card.components)}


def starting(order: Order, epochs: int) -> Order:
    """Make an order to train one for the start-up pass; where nothing is trained, no parameters come back."""
    expects = {group: held for group, held in order.expects.items() if epochs or group != "parameters"}
    return replace(order, step="start", numbers={EPOCHS: float(epochs)}, expects=expects)


@cache
def named_by(parameters: tuple[str, ...], components: tuple[str, ...]) -> tuple[str, ...]:
    """Return the parameters that belong to one of the components, in order."""
    found = []
    for name in parameters:
        try:
            component_of(name, components)
        except LookupError:
            continue
        found.append(name)
    return tuple(found)
