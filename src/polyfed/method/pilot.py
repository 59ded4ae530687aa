"""Pilot: federated instruction tuning in two stages, with adapters of tasks and of clients.

Source: Xiong et al., "Pilot: Building the Federated Multimodal Instruction Tuning Framework", AAAI 2025. There is no
code of the authors; what the paper leaves open (normalisations, routing of tokens, partial participation, when
cross-task adapters start anew) is our choice and named with each option.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from polyfed.errors import UserError
from polyfed.method.adapter_tensors import drawn_like, noisy, shares, within
from polyfed.method.averaging import Context
from polyfed.method.pilot_objectives import Apart, Difference, Routed, RouterLosses
from polyfed.method.protocol import (
    TRAINED,
    ClientStep,
    Clock,
    Conversation,
    Fit,
    Fitted,
    Groups,
    Method,
    Note,
    Objective,
    Order,
    Recipe,
    Reply,
    Request,
    Work,
    ask,
    expected,
    fit,
    join,
    note,
)
from polyfed.method.text_adapters import TextAdapters, coefficients, distances, links, mixed
from polyfed.method.training import recipe_of
from polyfed.model.adapter_names import CLIENT, CROSS, LORA, OTHER, ROUTER, TASK
from polyfed.model.architecture import Tensors
from polyfed.rng import torch_generator
from polyfed.scenario.federation import Card, Client, ClientId, Roster

PARAMETERS = "parameters"
Crossing = Literal["task_adapter", "random"]


@dataclass(frozen=True)
class PilotState:
    """The server's task adapters, and every client's text adapter."""

    adapters: Tensors
    texts: Mapping[ClientId, Tensors]


@dataclass(frozen=True)
class Pilot:
    """See ``pilot``."""

    context: Context
    first: Objective
    second: Objective
    text: TextAdapters
    second_lr: float | None
    noise: float
    once: bool
    persist: bool
    crossing: Crossing

    @property
    def steps(self) -> Mapping[str, ClientStep]:
        """What a client is asked to do: the two stages."""
        return {"features": self.features, "across": self.across}

    def begin(self, initial: Tensors, roster: Roster) -> PilotState:
        """Start from the pre-trained connector in every adapter, and from one text adapter for all."""
        if self.context.select.steps or self.context.select.starts(Clock(0, 1, 1)) is not None:
            raise UserError(
                "method pilot: clients can only be selected without asking them: select all, random or round_robin"
            )
        for card in roster.values():
            if len(card.tasks) != 1:
                raise UserError(
                    f"method pilot: client {card.id} has the tasks {', '.join(card.tasks)}; each client must have one"
                )
        adapters, text = within(initial, [TASK]), within(initial, [LORA])
        return PilotState(adapters, dict.fromkeys(roster, text))

    def enrol(self, initial: Tensors, card: Card) -> Groups:
        """Give a client its own adapter, its router and first cross-task adapters."""
        own = within(initial, [CLIENT, ROUTER, CROSS], card.components)
        if not self.noise:
            return {PARAMETERS: own}
        moved = {
            name: noisy(value, self.noise, torch_generator(self.context.seed, "client adapter", card.id, name))
            if name.startswith(f"{CLIENT}.")
            else value
            for name, value in own.items()
        }
        return {PARAMETERS: moved}

    def deploy(self, state: PilotState, card: Card) -> Tensors:
        """Return the adapters of all tasks, as a client holds them, and its text adapter.

        Nothing for who is no client: there is no text adapter that would be everybody's.
        """
        if card.id not in state.texts:
            return {}
        return {**self._visual(state, card, others=True), **state.texts[card.id]}

    def _visual(self, state: PilotState, card: Card, *, others: bool) -> dict[str, Tensor]:
        """Return the adapter of a client's task and, if asked, those of the others under the names it has for them."""
        own = f"{TASK}.{card.tasks[0]}."
        held = {name: value for name, value in state.adapters.items() if name.startswith(own)}
        if others:
            rest = {name: value for name, value in state.adapters.items() if name not in held}
            held |= {name.replace(f"{TASK}.", f"{OTHER}.", 1): value for name, value in rest.items()}
        return within(held, [TASK, OTHER], card.components)

    # ------------------------------------------------------------------------------------------ server

    def round(self, state: PilotState, roster: Roster, clock: Clock) -> Conversation[PilotState]:
        """Hold both stages, aggregating after each."""
        chosen, _ = yield from self.context.select.choose(lambda cohort: {}, {}, roster, clock)
        for stage in ("features", "across"):
            if stage == "features" and self.once and clock.round > 1:
                continue
            orders = {
                client: self._order(stage, state, roster[client], active) for client, active in sorted(chosen.items())
            }
            replies = yield from ask(orders)
            state, told = self._aggregated(state, replies, roster, stage)
            yield from note(told)
        return state

    def _order(self, stage: str, state: PilotState, card: Card, active: frozenset[str]) -> Order:
        returned = {**self._visual(state, card, others=False), **state.texts[card.id]}
        sent = {**returned, **self._visual(state, card, others=stage == "across")}
        return Order(stage, active, {PARAMETERS: sent}, {}, expected({PARAMETERS: returned}))

    def _aggregated(
        self, state: PilotState, replies: Mapping[ClientId, Reply], roster: Roster, stage: str
    ) -> tuple[PilotState, Note]:
        """Average task adapters over the clients of a task (equation 10); mix text adapters (equations 11 and 12)."""
        clients = sorted(replies)
        adapters = dict(state.adapters)
        for task in sorted({roster[client].tasks[0] for client in clients}):
            members = [client for client in clients if roster[client].tasks[0] == task]
            uploads = [within(replies[client].tensors[PARAMETERS], [TASK]) for client in members]
            parts = shares([replies[client].examples for client in members])
            adapters |= mixed(uploads, parts.unsqueeze(0))[0]
        texts = [within(replies[client].tensors[PARAMETERS], [LORA]) for client in clients]
        apart = distances(texts) if self.text.aggregate == "nearest" else None
        parts = self._parts(
            apart, [replies[client].examples for client in clients], [roster[k].tasks[0] for k in clients]
        )
        new = dict(zip(clients, mixed(texts, parts), strict=True))
        own = {client: {f"{stage}.own_part": float(parts[place, place])} for place, client in enumerate(clients)}
        told = Note({}, own, {f"{stage}.{name}": held for name, held in links(clients, apart, parts).items()})
        return PilotState(adapters, {**state.texts, **new}), told

    def _parts(self, apart: Tensor | None, examples: Sequence[int], tasks: Sequence[str]) -> Tensor:
        """Return what each client's new text adapter takes of every client's; ``apart``: distances, if they count."""
        if apart is not None:
            return coefficients(apart, examples, self.text.neighbours, self.text.weights)
        rows = []
        for own in tasks:
            counted = [
                n if self.text.aggregate == "all" or task == own else 0 for n, task in zip(examples, tasks, strict=True)
            ]
            rows.append(shares(counted))
        return torch.stack(rows) if rows else torch.zeros(0, 0, dtype=torch.float64)

    # ------------------------------------------------------------------------------------------ client

    def features(self, order: Order, personal: Groups, client: Client, clock: Clock) -> Work:
        """Client step of the first stage: train the adapter of the task, the client's own, and the text adapter."""
        own = personal[PARAMETERS]
        start = join(order.tensors[PARAMETERS], within(own, [CLIENT]), client=client.card.id)
        trained = yield from self._fit(self.first, start, order, client, self._recipe(clock, client, None), "features")
        return self._told(order, trained, personal, client)

    def across(self, order: Order, personal: Groups, client: Client, clock: Clock) -> Work:
        """Client step of the second stage: train the mixture across tasks; other tasks' and the client's stay."""
        received, own = order.tensors[PARAMETERS], dict(personal[PARAMETERS])
        if not self.persist or TRAINED not in personal:
            own |= self._crossing(within(received, [TASK]), within(own, [CROSS]), clock, client.card.id)
        start = join(received, own, client=client.card.id)
        moving = (TASK, CROSS, ROUTER, LORA)
        trained = yield from self._fit(
            self.second, start, order, client, self._recipe(clock, client, self.second_lr), "across", moving
        )
        whole = {**start, **trained.parameters}
        return self._told(order, trained, {**personal, PARAMETERS: own, TRAINED: whole}, client)

    def _crossing(self, adapter: Tensors, crossing: Tensors, clock: Clock, client: ClientId) -> dict[str, Tensor]:
        """Return first values of cross-task adapters: those of the client's task adapter, or drawn anew."""
        if self.crossing == "random":
            generator = clock.generator("cross-task adapters", client)
            return {name: drawn_like(value, crossing, name, generator) for name, value in sorted(crossing.items())}
        endings = {name.split(".", 2)[2]: value for name, value in adapter.items()}
        return {name: endings[name.split(".", 2)[2]] for name in crossing}

    def _recipe(self, clock: Clock, client: Client, lr: float | None) -> Recipe:
        recipe = recipe_of(self.context.recipe, clock, client.card.id)
        return recipe if lr is None else replace(recipe, lr=lr)

    def _fit(
        self,
        objective: Objective,
        start: Tensors,
        order: Order,
        client: Client,
        recipe: Recipe,
        stage: str,
        moving: Collection[str] | None = None,
    ) -> Generator[Request, Any, Fitted]:
        """Train the model made of what is given; of that, components whose names begin with one of ``moving``."""
        held = [name for name in client.card.components if any(value.startswith(f"{name}.") for value in start)]
        trains = None if moving is None else frozenset(name for name in held if name.split(".")[0] in moving)
        data = client.train.holding(order.active)
        fitted = yield from fit(
            Fit(objective, start, data, recipe, order.active, trains, purpose=stage, components=tuple(held))
        )
        return fitted

    def _told(self, order: Order, fitted: Fitted, personal: Groups, client: Client) -> tuple[Reply, Groups]:
        """Return what was asked for, and keep the rest of what is the client's own."""
        back = within(order.tensors[PARAMETERS], [TASK, LORA])
        own = personal[PARAMETERS]
        kept = {name: fitted.parameters.get(name, value) for name, value in own.items()}
        reply = Reply(
            len(client.train.holding(order.active)),
            {PARAMETERS: {name: fitted.parameters[name] for name in back}},
            {**fitted.numbers, "steps": float(fitted.steps)},
        )
        return reply, {**personal, PARAMETERS: kept}


