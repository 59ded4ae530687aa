"""The in-process trainer: answers clients' requests on resident models, one by one or stacked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from polyfed.data.prefetch import ahead
from polyfed.data.samples import Batch, Samples
from polyfed.engine.adaptive import stepwise
from polyfed.engine.batching import Rule, Trial, signature, trial
from polyfed.engine.descent import Descent
from polyfed.engine.logged import LoggedMeans
from polyfed.engine.minibatches import StackedBatches, batches, epoch_orders, steps_of
from polyfed.engine.resident import Resident
from polyfed.engine.stacked import fit_stacked
from polyfed.method.protocol import Adaptive, Embed, Fit, Fitted, Gradient, Measure, Objective, Request
from polyfed.model.architecture import Architecture, Tensors, component_of
from polyfed.rng import Key, seeded
from polyfed.scenario.federation import Card

MEASURE_BATCH = 256
STACKED = "stacked"

Precision = Literal["float32", "bfloat16"]
Answered = Fitted | dict[str, float] | dict[str, Tensor]


@dataclass(frozen=True)
class Pending:
    """A client's request waiting for its answer; ``key`` seeds whatever is drawn for it."""

    card: Card
    request: Request
    key: tuple[Key, ...]


@dataclass(frozen=True)
class PendingFit:
    """A fit waiting for its turn."""

    card: Card
    request: Fit
    key: tuple[Key, ...]

    @property
    def steps(self) -> int:
        """Return the number of optimiser steps it takes."""
        recipe = self.request.recipe
        return steps_of(len(self.request.data), recipe.epochs, recipe.batch_size)


