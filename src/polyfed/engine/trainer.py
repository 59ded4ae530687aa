"""The in-process trainer: answers clients' requests one by one on resident models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polyfed.data.samples import Batch, Samples
from polyfed.engine.optimizers import Optimizer, clip, optimizer
from polyfed.engine.resident import Resident
from polyfed.method.protocol import Fit, Fitted, Measure, Recipe, Request
from polyfed.model.architecture import Architecture, Tensors, component_of
from polyfed.model.losses import Logged, Share
from polyfed.rng import Key, seeded, torch_generator
from polyfed.scenario.federation import Card

MEASURE_BATCH = 256


@dataclass(frozen=True)
class Pending:
    """A client's request waiting for its answer; ``key`` seeds whatever is drawn for it."""

    card: Card
    request: Request
    key: tuple[Key, ...]


class Trainer:
    """Trains and measures on one device. Models are built once per set of components and reused.

    ``width`` is how many requests the trainer likes to be handed at once; this one works through them singly.
    """

    width = 1

    def __init__(self, architecture: Architecture, device: torch.device | None = None) -> None:
        self.architecture = architecture
        self.device = device or torch.device("cpu")
        self._models: dict[tuple[str, ...], Resident] = {}

    def answer(self, pending: Sequence[Pending]) -> list[Fitted | dict[str, float]]:
        """Answer requests, in their order."""
        return [
            self.fit(one.card, one.request, one.key)
            if isinstance(one.request, Fit)
            else self.measure(one.card, one.request)
            for one in pending
        ]

    def model(self, components: tuple[str, ...]) -> Resident:
        """Return the resident model of these components."""
        if components not in self._models:
            module = self.architecture.assemble(components).to(self.device)
            self._models[components] = Resident(module, self.architecture.tasks)
        return self._models[components]

    def components(self, card: Card, active: frozenset[str]) -> tuple[str, ...]:
        """Name the components of a client that take part when these modalities are active."""
        called = self.architecture.components(active & set(card.modalities), card.tasks)
        return tuple(name for name in called if name in card.components)

    def fit(self, card: Card, request: Fit, key: tuple[Key, ...]) -> Fitted:
        """Train as asked. The result depends on the request and the key alone."""
        components = self.components(card, request.active)
        model = self.model(components)
        model.load(request.start)
        moving = []
        for name, parameter in model.parameters.items():
            moves = request.trains is None or component_of(name, components) in request.trains
            parameter.requires_grad_(moves)
            if moves:
                moving.append(name)
        if not moving:
            return Fitted(request.start, 0, {})
        set_mode(model, training=True)
        with seeded(*key, "module", device=self.device):
            steps, numbers = self._descend(model, moving, request, key)
        trained = model.snapshot()
        return Fitted({name: trained.get(name, value) for name, value in request.start.items()}, steps, numbers)

    def _descend(
        self, model: Resident, moving: list[str], request: Fit, key: tuple[Key, ...]
    ) -> tuple[int, dict[str, float]]:
        recipe, extra = request.recipe, self._moved(request.extra)
        descent = Descent(model, moving, recipe)
        logged = LoggedMeans()
        steps = 0
        for positions in batches(len(request.data), recipe.epochs, recipe.batch_size, key):
            batch = self.batch(request.data, positions, request.active)
            loss, scalars = request.objective(model, batch, extra)
            descent.step(loss)
            logged.add({"loss": loss, **scalars}, len(positions))
            steps += 1
        return steps, logged.means()

    @torch.no_grad()
    def measure(self, card: Card, request: Measure) -> dict[str, float]:
        """Return the sample-weighted means of the objective's scalars."""
        model = self.model(self.components(card, request.active))
        model.load(request.parameters)
        set_mode(model, training=False)
        extra = self._moved(request.extra)
        logged = LoggedMeans()
        for positions in torch.split(torch.arange(len(request.data)), MEASURE_BATCH):
            loss, scalars = request.objective(model, self.batch(request.data, positions, request.active), extra)
            logged.add({"loss": loss, **scalars}, len(positions))
        return logged.means()

    def batch(self, data: Samples, positions: Tensor, active: frozenset[str]) -> Batch:
        """Fetch samples onto the device."""
        batch = data.batch(positions, active)
        if self.device.type == "cpu":
            return batch
        return Batch(*({name: value.to(self.device) for name, value in part.items()} for part in batch))

    def _moved(self, groups: Mapping[str, Tensors]) -> dict[str, dict[str, Tensor]]:
        return {
            group: {name: value.to(self.device) for name, value in tensors.items()} for group, tensors in groups.items()
        }


