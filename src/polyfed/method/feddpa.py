"""FedDPA: a shared and a personal text adapter per client, mixed by how near a prompt is to the client's own.

Source: Yang et al., "Dual-Personalizing Adapter for Federated Foundation Models", NeurIPS 2024, and its repository. The
original has no pictures and no connector. What the coefficient multiplies differs between the paper's aim and the
released script; see ``dynamic_weighting``.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from polyfed.data.samples import Batch
from polyfed.method.averaging import Averaging, AveragingState, Context, equally
from polyfed.method.objective import supervised
from polyfed.method.protocol import (
    TRAINED,
    ClientStep,
    Clock,
    Conversation,
    Embed,
    Fit,
    Groups,
    Model,
    Objective,
    Order,
    Reply,
    Request,
    Work,
    ask,
    embed,
    fit,
)
from polyfed.method.select import whole_cohort
from polyfed.method.text_sharing import ConnectorScope, check_adapters, shared, trained
from polyfed.method.training import Trained, Training
from polyfed.model.adapter_names import CONNECTOR, LORA, MIXING, PERSONAL_LORA
from polyfed.model.adapter_weights import weighted
from polyfed.model.architecture import Tensors
from polyfed.model.losses import Logged
from polyfed.scenario.federation import Client, Roster

PARAMETERS, TEXT = "parameters", "text"
Dynamic = Literal["instance", "as_released", "fixed"]


@dataclass(frozen=True)
class Rule:
    """The weight of a client's own adapter: clip(offset + slope · s, 0, 1); see ``AdapterMixing``.

    ``local_weight`` is what it has in training, ``prompts`` the number of own prompts to compare with.
    """

    local_weight: float
    dynamic: Dynamic
    strength: float
    prompts: int

    def mixing(self, prompts: Tensor | None) -> dict[str, Tensor]:
        """Return the parameters of the rule for embeddings of own prompts (prompts, width); None: fixed weights."""
        if prompts is None or not len(prompts):
            return fixed_mixing(self.local_weight)
        offset, slope = (0.0, self.strength) if self.dynamic == "instance" else (1.0, -self.strength)
        mean = functional.normalize(prompts, dim=-1).mean(0)
        return {**fixed_mixing(offset), f"{MIXING}.slope": torch.tensor(slope), f"{MIXING}.prompts": mean}


def fixed_mixing(weight: float) -> dict[str, Tensor]:
    """Return parameters that weigh the client's own adapter the same for all prompts, but for ``prompts``."""
    return {f"{MIXING}.offset": torch.tensor(weight), f"{MIXING}.slope": torch.tensor(0.0)}


@dataclass(frozen=True)
class SharedDetached:
    """The supervised loss of the personal adapter's training, without gradients through the shared adapter's outputs.

    With them (the default) the shared adapter is only not moved. The authors' code cuts them off.
    """

    local_weight: float

    def __call__(self, model: Model, batch: Batch, extra: Groups) -> tuple[Tensor, Logged]:
        """Return the loss () and its parts."""
        weights = {PERSONAL_LORA: self.local_weight, LORA: 1 - self.local_weight}
        return supervised(model, weighted(batch, weights, [LORA]), extra)


@dataclass(frozen=True)
class Turns:
    """Local training: the personal adapter from the second round on if ``alternate``, then the shared one alone.

    The connector is trained with the shared adapter.
    """

    rule: Rule
    scope: ConnectorScope
    objective: Objective
    alternate: bool

    def __call__(self, training: Training) -> Generator[Request, Any, Trained]:
        """Fit both; the model as it is then is what the client uses."""
        if not training.recipe.epochs:
            return Trained(training.start, {"steps": 0.0})
        parameters, numbers = training.start, dict[str, float]()
        personal = self.alternate and training.clock.round > 1
        if personal:
            parameters, numbers = yield from self.personal(training, parameters)
        moving = trained(self.scope, LORA)
        components = tuple(name for name in training.client.card.components if name in (CONNECTOR, LORA))
        fitted = yield from fit(
            Fit(
                supervised,
                parameters,
                training.data,
                training.recipe,
                training.active,
                moving,
                purpose="shared",
                components=components,
            )
        )
        parameters = fitted.parameters
        if personal:
            parameters = yield from self.compared(training, parameters)
        numbers = {**numbers, **fitted.numbers, "steps": float(fitted.steps)}
        return Trained(parameters, numbers, {TRAINED: parameters})

    def personal(
        self, training: Training, parameters: Tensors
    ) -> Generator[Request, Any, tuple[Tensors, dict[str, float]]]:
        """Fit the personal adapter beside the shared one, which stays as it is."""
        start = {**parameters, **fixed_mixing(self.rule.local_weight)}
        moving = frozenset({PERSONAL_LORA})
        fitted = yield from fit(
            Fit(self.objective, start, training.data, training.recipe, training.active, moving, purpose="personal")
        )
        return fitted.parameters, {f"personal.{name}": value for name, value in fitted.numbers.items()}

    def compared(self, training: Training, parameters: Tensors) -> Generator[Request, Any, Tensors]:
        """Have some of the client's own prompts embedded with the personal adapter alone, and keep their mean."""
        if self.rule.dynamic == "fixed" or not len(training.data):
            return {**parameters, **self.rule.mixing(None)}
        draw = training.clock.generator("prompts", training.client.card.id)
        chosen = torch.randperm(len(training.data), generator=draw)[: self.rule.prompts]
        alone = {**parameters, **fixed_mixing(1.0)}
        features = yield from embed(Embed(alone, training.data.take(chosen), training.active))
        return {**parameters, **self.rule.mixing(features[TEXT])}


