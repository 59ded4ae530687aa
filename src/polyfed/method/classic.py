"""The classic methods, each an ``Averaging`` of a few parts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from polyfed.method.averaging import Averaging, Context, Missing, by_examples, equally, nothing
from polyfed.method.objective import Proximal
from polyfed.method.protocol import Reply
from polyfed.method.server import Adaptive, ServerSGD, Variant
from polyfed.method.training import Descend, MatchedPasses, expected_epochs
from polyfed.scenario.federation import Card

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
MissingRule = Annotated[
    Missing, Field(description="a client without a component: not counted, or counted as unchanged")
]


def local(context: Context) -> Averaging:
    """Every client trains alone; nothing is exchanged."""
    return Averaging(context, share=nothing)


def centralized(context: Context) -> Averaging:
    """One model trained on everybody's samples pooled: the reference without privacy.

    It sees the samples as often as a federated run does that asks the selection's share of clients per round: in all
    ceil(rounds · epochs · share) times.
    """
    return Averaging(
        context, local=MatchedPasses(context.participation, expected_epochs(context.recipe)), share=nothing
    )


def fedavg(context: Context, *, missing: MissingRule = "renormalise") -> Averaging:
    """FedAvg (McMahan et al., AISTATS 2017): each component averaged over its holders, weighted by examples."""
    return Averaging(context, missing=missing)


def fedavgm(
    context: Context,
    *,
    server_lr: Positive = 1.0,
    momentum: Fraction = 0.9,
    missing: MissingRule = "renormalise",
) -> Averaging:
    """FedAvgM: FedAvg with momentum on the server (Hsu et al., 2019)."""
    return Averaging(context, missing=missing, server=ServerSGD(server_lr, momentum))


def fedprox(context: Context, *, mu: NonNegative = 0.01, missing: MissingRule = "renormalise") -> Averaging:
    """FedProx (Li et al., MLSys 2020): local loss plus (mu/2) times the squared distance from the received model."""
    return Averaging(context, local=Descend(Proximal(mu), anchored=True), missing=missing)


def fedadam(
    context: Context,
    *,
    server_lr: Positive = 0.01,
    beta1: Fraction = 0.9,
    beta2: Fraction = 0.99,
    tau: Positive = 1e-3,
    weighting: Annotated[
        Literal["samples", "uniform"], Field(description="weights of the average: by samples, or the same for all")
    ] = "samples",
    variant: Annotated[Variant, Field(description="moments of the paper, or those of OpenFedLLM's code")] = "paper",
    missing: MissingRule = "renormalise",
) -> Averaging:
    """FedAdam (Reddi et al., ICLR 2021): Adam on the average change of the clients."""
    weigh = by_examples if weighting == "samples" else equally
    server = Adaptive("adam", server_lr, beta1, beta2, tau, variant)
    return Averaging(context, weigh=weigh, missing=missing, server=server)


def fedyogi(
    context: Context,
    *,
    server_lr: Positive = 0.01,
    beta1: Fraction = 0.9,
    beta2: Fraction = 0.99,
    tau: Positive = 1e-3,
    missing: MissingRule = "renormalise",
) -> Averaging:
    """FedYogi (Reddi et al., ICLR 2021): Yogi on the average change of the clients."""
    return Averaging(context, missing=missing, server=Adaptive("yogi", server_lr, beta1, beta2, tau))


def fedadagrad(
    context: Context,
    *,
    server_lr: Positive = 0.01,
    beta1: Fraction = 0.0,
    tau: Positive = 1e-3,
    missing: MissingRule = "renormalise",
) -> Averaging:
    """FedAdagrad (Reddi et al., ICLR 2021): Adagrad on the average change of the clients."""
    return Averaging(context, missing=missing, server=Adaptive("adagrad", server_lr, beta1, 0.0, tau))


def multi_fedavg(context: Context, *, alpha: Positive = 1.0) -> Averaging:
    """Multi-FedAvg (after Zhao et al., 2021): owners' average; clients with several modalities count alpha-fold.

    w = sum_i a_i n_i w_i / sum_i a_i n_i over the owners, a_i = alpha for clients with two or more modalities, else 1.
    With alpha = 1, the default, it is FedAvg with ``missing: renormalise``.
    """

    def weigh(card: Card, reply: Reply) -> float:
        return reply.examples * (alpha if len(card.modalities) >= 2 else 1.0)

    return Averaging(context, weigh=weigh)
