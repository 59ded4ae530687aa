"""SCAFFOLD: control variates take the clients' drift out of their local steps (Karimireddy et al., ICML 2020)."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from polyfed.data.samples import Batch
from polyfed.errors import UserError
from polyfed.method.averaging import Averaging, Components, Context, named_by
from polyfed.method.classic import MissingRule
from polyfed.method.companion import Asked, Unaccompanied, Watching
from polyfed.method.fednova import local_norm
from polyfed.method.objective import supervised
from polyfed.method.protocol import Expected, Expects, Fit, Fitted, Groups, Model, Reducer, Reply, Request, fit
from polyfed.method.training import Trained, Training
from polyfed.model.architecture import Tensors, component_of
from polyfed.model.losses import Logged
from polyfed.scenario.federation import Card, ClientId, Roster

CONTROL, CHANGE = "control", "control_change"
"""The groups of control variates, by parameter: c in an order and c_k with the client; the change of c_k in a reply."""

LARGEST, GROWTH = 1e6, 100.0
"""A change of c_k may have this norm, or so many times that of c: they are gradients, which may be large."""

Counting = Literal["clients", "examples"]


def corrected(model: Model, batch: Batch, extra: Groups) -> tuple[Tensor, Logged]:
    """Return the supervised loss plus <c − c_k, w − w_received>, whose gradient is that of the loss plus c − c_k.

    ``extra["correction"]`` holds c − c_k, ``extra["anchor"]`` w_received.
    """
    loss, logged = supervised(model, batch, extra)
    anchor, held = extra["anchor"], model.parameters
    correction = sum(
        ((change * (held[name] - anchor[name])).sum() for name, change in extra["correction"].items() if name in held),
        start=loss.new_zeros(()),
    )
    return loss + correction, {**logged, "correction": correction.detach()}


def steered(training: Training) -> Generator[Request, Any, Trained]:
    """Train with c − c_k added to every gradient; then c_k becomes the mean gradient of the training just done.

    c_k+ = c_k − c + (w_received − w) / (lr ‖a‖₁), where a tells how much each step counts (``fednova.local_norm``): the
    number of steps for plain SGD, more with momentum, less with a falling learning rate. Where ``clip_norm`` bites it
    clips the corrected gradient; weight decay counts as part of the gradient. A client keeps c_k of what it does not
    train, and all of it if it took no step.
    """
    server, held = training.groups[CONTROL], training.personal.get(CONTROL, {})
    own = {name: held.get(name, torch.zeros_like(value)) for name, value in server.items()}
    extra = {
        "anchor": {name: training.received[name] for name in server},
        "correction": {name: value - own[name] for name, value in server.items()},
    }
    fitted = yield from fit(
        Fit(corrected, training.start, training.data, training.recipe, training.active, extra=extra)
    )
    changes = control_changes(training, fitted, server)
    kept = {**held, **{name: own[name] + change for name, change in changes.items()}}
    numbers = {**fitted.numbers, "steps": float(fitted.steps)}
    return Trained(fitted.parameters, numbers, {CONTROL: kept}, {CHANGE: changes})


def control_changes(training: Training, fitted: Fitted, server: Tensors) -> dict[str, Tensor]:
    """Return c_k+ − c_k = (w_received − w) / (lr ‖a‖₁) − c by parameter; zeros where no step was taken."""
    if not fitted.steps:
        return {name: torch.zeros_like(value) for name, value in server.items()}
    work = training.recipe.lr * local_norm(training.recipe, fitted.steps)
    return {name: (training.received[name] - fitted.parameters[name]) / work - value for name, value in server.items()}


def largest_change(control: Tensor) -> float:
    """Return the largest norm of a change that is believed."""
    return max(LARGEST, GROWTH * float(torch.linalg.vector_norm(control)))


@dataclass(frozen=True)
class Controls(Unaccompanied):
    """Keeps c, sends what belongs to the components a client trains, and adds the clients' changes to it.

    A reply that is lost is missing from c from then on: its client has renewed c_k all the same.
    """

    components: Components
    counting: Counting = "clients"

    def begin(self, initial: Tensors, roster: Roster) -> Groups:
        """All control variates are zero at first."""
        return {CONTROL: {name: torch.zeros_like(value) for name, value in initial.items()}}

    def send(self, held: Groups, card: Card, active: frozenset[str]) -> Groups:
        """Send c of the components that the client trains."""
        components = tuple(name for name in self.components(active, card.tasks) if name in card.components)
        return {CONTROL: {name: held[CONTROL][name] for name in named_by(tuple(held[CONTROL]), components)}}

    def expects(self, held: Groups, parameters: Tensors, card: Card, active: frozenset[str]) -> Expects:
        """Expect a change of c_k for whatever was sent, with a bound on its norm."""
        sent = self.send(held, card, active)[CONTROL]
        changes = {
            name: Expected(tuple(value.shape), value.dtype, largest_change(value)) for name, value in sent.items()
        }
        return {CHANGE: changes}

    def watch(self, held: Groups, asked: Asked) -> Reducer[Groups]:
        """Add the changes up; those of a start-up pass, which clients forget, are not looked at."""
        return super().watch(held, asked) if asked.starting else Changes(held[CONTROL], asked.roster, self.counting)


@dataclass
class Changes(Watching):
    """c + Σ_k q_k (c_k+ − c_k), where q_k is client k's share among all clients that hold a component, asked or not."""

    before: Tensors
    roster: Roster
    counting: Counting
    sums: dict[str, Tensor] = field(default_factory=dict)

    def _weight(self, card: Card) -> float:
        return float(card.examples) if self.counting == "examples" else 1.0

    def add(self, client: ClientId, reply: Reply) -> None:
        """Take one reply in."""
        self.clients.append(client)
        weight = self._weight(self.roster[client])
        for name, change in reply.tensors[CHANGE].items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(change)).add(change, alpha=weight)

    def finish(self) -> Groups:
        """Return the renewed c."""
        everybody = self._holders()
        renewed = {
            name: self.before[name] + total / max(everybody[component_of(name, everybody)], 1.0)
            for name, total in self.sums.items()
        }
        return {CONTROL: {**self.before, **renewed}}

    def _holders(self) -> Mapping[str, float]:
        """Return the weight of all clients that hold each component."""
        found: dict[str, float] = {}
        for card in self.roster.values():
            for component in card.components:
                found[component] = found.get(component, 0.0) + self._weight(card)
        return found


def scaffold(
    context: Context,
    *,
    control: Annotated[
        Counting, Field(description="clients count equally in the server's control variate, or by their samples")
    ] = "clients",
    missing: MissingRule = "renormalise",
) -> Averaging:
    """SCAFFOLD (Karimireddy et al., ICML 2020): local steps are corrected by control variates, c − c_k.

    Clients need plain steps in proportion to gradients: the optimiser must be sgd. Momentum and schedules are accounted
    for, but ``momentum: 0`` is what the method is made for. Parameters are averaged by samples, as in FedAvg; the
    published c counts clients equally, so that with unequal clients it leads towards the optimum of their plain mean.
    ``control: examples`` is consistent with the average.
    """
    if context.recipe.optimizer != "sgd":
        raise UserError(
            f"scaffold: train.optimizer is {context.recipe.optimizer}, but control variates are gradients, which can "
            "be told from local training with sgd only; set train.optimizer: sgd"
        )
    companion = Controls(context.components, control)
    return Averaging(context, local=steered, missing=missing, companion=companion)
