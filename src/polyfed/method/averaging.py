"""Averaging: a federated algorithm assembled from parts (local training, sharing, selection, combination, server)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Literal

from polyfed.data.schema import Task
from polyfed.method.combine import Combine, diluted, mean_over_holders
from polyfed.method.protocol import (
    ClientStep,
    Clock,
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
from polyfed.method.select import Everyone, Selector
from polyfed.method.server import Replace, ServerOptimizer
from polyfed.method.training import Descend, Local, Training, recipe_of
from polyfed.model.architecture import Tensors, component_of
from polyfed.scenario.federation import Card, Client, Roster

Components = Callable[[Collection[str], Collection[str]], tuple[str, ...]]
Missing = Literal["renormalise", "dilute"]


@dataclass(frozen=True)
class Context:
    """What a method's builder is given: the training recipe, the selector, the tasks and the model's components.

    ``participation`` is the share of clients that take part in a round.
    """

    recipe: Recipe
    components: Components
    select: Selector = field(default_factory=Everyone)
    tasks: Mapping[str, Task] = field(default_factory=dict)
    participation: float = 1.0


def everything(parameter: str) -> bool:
    """Share every parameter."""
    return True


def nothing(parameter: str) -> bool:
    """Keep every parameter on the client."""
    return False


def by_examples(card: Card, reply: Reply) -> float:
    """Weight of FedAvg: the number of training samples."""
    return float(reply.examples)


@dataclass(frozen=True)
class AveragingState:
    """The server's parameters (shared ones only), its optimiser's memory and its selector's."""

    parameters: Tensors
    memory: Groups
    selection: Groups


@dataclass(frozen=True)
class Averaging:
    """Each chosen client trains on its own samples; what it shares is averaged over those who hold it.

    ``local`` is the local training, ``share`` tells which parameter names travel, ``combine`` reduces the replies with
    weights from ``weigh``, ``needs`` is the range of each number that a reply must hold,
    ``missing`` tells what a client without a component means for its average (``renormalise``: it does not count,
    ``dilute``: it counts as unchanged), ``server`` what is done with the average. Whom to ask, with which modalities,
    and the training recipe are in ``context``.
    """

    context: Context
    local: Local = field(default_factory=Descend)
    share: Callable[[str], bool] = everything
    weigh: Callable[[Card, Reply], float] = by_examples
    combine: Combine = mean_over_holders
    missing: Missing = "renormalise"
    server: ServerOptimizer = field(default_factory=Replace)
    needs: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def steps(self) -> Mapping[str, ClientStep]:
        """What a client is asked to do: train, and whatever the selector asks."""
        return {"train": self.train, **self.context.select.steps}

    def begin(self, initial: Tensors, roster: Roster) -> AveragingState:
        """Start from the first values of what is shared."""
        shared = {name: value for name, value in initial.items() if self.share(name)}
        return AveragingState(shared, {}, self.context.select.begin(initial, roster))

    def enrol(self, initial: Tensors, card: Card) -> Groups:
        """Give a client first values of what it does not share."""
        own = named_by(tuple(initial), card.components)
        kept = {name: initial[name] for name in own if not self.share(name)}
        return {"parameters": kept} if kept else {}

    def round(self, state: AveragingState, roster: Roster, clock: Clock) -> Conversation[AveragingState]:
        """Choose, train, average, update."""
        chosen, selection = yield from self.context.select.choose(state.parameters, state.selection, roster, clock)
        orders = self.orders(state, roster, chosen)
        reducer = self.combine(lambda client, reply: self.weigh(roster[client], reply), state.parameters, clock)
        mean = yield from fold(orders, reducer)
        if mean.note is not None:
            yield from note(mean.note)
        if self.missing == "dilute":
            mean = diluted(mean, state.parameters)
        parameters, memory = self.server.update(state.parameters, mean.values, state.memory)
        return AveragingState(parameters, memory, selection)

    def orders(self, state: AveragingState, roster: Roster, chosen: Mapping[int, frozenset[str]]) -> dict[int, Order]:
        """Make the orders of a round; clients with equal components share one set of tensors."""
        by_components: dict[tuple[str, ...], Order] = {}
        alike: dict[tuple[frozenset[str], tuple[str, ...], tuple[str, ...]], Order] = {}
        orders = {}
        for client in sorted(chosen):
            card, active = roster[client], chosen[client]
            key = active, card.tasks, card.components
            if key not in alike:
                called = self.context.components(active, card.tasks)
                components = tuple(name for name in called if name in card.components)
                if components not in by_components:
                    names = named_by(tuple(state.parameters), components)
                    tensors = {"parameters": {name: state.parameters[name] for name in names}}
                    by_components[components] = Order("train", active, tensors, {}, expected(tensors), self.needs)
                alike[key] = replace(by_components[components], active=active)
            orders[client] = alike[key]
        return orders

    def train(self, order: Order, personal: Groups, client: Client, clock: Clock) -> Work:
        """Client step: fit the received and personal parameters to the client's training samples."""
        received = order.tensors["parameters"]
        start = join(received, personal.get("parameters", {}), client=client.card.id)
        data = client.train.holding(order.active)
        recipe = recipe_of(self.context.recipe, clock, client.card.id)
        training = Training(client, clock, start, received, data, order.active, recipe, personal)
        trained = yield from self.local(training)
        shared = {name: trained.parameters[name] for name in received}
        kept = {name: value for name, value in trained.parameters.items() if name not in received}
        if kept or trained.personal:
            personal = {**personal, **trained.personal, **({"parameters": kept} if kept else {})}
        return Reply(len(data), {"parameters": shared}, trained.numbers), personal

    def deploy(self, state: AveragingState, card: Card) -> Tensors:
        """Return the shared parameters of one client's components."""
        return {name: state.parameters[name] for name in named_by(tuple(state.parameters), card.components)}


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