class Trainer:
    """Trains and measures on one device. Models are built once per set of components and reused.

    ``rule`` tells which fits are stacked; ``paths`` counts the fits by how they were done, and why. With ``precision``
    bfloat16 models compute in mixed precision (torch's autocast) on float32 parameters.
    """

    def __init__(
        self,
        architecture: Architecture,
        device: torch.device | None = None,
        rule: Rule | None = None,
        precision: Precision = "float32",
    ) -> None:
        self.architecture = architecture
        self.device = device or torch.device("cpu")
        self.rule = rule or Rule()
        self.precision = precision
        self.paths: Counter[str] = Counter()
        self._models: dict[tuple[str, ...], Resident] = {}
        # With each trial its objective, so that the id of that, which is part of the key, stays its own.
        self._trials: dict[Hashable, tuple[Trial, Objective]] = {}

    def width(self, card: Card) -> int:
        """Return how many clients with such a model to hand over at once."""
        return self.rule.width(self.model(self.components(card, frozenset(card.modalities))))

    def answer(self, pending: Sequence[Pending]) -> list[Answered]:
        """Answer requests, in their order."""
        answers: dict[int, Answered] = {}
        groups: dict[Hashable, dict[int, PendingFit]] = {}
        for place, one in enumerate(pending):
            if isinstance(one.request, Fit) and not len(one.request.data):
                self.paths["one by one: a client without samples"] += 1
                answers[place] = self.fit(one.card, one.request, one.key)
            elif isinstance(one.request, Fit):
                key = signature(self._fitted(one.card, one.request), one.request)
                groups.setdefault(key, {})[place] = PendingFit(one.card, one.request, one.key)
            elif isinstance(one.request, Gradient):
                answers[place] = self.gradient(one.card, one.request)
            elif isinstance(one.request, Embed):
                answers[place] = self.embed(one.card, one.request)
            else:
                answers[place] = self.measure(one.card, one.request)
        for key, group in groups.items():
            answers.update(zip(group, self._fit_group(key, list(group.values())), strict=True))
        return [answers[place] for place in range(len(pending))]

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

    def _fitted(self, card: Card, request: Fit) -> tuple[str, ...]:
        """Name the components that make up the model of a fit."""
        called = self.components(card, request.active)
        return called if request.components is None else tuple(name for name in called if name in request.components)

    # ------------------------------------------------------------------------------------------ training

    def _fit_group(self, key: Hashable, group: Sequence[PendingFit]) -> list[Fitted]:
        """Train clients whose fits have a signature in common."""
        first = group[0]
        components = self._fitted(first.card, first.request)
        model = self.model(components)
        moving = self._moving(model, components, first.request)
        obstacle, tried = self._obstacle(key, model, group)
        if obstacle is not None or not moving:
            self.paths[f"one by one: {obstacle or 'nothing to train'}"] += len(group)
            return [self.fit(one.card, one.request, one.key) for one in group]
        self.paths[STACKED] += len(group)
        at_once = self.rule.clients(model, first.request.recipe, tried.sample_bytes)
        order = sorted(range(len(group)), key=lambda place: -group[place].steps)
        fitted: dict[int, Fitted] = {}
        for start in range(0, len(order), at_once):
            places = order[start : start + at_once]
            fitted.update(zip(places, self._fit_stack(model, moving, [group[place] for place in places]), strict=True))
        return [fitted[place] for place in range(len(group))]

    def _obstacle(self, key: Hashable, model: Resident, group: Sequence[PendingFit]) -> tuple[str | None, Trial]:
        """Return why a group is not stacked, None if it is."""
        untried = Trial(None)
        against = self.rule.against(model)
        if against is not None:
            return against, untried
        if isinstance(group[0].request.objective, Adaptive):
            return "the objective has a memory, or changes gradients", untried
        if len(group) == 1 and self.rule.width(model) == 1:
            return "engine.batching_memory holds one client only", untried
        if len(group) == 1:
            return "no other client has the same model, objective and kinds of samples", untried
        if key not in self._trials:
            set_mode(model, training=True)
            request = group[0].request
            with self.computing():
                self._trials[key] = trial(self.architecture, model, request), request.objective
        found, _ = self._trials[key]
        return found.obstacle, found

    def _fit_stack(self, model: Resident, moving: list[str], group: Sequence[PendingFit]) -> list[Fitted]:
        requests = [one.request for one in group]
        recipe, active = requests[0].recipe, requests[0].active
        orders = [epoch_orders(len(one.request.data), recipe.epochs, recipe.batch_size, one.key) for one in group]
        data = StackedBatches([request.data for request in requests], orders, recipe.batch_size, active)
        set_mode(model, training=True)
        with self.computing():
            return fit_stacked(model, moving, requests, data, self.device)

    def fit(self, card: Card, request: Fit, key: tuple[Key, ...]) -> Fitted:
        """Train one client as asked. The result depends on the request and the key alone."""
        components = self._fitted(card, request)
        model = self.model(components)
        model.load(request.start)
        moving = self._moving(model, components, request)
        if not moving:
            return Fitted(request.start, 0, {}, request.memory)
        model.train_only(moving)
        set_mode(model, training=True)
        with seeded(*key, "module", device=self.device), self.computing():
            steps, numbers, memory = self._descend(model, moving, request, key)
        return Fitted({**request.start, **model.snapshot(moving)}, steps, numbers, memory)

    def _moving(self, model: Resident, components: tuple[str, ...], request: Fit) -> list[str]:
        """Name the parameters that a fit moves."""
        if request.trains is None:
            return list(model.parameters)
        return [name for name in model.parameters if component_of(name, components) in request.trains]

    def _descend(
        self, model: Resident, moving: list[str], request: Fit, key: tuple[Key, ...]
    ) -> tuple[int, dict[str, float], Tensors]:
        recipe, extra = request.recipe, self._moved(request.extra)
        logged = LoggedMeans()
        parts = batches(len(request.data), recipe.epochs, recipe.batch_size, key)
        descent = Descent(model, moving, recipe, len(parts))
        objective = stepwise(request, key, self.device)
        for batch, positions in zip(self._batches(request.data, parts, request.active), parts, strict=True):
            loss, scalars, change = objective(model, batch, extra)
            descent.step(loss, change)
            logged.add({"loss": loss, **scalars}, len(positions))
        memory = {name: value.cpu() for name, value in objective.memory.items()}
        return len(parts), logged.means(), memory

    @torch.no_grad()
    def measure(self, card: Card, request: Measure) -> dict[str, float]:
        """Return the sample-weighted means of the objective's scalars."""
        model = self.model(self.components(card, request.active))
        model.load(request.parameters)
        set_mode(model, training=False)
        extra = self._moved(request.extra)
        logged = LoggedMeans()
        for batch, size in self._in_order(request.data, request.active):
            with self.computing():
                loss, scalars = request.objective(model, batch, extra)
            logged.add({"loss": loss, **scalars}, size)
        return logged.means()

    def gradient(self, card: Card, request: Gradient) -> dict[str, Tensor]:
        """Return the gradient of the objective over the data, on the CPU.

        Parameters it does not reach are left out; without data all are.
        """
        if not len(request.data):
            return {}
        model = self.model(self.components(card, request.active))
        model.load(request.parameters)
        model.train_only(model.parameters)
        set_mode(model, training=False)
        extra = self._moved(request.extra)
        total: dict[str, Tensor] = {}
        for batch, size in self._in_order(request.data, request.active):
            with self.computing():
                loss, _ = request.objective(model, batch, extra)
            slopes = torch.autograd.grad(loss, list(model.parameters.values()), allow_unused=True)
            for name, slope in zip(model.parameters, slopes, strict=True):
                if slope is not None:
                    share = slope * (size / len(request.data))
                    total[name] = total[name] + share if name in total else share
        return {name: slope.cpu() for name, slope in total.items()}

    @torch.no_grad()
    def embed(self, card: Card, request: Embed) -> dict[str, Tensor]:
        """Return the features (samples, width) by modality, on the CPU."""
        model = self.model(self.components(card, request.active))
        model.load(request.parameters)
        set_mode(model, training=False)
        found: dict[str, list[Tensor]] = {}
        for batch, _ in self._in_order(request.data, request.active):
            with self.computing():
                features = model(batch).features
            for modality, values in features.items():
                found.setdefault(modality, []).append(values.float().cpu())
        return {modality: torch.cat(held) for modality, held in found.items()}

    # ------------------------------------------------------------------------------------------ samples and device

    def batch(self, data: Samples, positions: Tensor, active: frozenset[str]) -> Batch:
        """Fetch samples onto the device."""
        return data.batch(positions, active).to(self.device)

    def _batches(self, data: Samples, parts: Sequence[Tensor], active: frozenset[str]) -> Iterable[Batch]:
        """Fetch batches; those that come from a disk are fetched while the one before is in use."""
        if data.resident:
            return (self.batch(data, positions, active) for positions in parts)
        return ahead(lambda positions: self.batch(data, positions, active), parts)

    def _in_order(self, data: Samples, active: frozenset[str]) -> Iterator[tuple[Batch, int]]:
        """Fetch all samples in batches that are measured at once, and the number of samples in each."""
        parts = torch.split(torch.arange(len(data)), MEASURE_BATCH)
        return zip(self._batches(data, parts, active), map(len, parts), strict=True)

    def _moved(self, groups: Mapping[str, Tensors]) -> dict[str, dict[str, Tensor]]:
        return {
            group: {name: value.to(self.device) for name, value in tensors.items()} for group, tensors in groups.items()
        }

    def computing(self) -> AbstractContextManager[object]:
        """Return the context in which models compute."""
        if self.precision == "float32":
            return nullcontext()
        # Autocast would keep the bfloat16 copy of a parameter for as long as it is entered, over many steps.
        return torch.autocast(self.device.type, dtype=torch.bfloat16, cache_enabled=False)


def set_mode(model: Resident, *, training: bool) -> None:
    """Put a module into training or evaluation mode, if it is not there yet."""
    if model.module.training != training:
        model.module.train(training)
