"""FedDAT: every client distils between a shared adapter and a pair of a personal and a frozen one.

Source: Chen et al., "FedDAT: An Approach for Foundation Model Finetuning in Multi-Modal Heterogeneous Federated
Learning", AAAI 2024, and its repository, which has bottleneck adapters; low-rank ones in the language model, and what
is done with the connector, are our choice.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from pydantic import Field

from polyfed.method.averaging import Averaging, AveragingState, Context, equally
from polyfed.method.feddat_objective import MutualDistillation
from polyfed.method.protocol import TRAINED, Fit, Groups, Part, Request, fit
from polyfed.method.text_sharing import ConnectorScope, check_adapters, shared, trained
from polyfed.method.training import Trained, Training
from polyfed.model.adapter_names import FROZEN_LORA, LORA, PERSONAL_LORA
from polyfed.model.architecture import Tensors
from polyfed.scenario.federation import Card

PARAMETERS = "parameters"


@dataclass(frozen=True)
class Distil:
    """Local training beside a frozen copy of the shared adapter as it was received.

    The model that the client uses has the copy of the shared adapter as it is afterwards.
    """

    objective: MutualDistillation
    scope: ConnectorScope

    def __call__(self, training: Training) -> Generator[Request, Any, Trained]:
        """Fit the shared and the personal adapter, and the connector unless it is frozen."""
        if not training.recipe.epochs:
            return Trained(training.start, {"steps": 0.0})
        start = {**training.start, **frozen_copy(training.received)}
        moving = trained(self.scope, LORA, PERSONAL_LORA)
        fitted = yield from fit(Fit(self.objective, start, training.data, training.recipe, training.active, moving))
        parameters = {name: fitted.parameters[name] for name in training.start}
        numbers = {**fitted.numbers, "steps": float(fitted.steps)}
        return Trained(parameters, numbers, {TRAINED: {**parameters, **frozen_copy(parameters)}})


@dataclass(frozen=True)
class BesideCopy(Averaging):
    """Averaging in which a model has a frozen copy of the shared adapter, too, which is neither sent nor kept."""

    def enrol(self, initial: Tensors, card: Card) -> Groups:
        """Give a client first values of what is its own."""
        kept = super().enrol(initial, card).get(PARAMETERS, {})
        return {PARAMETERS: {name: value for name, value in kept.items() if not name.startswith(f"{FROZEN_LORA}.")}}

    def deploy(self, state: AveragingState, card: Card) -> Tensors:
        """Return what is shared, and the copy."""
        held = super().deploy(state, card)
        return {**held, **frozen_copy(held)}

    @property
    def parts(self) -> Mapping[str, Part]:
        """The personal and the shared adapter, each at its whole strength, as the authors' code judges them, too."""
        return {"personal only": partial(with_one, PERSONAL_LORA), "shared only": partial(with_one, LORA)}


def frozen_copy(parameters: Tensors) -> Tensors:
    """Return the shared adapter under the names of the frozen one."""
    named = {name: value for name, value in parameters.items() if name.startswith(f"{LORA}.")}
    return {name.replace(LORA, FROZEN_LORA, 1): value for name, value in named.items()}


def with_one(adapter: str, parameters: Tensors) -> Tensors:
    """Put one adapter into both places of the pair, which count by halves: what is left is that adapter."""
    held = {name.split(".", 1)[1]: value for name, value in parameters.items() if name.startswith(f"{adapter}.")}
    pair = {f"{place}.{name}": value for place in (PERSONAL_LORA, FROZEN_LORA) for name, value in held.items()}
    return {**parameters, **pair}


def feddat(
    context: Context,
    *,
    temperature: Annotated[float, Field(gt=0, description="temperature of the distillation")] = 3.0,
    connector_scope: ConnectorScope = "local",
) -> Averaging:
    """FedDAT (Chen et al., AAAI 2024): a shared adapter, and a personal one that it teaches and learns from.

    For the model ``llava``. The average is unweighted, as in the authors' code.
    """
    check_adapters(context, "feddat", "triple", PERSONAL_LORA, FROZEN_LORA)
    local = Distil(MutualDistillation(temperature), connector_scope)
    return BesideCopy(context, local=local, share=shared(connector_scope), weigh=equally)