DIFFERENCE = Difference()
ROUTER_LOSSES = RouterLosses()
TEXT_ADAPTERS = TextAdapters()


def pilot(
    context: Context,
    *,
    difference: Annotated[Difference, Field(description="difference loss of the first stage")] = DIFFERENCE,
    router: Annotated[RouterLosses, Field(description="losses on the router of the second stage")] = ROUTER_LOSSES,
    text: Annotated[TextAdapters, Field(description="aggregation of text adapters")] = TEXT_ADAPTERS,
    second_lr: Annotated[
        float | None, Field(gt=0, description="learning rate of the second stage; null: twice that of the first")
    ] = None,
    client_init_noise: Annotated[
        float, Field(ge=0, description="noise on the client's adapter at first, in its standard deviations")
    ] = 0.0,
    stage1_once: Annotated[bool, Field(description="hold the first stage in the first round only")] = False,
    cross_task_persist: Annotated[
        bool, Field(description="keep cross-task adapters from round to round; else they start anew in each")
    ] = False,
    cross_task_init: Annotated[
        Crossing, Field(description="cross-task adapters start as the client's task adapter, or random")
    ] = "task_adapter",
) -> Method[PilotState]:
    """Pilot (Xiong et al., AAAI 2025): adapters of tasks, clients and texts, in two exchanges a round.

    For the model ``llava`` and clients of one task each. First stage: the task's and the client's adapter learn to
    differ. Second stage: a router mixes the adapters of all tasks. Task adapters are averaged over the clients of the
    task, text adapters with those nearest to them. There is no code of the authors; defaults that the paper does not
    state are our choice.
    """
    names = context.components((), tuple(context.tasks)[:1])
    if not any(name.startswith(f"{TASK}.") for name in names):
        raise UserError("method pilot: needs the model 'llava' with adapters: pilot, or left open")
    check_effects(names, difference, text, client_init_noise, cross_task_init, persist=cross_task_persist)
    rate = 2 * context.recipe.lr if second_lr is None else second_lr
    stages = Apart(difference.weight, difference.norm), Routed(router.balance, router.logits)
    return Pilot(context, *stages, text, rate, client_init_noise, stage1_once, cross_task_persist, cross_task_init)


