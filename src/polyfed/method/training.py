"""What a client does between receiving the server's parameters and replying."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from polyfed.data.samples import Samples
from polyfed.method.objective import supervised
from polyfed.method.protocol import Clock, Fit, Groups, Objective, Recipe, Request, fit
from polyfed.model.architecture import Tensors
from polyfed.scenario.federation import Client


@dataclass(frozen=True)
class Training:
    """What local training starts from.

    ``start`` are all parameters of the client's model, ``received`` those of them that came from the server; ``data``
    are the training samples that have one of the ``active`` modalities; ``personal`` are the client's personal groups,
    ``groups`` what else it was sent. ``starting``: this is a start-up pass, and what is trained will be discarded.
    """

    client: Client
    clock: Clock
    start: Tensors
    received: Tensors
    data: Samples
    active: frozenset[str]
    recipe: Recipe
    personal: Groups = field(default_factory=dict)
    groups: Groups = field(default_factory=dict)
    starting: bool = False


@dataclass(frozen=True)
class Trained:
    """What local training ends with: all parameters, numbers for the reply, and groups beside the parameters.

    ``personal`` groups stay with the client, ``groups`` go into the reply.
    """

    parameters: Tensors
    numbers: Mapping[str, float]
    personal: Groups = field(default_factory=dict)
    groups: Groups = field(default_factory=dict)


Local = Callable[[Training], Generator[Request, Any, Trained]]
"""Local training as a conversation with the engine: yields requests, returns what it ends with."""


@dataclass(frozen=True)
class Descend:
    """Minimise an objective. ``anchored``: it is given the received parameters as ``extra["anchor"]``.

    Of the components only those in ``trains`` move; None: all of them.
    """

    objective: Objective = supervised
    anchored: bool = False
    trains: frozenset[str] | None = None

    def __call__(self, training: Training) -> Generator[Request, Any, Trained]:
        """Fit, and report what was logged and how many steps were taken; without an epoch nothing is done."""
        if not training.recipe.epochs:
            return Trained(training.start, {"steps": 0.0})
        extra = {"anchor": training.received} if self.anchored else {}
        request = Fit(
            self.objective, training.start, training.data, training.recipe, training.active, self.trains, extra=extra
        )
        fitted = yield from fit(request)
        return Trained(fitted.parameters, {**fitted.numbers, "steps": float(fitted.steps)})


@dataclass(frozen=True)
class MatchedPasses:
    """Minimise in so many passes over the data as a share of them would have been seen, rounded up over all rounds.

    ``epochs`` are those expected of a client in a round.
    """

    share: float
    epochs: float
    local: Local = field(default_factory=Descend)

    def __call__(self, training: Training) -> Generator[Request, Any, Trained]:
        """Take the passes that are due in this round; none, where it comes to that."""
        done, each = training.clock.round - 1, self.epochs * self.share
        before, after = passes(done * each), passes((done + 1) * each)
        if before == after:
            return Trained(training.start, {"steps": 0.0})
        return (yield from self.local(replace(training, recipe=replace(training.recipe, epochs=after - before))))


def passes(exactly: float) -> int:
    """Round a number of passes up, but not for a rounding error."""
    return math.ceil(exactly - 1e-9)


def expected_epochs(recipe: Recipe) -> float:
    """Return the mean number of epochs that a client takes in a round."""
    return recipe.epochs if recipe.least_epochs is None else (recipe.least_epochs + recipe.epochs) / 2


def recipe_of(recipe: Recipe, clock: Clock, client: int) -> Recipe:
    """Return a client's recipe for this round: with ``least_epochs`` its number of epochs is drawn.

    Uniform from ``least_epochs`` to ``epochs``, both included: the variable local work of FedNova's experiments (Wang
    et al., NeurIPS 2020).
    """
    if recipe.least_epochs is None:
        return recipe
    span = recipe.epochs - recipe.least_epochs + 1
    drawn = int(torch.randint(span, (), generator=clock.generator("epochs", client)))
    return replace(recipe, epochs=recipe.least_epochs + drawn, least_epochs=None)