@dataclass(frozen=True)
class Finally(Averaging):
    """FedDPA-F: averaging, and after the last round every client makes a personal adapter of the shared one."""

    @property
    def steps(self) -> Mapping[str, ClientStep]:
        """What a client is asked to do besides."""
        return {**super().steps, "personalise": self.personalise}

    def round(self, state: AveragingState, roster: Roster, clock: Clock) -> Conversation[AveragingState]:
        """Average; in the last round send the outcome to all clients."""
        state = yield from super().round(state, roster, clock)
        if clock.round == clock.total:
            orders = self.orders(state, roster, whole_cohort(roster, roster))
            yield from ask(
                {k: replace(one, step="personalise", expects={}, needs={}) for k, one in orders.items()}, aside=True
            )
        return state

    def personalise(self, order: Order, personal: Groups, client: Client, clock: Clock) -> Work:
        """Client step: start the personal adapter from the shared one, and train it once; nothing is sent back."""
        training = self._training(order, personal, client, clock)
        assert isinstance(self.local, Turns)
        copied = {
            name.replace(LORA, PERSONAL_LORA, 1): value
            for name, value in training.received.items()
            if name.startswith(f"{LORA}.")
        }
        parameters, numbers = yield from self.local.personal(training, {**training.start, **copied})
        parameters = yield from self.local.compared(training, parameters)
        kept = {name: value for name, value in parameters.items() if name not in training.received}
        return Reply(len(training.data), {}, numbers), {**personal, PARAMETERS: kept, TRAINED: parameters}


def feddpa(
    context: Context,
    *,
    variant: Annotated[
        Literal["T", "F"], Field(description="train both adapters in turn, or the personal one after the last round")
    ] = "T",
    local_weight: Annotated[
        float,
        Field(ge=0, le=1, description="weight of the personal adapter while it is trained; the other has the rest"),
    ] = 0.5,
    dynamic_weighting: Annotated[
        Dynamic,
        Field(
            description="weight of the personal adapter afterwards: strength · similarity, one minus that (as the "
            "authors' script has it), or local_weight"
        ),
    ] = "instance",
    strength: Annotated[float, Field(ge=0, description="lambda: factor of the similarity")] = 0.5,
    prompts: Annotated[int, Field(ge=1, description="own prompts that a prompt is compared with")] = 5,
    detach_branch: Annotated[
        bool, Field(description="let no gradient through the shared adapter while the personal one is trained")
    ] = False,
    connector_scope: ConnectorScope = "local",
) -> Averaging:
    """FedDPA (Yang et al., NeurIPS 2024): an averaged and a personal text adapter, in one model.

    For the model ``llava``. The average is unweighted, as in the authors' code. Until a client has trained its personal
    adapter the shared one alone counts. The connector is trained with the shared adapter only, as in Shepherd.
    """
    check_adapters(context, "feddpa", "dual", PERSONAL_LORA, MIXING)
    rule = Rule(local_weight, dynamic_weighting, strength, prompts)
    objective: Objective = SharedDetached(local_weight) if detach_branch else supervised
    local = Turns(rule, connector_scope, objective, alternate=variant == "T")
    kind = Averaging if variant == "T" else Finally
    return kind(context, local=local, share=shared(connector_scope), weigh=equally)
