"""DisentAFL: a mixture of experts, averaged knowledge type by knowledge type, and disentangled by a loss."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from polyfed.errors import UserError
from polyfed.method.affinity import Affinity, types_of
from polyfed.method.affinity_routing import Routed, as_they_are
from polyfed.method.averaging import Averaging, Context
from polyfed.method.classic import MissingRule
from polyfed.method.disentanglement import BETA, EXTRA, Disentangled, Variant
from polyfed.method.protocol import Fit, Method, Request, fit
from polyfed.method.quantized import Quantized, rounded
from polyfed.method.training import Descend, Local, Trained, Training
from polyfed.model.expert_names import GATE, GENERAL, expert

Disentanglement = Literal[Variant, "none"]
Router = Literal["ownership", "affinity"]

AFFINITY = Affinity()
WARM_UP = 5

# Why an option is refused, and what to do:
WITHOUT_LOSS = "has no effect with method.disentanglement none: leave it out, or choose another disentanglement"
BY_OWNERSHIP = "has no effect with method.router ownership: leave it out, or set method.router to affinity"


@dataclass(frozen=True)
class Disentangle:
    """Minimise the supervised loss plus beta · min(1, round / ``warm_up``) times the disentanglement loss."""

    objective: Disentangled
    beta: float
    warm_up: int

    def __call__(self, training: Training) -> Generator[Request, Any, Trained]:
        """Train one client; without an epoch nothing is done."""
        if not training.recipe.epochs:
            return Trained(training.start, {"steps": 0.0})
        beta = self.beta * min(1.0, training.clock.round / self.warm_up)
        extra = {EXTRA: {BETA: torch.tensor(beta, dtype=torch.float32)}}
        request = Fit(self.objective, training.start, training.data, training.recipe, training.active, extra=extra)
        fitted = yield from fit(request)
        return Trained(fitted.parameters, {**fitted.numbers, "steps": float(fitted.steps)})


@dataclass(frozen=True)
class Shared:
    """Tells which parameters travel: all but those of the components with these names or beginnings."""

    private: tuple[str, ...]

    def __call__(self, parameter: str) -> bool:
        """Whether a parameter travels."""
        return not parameter.startswith(self.private)


def disentafl(
    context: Context,
    *,
    beta: Annotated[
        float | None, Field(ge=0, le=1e6, description="weight of the disentanglement loss; null: 0.5, hsic 0.1")
    ] = None,
    disentanglement: Annotated[
        Disentanglement,
        Field(description="squared cosines of all pairs of samples, of each sample's own, dependence, or no such loss"),
    ] = "orth_all_pairs",
    warm_up: Annotated[int, Field(ge=1, description="rounds in which the weight grows to beta")] = WARM_UP,
    share_general: Annotated[
        bool, Field(description="whether the general stack, which all clients have in common, is shared")
    ] = True,
    quantize_bits: Annotated[
        Literal[8] | None, Field(description="bits per parameter in messages, both ways; null: as they are")
    ] = None,
    missing: MissingRule = "renormalise",
    router: Annotated[
        Router,
        Field(description="who shares a knowledge type: its owners, or those of them that do not disagree with others"),
    ] = "ownership",
    affinity: Annotated[
        Affinity, Field(description="router affinity: threshold, patience, decay, retest_every")
    ] = AFFINITY,
) -> Method[Any]:
    """DisentAFL (after Chen and Zhang, AAAI 2024): experts averaged over their owners, and disentangled by a loss.

    A reconstruction from the abstract, the slides and a third-party re-implementation (the baseline in Lee et al.,
    "TAP", arXiv 2509.26524); the paper could not be read. For the model ``experts``: a client has the experts that
    its modalities and tasks call for (routing by ownership) and keeps its gates. Every other component is averaged
    over those who hold it, weighted by samples. With routing by affinity a client that long disagrees with the others
    about a knowledge type keeps its own. Every default is our choice. Raises UserError for options without effect.
    """
    if disentanglement == "none":
        check_idle({"beta": beta, "warm_up": warm_up}, {"beta": None, "warm_up": WARM_UP}, WITHOUT_LOSS)
    if router == "ownership":
        given, usual = ({f"affinity.{k}": v for k, v in rule.model_dump().items()} for rule in (affinity, AFFINITY))
        check_idle(given, usual, BY_OWNERSHIP)
    names = context.components(tuple(context.widths()), tuple(context.tasks))
    averaging = Averaging(
        context,
        local=local_of(names, disentanglement, beta, warm_up),
        share=Shared((f"{GATE}.",) if share_general else (f"{GATE}.", *general(names))),
        missing=missing,
    )
    method: Method[Any] = averaging
    if router == "affinity":
        method = routed(averaging, names, affinity, quantized=quantize_bits is not None)
    return method if quantize_bits is None else Quantized(method)


def check_idle(given: Mapping[str, Any], usual: Mapping[str, Any], why: str) -> None:
    """Raise UserError for the first option without effect that is not as usual."""
    for option, value in given.items():
        if value != usual[option]:
            raise UserError(f"method.{option}: {value} {why}")


def routed(averaging: Averaging, components: Collection[str], rule: Affinity, *, quantized: bool) -> Routed:
    """Return the averaging with routing by affinity. Raises UserError where there is no knowledge type to leave."""
    types = types_of(components)
    if not types:
        raise UserError("method.router: 'affinity' needs a model of experts or stacks: set model.name to 'experts'")
    return Routed(averaging, types, rule, rounded if quantized else as_they_are)


def local_of(components: Collection[str], variant: Disentanglement, beta: float | None, warm_up: int) -> Local:
    """Return the local training. Raises UserError where there is nothing to disentangle."""
    if variant == "none":
        return Descend()
    if not any(name.startswith("expert.") for name in components):
        raise UserError(
            f"method.disentanglement: {variant!r} needs a model whose paths have latents: set model.name to 'experts' "
            "with expert_grid pairs or axes, or disentanglement to none"
        )
    usual = 0.1 if variant == "hsic" else 0.5
    return Disentangle(Disentangled(variant), usual if beta is None else beta, warm_up)


def general(components: Collection[str]) -> tuple[str, ...]:
    """Return the beginnings of the parameters of the general stack, whichever grid these components are of."""
    pair = expert(GENERAL, GENERAL)
    experts = (pair,) if pair in components else (expert("input", GENERAL), expert("output", GENERAL))
    stack = ("projection", f"self_attention.{GENERAL}", f"cross_attention.{GENERAL}", *experts)
    return tuple(f"{name}." for name in stack)
