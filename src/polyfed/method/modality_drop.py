"""Modality drop: a client in which one modality is far ahead trains the others alone (a baseline of BMSFed's code)."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from pydantic import Field

from polyfed.data.schema import Task
from polyfed.method.averaging import Averaging, Components, Context
from polyfed.method.balance import check_classified, portrait
from polyfed.method.classic import MissingRule
from polyfed.method.combine import Mean, MeanOverHolders, Weigh
from polyfed.method.protocol import UNTRAINED, Clock, Reducer, Reply, Request, untrained
from polyfed.method.training import Descend, Trained, Training
from polyfed.model.architecture import Tensors, component_of
from polyfed.scenario.federation import Client, ClientId


def too_far_ahead(accuracies: Mapping[str, float], threshold: float) -> frozenset[str]:
    """Name the modalities that are more than ``threshold`` times as accurate as the weakest."""
    weakest = min(accuracies.values(), default=0.0)
    return frozenset(name for name, accuracy in accuracies.items() if accuracy > threshold * weakest)


@dataclass(frozen=True)
class Drop:
    """Measure how accurate each modality is, and train without those that are far ahead of the weakest.

    Accuracy is that of the nearest of the client's own class prototypes, under the model received, on half of its
    training samples, drawn anew each time. The reply tells which components were not trained: the server leaves them
    out of its averages, where to average what was sent back unchanged would hold back those who trained.
    """

    threshold: float
    tasks: Mapping[str, Task]
    components: Components

    def __call__(self, training: Training) -> Generator[Request, Any, Trained]:
        """Train one client."""
        card = training.client.card
        if len(training.active) < 2 or not any(self.tasks[task].kind == "classification" for task in card.tasks):
            return (yield from Descend()(training))
        active = training.active - (yield from self._dropped(training))
        data = training.client.train.holding(active)
        trained = yield from Descend()(replace(training, active=active, data=data))
        idle = set(self.components(training.active, card.tasks)) - set(self.components(active, card.tasks))
        return replace(trained, numbers={**trained.numbers, **{f"{UNTRAINED}{name}": 1.0 for name in sorted(idle)}})

    def _dropped(self, training: Training) -> Generator[Request, Any, frozenset[str]]:
        """Find the modalities not to train; one of which there is no sample in the half is not judged."""
        measured = half(training)
        found = yield from portrait(measured, self.tasks, training.start, training.active)
        present = measured.client.train.present
        judged = {name: value for name, value in found.accuracies.items() if bool(present[name].any())}
        return too_far_ahead(judged, self.threshold)


def half(training: Training) -> Training:
    """Return the training of a client that has only half of its samples, rounded up."""
    client = training.client
    generator = training.clock.generator("modality drop", client.card.id)
    count = len(client.train)
    kept = torch.randperm(count, generator=generator)[: (count + 1) // 2].sort().values
    return replace(training, client=Client.of(client.card, client.train.take(kept), client.validation, client.test))


class MeanOverTrainers:
    """Weighted mean of each tensor over the clients that trained it."""

    def __init__(self, weigh: Weigh) -> None:
        self._means = MeanOverHolders(weigh)

    @property
    def counted(self) -> tuple[ClientId, ...]:
        """Clients whose replies were added."""
        return self._means.counted

    def add(self, client: ClientId, reply: Reply) -> None:
        """Take one reply in, without what the client says it did not train."""
        idle = untrained(reply)
        if idle:
            held = reply.tensors["parameters"]
            trained = {name: value for name, value in held.items() if not belongs(name, idle)}
            reply = replace(reply, tensors={**reply.tensors, "parameters": trained})
        self._means.add(client, reply)

    def finish(self) -> Mean:
        """Return the means."""
        return self._means.finish()


def belongs(parameter: str, components: Collection[str]) -> bool:
    """Whether a parameter is part of one of the components."""
    try:
        component_of(parameter, components)
    except LookupError:
        return False
    return True


def mean_over_trainers(weigh: Weigh, current: Tensors, clock: Clock) -> Reducer[Mean]:
    """Average each tensor over the clients that trained it."""
    return MeanOverTrainers(weigh)


def modality_drop(
    context: Context,
    *,
    threshold: Annotated[
        float, Field(ge=1, description="a modality this many times as accurate as the weakest is not trained")
    ] = 2.0,
    missing: MissingRule = "renormalise",
) -> Averaging:
    """Modality drop (a baseline in the code of BMSFed, Fan et al., ECCV 2024): clients train only weak modalities.

    A component is averaged over the clients that trained it; the head is trained by all. Replies hold all that was
    received all the same, so nothing is saved in bytes.
    """
    check_classified(context.tasks, "modality-drop")
    local = Drop(threshold, context.tasks, context.components)
    return Averaging(context, local=local, combine=mean_over_trainers, missing=missing)