class Descent:
    """Optimiser steps of one fit.

    A parameter that the first loss does not reach has no gradient and must not move, whatever weight decay or momentum
    say; then every parameter is stepped by itself. Otherwise (the usual case) all are stepped as flat stretches, and
    where a later loss does not reach a parameter its gradient counts as zero.
    """

    def __init__(self, model: Resident, moving: list[str], recipe: Recipe) -> None:
        self._model = model
        self._recipe = recipe
        self._parameters = [model.parameters[name] for name in moving]
        self._names = moving
        self._slopes: list[Tensor] | None = None
        self._rule: Optimizer | None = None

    def step(self, loss: Tensor) -> None:
        """Move the parameters by the gradient of a loss."""
        gradients = self._gradients(loss)
        assert self._rule is not None
        if self._recipe.clip_norm is not None:
            clip(gradients, self._recipe.clip_norm)
        with torch.no_grad():
            self._rule.step(gradients)

    def _gradients(self, loss: Tensor) -> Sequence[Tensor | None]:
        if self._slopes is not None:
            for slope in self._slopes:
                slope.zero_()
            loss.backward()  # type: ignore[no-untyped-call]
            return self._slopes
        found = torch.autograd.grad(loss, self._parameters, allow_unused=True, materialize_grads=False)
        if self._rule is None:
            self._begin(found)
        return found if self._slopes is None else self._slopes

    def _begin(self, found: Sequence[Tensor | None]) -> None:
        if any(slope is None for slope in found):
            self._rule = optimizer(self._recipe, [parameter.data for parameter in self._parameters])
            return
        self._slopes = self._model.segments(self._model.slopes, self._names)
        self._rule = optimizer(self._recipe, self._model.segments(self._model.values, self._names))
        for parameter, slope in zip(self._parameters, found, strict=True):
            assert parameter.grad is not None and slope is not None
            parameter.grad.copy_(slope)


def set_mode(model: Resident, *, training: bool) -> None:
    """Put a module into training or evaluation mode, if it is not there yet."""
    if model.module.training != training:
        model.module.train(training)


class LoggedMeans:
    """Means of what objectives log, kept as tensors until the end so that no step waits for the device."""

    def __init__(self) -> None:
        self._shares: dict[str, Share] = {}

    def add(self, logged: Logged, samples: int) -> None:
        """Take in what was logged for one batch."""
        for name, value in logged.items():
            share = value if isinstance(value, Share) else Share(value.detach() * samples, torch.tensor(samples))
            held = self._shares.get(name)
            if held is not None:
                share = Share(held.total + share.total, held.samples + share.samples)
            self._shares[name] = share

    def means(self) -> dict[str, float]:
        """Return the means; a name of which no sample counted has none."""
        return {name: float(held.total) / int(held.samples) for name, held in self._shares.items() if int(held.samples)}


def batches(count: int, epochs: int, size: int, key: tuple[Key, ...]) -> list[Tensor]:
    """Return positions of every mini-batch: a new permutation per epoch, whose last batch may be smaller."""
    generator = torch_generator(*key, "batches")
    at_once = min(size, count)  # torch cannot count as far as a user can
    return [part for _ in range(epochs) for part in torch.split(torch.randperm(count, generator=generator), at_once)]
