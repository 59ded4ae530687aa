"""BMSFed and its kin: modalities enhanced by class prototypes, global ones or the client's own.

Sources: Fan et al., BMSFed, ECCV 2024, slides and code; PMR, CVPR 2023; Tan et al., FedProto, AAAI 2022.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from polyfed.data.schema import Task
from polyfed.method.averaging import Averaging, Context
from polyfed.method.balance import (
    BALANCE,
    RATIOS,
    Portrait,
    balance_group,
    behind,
    check_classified,
    portrait,
    whole_model,
)
from polyfed.method.classic import MissingRule, NonNegative
from polyfed.method.enhancement import BEHIND, PROTOTYPES, Coefficient, Enhanced
from polyfed.method.global_prototypes import COUNTS, Classified, Prototypes
from polyfed.method.protocol import Fit, Request, fit
from polyfed.method.training import Descend, Trained, Training
from polyfed.model.architecture import Tensors

Ratio = Literal["batch", "client"]


# ---------------------------------------------------------------------------------------------- clients


@dataclass(frozen=True)
class Enhance:
    """Train with the enhancement loss of global prototypes; report the trained model's own prototypes and ratios.

    Where there are no global ones, as in a start-up pass, the client's own under the received model are used; a
    start-up pass also reports these.
    """

    objective: Enhanced
    tasks: Mapping[str, Task]

    def __call__(self, training: Training) -> Generator[Request, Any, Trained]:
        """Train one client."""
        if training.starting:
            return (yield from self._start(training))
        prototypes = training.groups.get(PROTOTYPES)
        ratios = training.personal.get(BALANCE, {}).get(RATIOS)
        compares = self.objective.by_client and len(training.active) > 1
        if prototypes is None or (compares and ratios is None):
            own = yield from self._portrait(training, training.start)
            prototypes, ratios = prototypes or own.means, own.ratios if ratios is None else ratios
        trained = yield from self._fit(training, prototypes, ratios)
        after = yield from self._portrait(training, trained.parameters)
        return reported(trained, after, keeps=self.objective.by_client)

    def _start(self, training: Training) -> Generator[Request, Any, Trained]:
        """Report on the received model, and train if asked to."""
        own = yield from self._portrait(training, training.start)
        trained = Trained(training.start, {})
        if training.recipe.epochs:
            trained = yield from self._fit(training, own.means, own.ratios)
        return reported(trained, own, keeps=False)

    def _portrait(self, training: Training, parameters: Tensors) -> Generator[Request, Any, Portrait]:
        return (yield from portrait(training, self.tasks, whole_model(training, parameters)))

    def _fit(self, training: Training, prototypes: Tensors, ratios: Tensor | None) -> Generator[Request, Any, Trained]:
        compared: dict[str, Tensor] = {}
        if self.objective.by_client:
            # Of a client that uses one modality the ratios do not matter.
            owned = training.client.card.modalities
            found = dict.fromkeys(owned, 1.0) if ratios is None else behind(ratios, owned)
            compared = {name: torch.tensor(found[name], dtype=torch.float32) for name in sorted(training.active)}
        return (yield from enhanced_fit(self.objective, training, prototypes, compared))


def reported(trained: Trained, found: Portrait, *, keeps: bool) -> Trained:
    """Add prototypes, samples by class and ratios to a reply; ``keeps``: the client remembers the ratios."""
    balance = balance_group(found)
    groups = {PROTOTYPES: found.means, COUNTS: found.counts, **balance}
    return replace(trained, groups=groups, personal=balance if keeps else {})


@dataclass(frozen=True)
class EnhanceAlone:
    """PMR: train with the client's own prototypes, found anew before every epoch.

    Each epoch is a fit of its own, so momentum starts anew with it, and a schedule runs over the epoch. After the first
    ``rounds`` rounds it trains as usual.
    """

    objective: Enhanced
    tasks: Mapping[str, Task]
    rounds: int

    def __call__(self, training: Training) -> Generator[Request, Any, Trained]:
        """Train one client."""
        if training.clock.round > self.rounds:
            return (yield from Descend()(training))
        epochs, current, trained = training.recipe.epochs, training, Trained(training.start, {"steps": 0.0})
        for number in range(epochs):
            once = replace(current, recipe=replace(training.recipe, epochs=1))
            own = yield from portrait(once, self.tasks, once.start, once.active)
            now = yield from enhanced_fit(self.objective, once, own.means, {}, f"epoch {number}")
            steps = trained.numbers["steps"] + now.numbers["steps"]
            trained = replace(now, numbers={**now.numbers, "steps": steps})
            current = replace(current, start=trained.parameters)
        return trained


def enhanced_fit(
    objective: Enhanced, training: Training, prototypes: Tensors, compared: Tensors, purpose: str = "request"
) -> Generator[Request, Any, Trained]:
    """Fit with prototypes of the modalities in use; ``compared`` () tells how far each of these is behind."""
    used = {name: held for name, held in prototypes.items() if name.split(".", 1)[0] in training.active}
    extra = {PROTOTYPES: used, **({BEHIND: compared} if compared else {})}
    fitted = yield from fit(
        Fit(objective, training.start, training.data, training.recipe, training.active, None, extra, purpose)
    )
    return Trained(fitted.parameters, {**fitted.numbers, "steps": float(fitted.steps)})


# ---------------------------------------------------------------------------------------------- methods

Strength = Annotated[float, Field(ge=0, le=1e6, description="weight of the enhancement loss")]
Rounds = Annotated[int, Field(ge=0, description="rounds in which it is used, from the first")]


def bmsfed(
    context: Context,
    *,
    enhancement: Strength = 2.0,
    coefficient: Annotated[
        Coefficient, Field(description="const: always the full weight; clip: by how far the modality is behind")
    ] = "const",
    ratio: Annotated[Ratio, Field(description="modalities are compared in each batch, or once per client")] = "batch",
    missing: MissingRule = "renormalise",
) -> Averaging:
    """BMSFed (Fan et al., ECCV 2024): the weakest modality is enhanced by global class prototypes.

    The whole system also selects who trains with which modality: ``select: {name: bms}``. With another selection it is
    the ablation without balanced selection, with ``enhancement: 0`` the one without the enhancement loss. The method
    section of the paper could not be read: this follows the authors' slides and code.
    """
    check_classified(context.tasks, "bmsfed")
    local = Enhance(Enhanced(enhancement, "weakest", coefficient, ratio == "client"), context.tasks)
    return Averaging(context, local=local, missing=missing, companion=Prototypes(context.tasks, context.widths()))


def fedproto(context: Context, *, enhancement: NonNegative = 1.0, missing: MissingRule = "renormalise") -> Averaging:
    """Global class prototypes for every modality, as in BMSFed's comparison (after FedProto, Tan et al., AAAI 2022).

    The loss is the cross-entropy over distances to all prototypes, and models are averaged; FedProto itself takes the
    squared distance to the own class's prototype, and exchanges nothing but prototypes.
    """
    check_classified(context.tasks, "fedproto")
    local = Enhance(Enhanced(enhancement, "all"), context.tasks)
    return Averaging(context, local=local, missing=missing, companion=Prototypes(context.tasks, context.widths()))


def pmr(
    context: Context,
    *,
    enhancement: Strength = 1.0,
    coefficient: Coefficient = "const",
    rounds: Rounds = 71,
    missing: MissingRule = "renormalise",
) -> Averaging:
    """PMR (Fan et al., CVPR 2023), federated as in BMSFed's comparison: each client's own prototypes, no exchange.

    Prototypes have no momentum, and there is no entropy term, as in that comparison.
    """
    check_classified(context.tasks, "pmr")
    local = EnhanceAlone(Enhanced(enhancement, "weakest", coefficient), context.tasks, rounds)
    return Averaging(context, local=local, missing=missing, companion=Classified(context.tasks))
