"""FedNova: local changes are divided by how much local work they took (Wang et al., NeurIPS 2020)."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from polyfed.method.averaging import Averaging, Context
from polyfed.method.classic import Fraction, MissingRule, NonNegative
from polyfed.method.combine import Mean, MeanOverHolders, Weigh
from polyfed.method.objective import Proximal
from polyfed.method.protocol import Clock, Recipe, Reducer, Reply, Request
from polyfed.method.server import Replace, ServerSGD
from polyfed.method.training import Descend, Local, Trained, Training
from polyfed.model.architecture import Tensors
from polyfed.scenario.federation import ClientId

NORM = "local_norm"
LARGEST_NORM = 1e6
SMALLEST_NORM = 1e-3
"""Less than the work of any step, the first of which has the full learning rate: changes are divided by it."""


@lru_cache(maxsize=4096)
def local_norm(recipe: Recipe, steps: int, mu: float = 0.0) -> float:
    """Return ‖a‖₁, where a_i tells how often the gradient of local step i enters the local change.

    The change is −lr Σ a_i g_i. With momentum ρ, share s_j of the learning rate and α = lr μ the solver of this
    library gives m = ρ m + g_j − α D, D += s_j m (D: the change over −lr). For plain SGD a = 1 and ‖a‖₁ = steps.
    Adam's steps are not linear in the gradients: a = 1 is all that can be said of them.
    """
    if recipe.optimizer != "sgd":
        return float(steps)
    momentum, change = np.zeros(steps), np.zeros(steps)
    for step in range(steps):
        momentum *= recipe.momentum
        momentum[step] += 1
        momentum -= recipe.lr * mu * change
        change += recipe.share_of_lr(step, steps) * momentum
    return float(np.abs(change).sum())


@dataclass(frozen=True)
class Normed:
    """Local training whose reply also holds ‖a‖₁."""

    local: Local
    mu: float = 0.0

    def __call__(self, training: Training) -> Generator[Request, Any, Trained]:
        """Train and report."""
        trained = yield from self.local(training)
        norm = local_norm(training.recipe, int(trained.numbers["steps"]), self.mu)
        return replace(trained, numbers={**trained.numbers, NORM: norm})


class NormalisedMean:
    """w + τ Σ q_k (x_k − w) / ‖a_k‖₁ with τ = Σ q_k ‖a_k‖₁, for each tensor over the clients that hold it.

    Equation 5 of the paper with its default τ; q_k are the clients' weights, adding up to 1 over the holders.
    """

    def __init__(self, weigh: Weigh, current: Tensors) -> None:
        self._weigh = weigh
        self._current = current
        self._changes = MeanOverHolders(self._weight)
        self._norms: dict[str, float] = {}

    def _weight(self, client: ClientId, reply: Reply) -> float:
        return self._weigh(client, reply) if reply.numbers[NORM] >= SMALLEST_NORM else 0.0

    @property
    def counted(self) -> tuple[ClientId, ...]:
        """Clients whose replies were added."""
        return self._changes.counted

    def add(self, client: ClientId, reply: Reply) -> None:
        """Take one reply in; one that took no step, or says that it took less than one, changes nothing."""
        norm, weight = reply.numbers[NORM], self._weight(client, reply)
        tensors = reply.tensors.get("parameters", {}) if weight > 0 else {}
        for name in tensors:
            self._norms[name] = self._norms.get(name, 0.0) + weight * norm
        scaled = {name: (value - self._current[name]).div_(norm) for name, value in tensors.items()}
        self._changes.add(client, replace(reply, tensors={"parameters": scaled}))

    def finish(self) -> Mean:
        """Return what each tensor moves to."""
        mean = self._changes.finish()
        values = {
            name: self._current[name] + (self._norms[name] / mean.weights[name]) * change
            for name, change in mean.values.items()
        }
        return replace(mean, values=values)


def normalised_mean(weigh: Weigh, current: Tensors, clock: Clock) -> Reducer[Mean]:
    """Make the reducer of a round."""
    return NormalisedMean(weigh, current)


def fednova(
    context: Context, *, mu: NonNegative = 0.0, gmf: Fraction = 0.0, missing: MissingRule = "renormalise"
) -> Averaging:
    """FedNova (Wang et al., NeurIPS 2020): local changes are normalised by the local work they took.

    ``mu`` adds FedProx's proximal term, ``gmf`` is momentum on the server. The local optimiser should be sgd (with
    momentum, weight decay or a schedule, as you like); of adam only the number of steps is taken into account.
    """
    if context.recipe.optimizer != "sgd":
        warnings.warn(
            f"fednova: of the local optimiser {context.recipe.optimizer} only the number of steps is normalised by",
            stacklevel=2,
        )
    local = Descend(Proximal(mu), anchored=True) if mu else Descend()
    server = ServerSGD(1.0, gmf) if gmf else Replace()
    needs = {NORM: (0.0, LARGEST_NORM)}
    combine = normalised_mean
    return Averaging(context, local=Normed(local, mu), combine=combine, missing=missing, server=server, needs=needs)