def check_effects(
    components: Collection[str],
    difference: Difference,
    text: TextAdapters,
    noise: float,
    crossing: Crossing,
    *,
    persist: bool,
) -> None:
    """Raise UserError for an option that is not left as it is and changes nothing, given the others."""
    first = {name.split(".")[0] for name in components}
    uncrossed = CROSS not in first and any(name.startswith(f"{OTHER}.") for name in components)
    idle = {
        "difference": (CLIENT not in first and difference != DIFFERENCE, "model.pilot.client_adapter is false"),
        "client_init_noise": (CLIENT not in first and noise > 0, "model.pilot.client_adapter is false"),
        "cross_task_init": (uncrossed and crossing == "random", "model.pilot.cross_task is none"),
        "cross_task_persist": (uncrossed and persist, "model.pilot.cross_task is none"),
        "text.neighbours": (
            text.aggregate != "nearest" and text.neighbours != TEXT_ADAPTERS.neighbours,
            f"method.text.aggregate is {text.aggregate}",
        ),
        "text.weights": (
            text.aggregate != "nearest" and text.weights != TEXT_ADAPTERS.weights,
            f"method.text.aggregate is {text.aggregate}",
        ),
    }
    for option, (given, why) in idle.items():
        if given:
            raise UserError(f"method.{option}: has no effect, because {why}; give it its default value")
