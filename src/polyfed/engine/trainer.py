"""The in-process trainer: answers clients' requests one by one on resident models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from polyfed.data.samples import Batch, Samples
from polyfed.data.schema import Task
from polyfed.engine.optimizers import clip, optimizer
from polyfed.method.protocol import Fit, Fitted, Measure, Request
from polyfed.model.architecture import Architecture, Outputs, Tensors, component_of
from polyfed.rng import Key, seeded, torch_generator
from polyfed.scenario.federation import Card

MEASURE_BATCH = 256


@dataclass(frozen=True)
class Pending:
    """A client's request waiting for its answer; ``key`` seeds whatever is drawn for it."""

    card: Card
    request: Request
    key: tuple[Key, ...]


@dataclass
class Bound:
    """A resident model as an objective sees it."""

    module: nn.Module
    tasks: Mapping[str, Task]
    parameters: dict[str, nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = dict(self.module.named_parameters())

    def __call__(self, batch: Batch) -> Outputs:
        """Compute features and predictions."""
        outputs: Outputs = self.module(batch)
        return outputs

    @torch.no_grad()
    def load(self, values: Tensors) -> None:
        """Copy values into the resident parameters; every one of them must be given."""
        for name, parameter in self.parameters.items():
            if name not in values:
                raise LookupError(f"no value for parameter {name!r}")
            parameter.copy_(values[name])


class Trainer:
    """Trains and measures on one device. Models are built once per set of components and reused.

    ``width`` is how many requests the trainer likes to be handed at once; this one works through them singly.
    """

    width = 1

    def __init__(self, architecture: Architecture, device: torch.device | None = None) -> None:
        self.architecture = architecture
        self.device = device or torch.device("cpu")
        self._models: dict[tuple[str, ...], Bound] = {}

    def answer(self, pending: Sequence[Pending]) -> list[Fitted | dict[str, float]]:
        """Answer requests, in their order."""
        return [
            self.fit(one.card, one.request, one.key)
            if isinstance(one.request, Fit)
            else self.measure(one.card, one.request)
            for one in pending
        ]

    def model(self, components: tuple[str, ...]) -> Bound:
        """Return the resident model of these components."""
        if components not in self._models:
            module = self.architecture.assemble(components).to(self.device)
            self._models[components] = Bound(module, self.architecture.tasks)
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
        for name, parameter in model.parameters.items():
            parameter.requires_grad_(request.trains is None or component_of(name, components) in request.trains)
        moving = [parameter for parameter in model.parameters.values() if parameter.requires_grad]
        model.module.train()
        with seeded(*key, "module", device=self.device):
            steps, numbers = self._descend(model, moving, request, key)
        trained = {name: value.detach().to("cpu", copy=True) for name, value in model.parameters.items()}
        return Fitted({name: trained.get(name, value) for name, value in request.start.items()}, steps, numbers)

    def _descend(
        self, model: Bound, moving: list[nn.Parameter], request: Fit, key: tuple[Key, ...]
    ) -> tuple[int, dict[str, float]]:
        recipe, extra = request.recipe, self._moved(request.extra)
        rule = optimizer(recipe, [parameter.data for parameter in moving])
        logged = LoggedMeans()
        steps = 0
        for positions in batches(len(request.data), recipe.epochs, recipe.batch_size, key):
            batch = self.batch(request.data, positions, request.active)
            loss, scalars = request.objective(model, batch, extra)
            gradients = torch.autograd.grad(loss, moving, allow_unused=True, materialize_grads=False)
            if recipe.clip_norm is not None:
                clip(gradients, recipe.clip_norm)
            with torch.no_grad():
                rule.step(gradients)
            logged.add({"loss": loss.detach(), **scalars}, len(positions))
            steps += 1
        return steps, logged.means()

    @torch.no_grad()
    def measure(self, card: Card, request: Measure) -> dict[str, float]:
        """Return the sample-weighted means of the objective's scalars."""
        model = self.model(self.components(card, request.active))
        model.load(request.parameters)
        model.module.eval()
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


class LoggedMeans:
    """Weighted means of scalars, kept as tensors until the end so that no step waits for the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, int] = {}

    def add(self, scalars: Mapping[str, Tensor], weight: int) -> None:
        """Take in the scalars of one batch."""
        for name, value in scalars.items():
            held = self._sums.get(name)
            added = value.detach() * weight
            self._sums[name] = added if held is None else held.add_(added)
            self._weights[name] = self._weights.get(name, 0) + weight

    def means(self) -> dict[str, float]:
        """Return the means."""
        return {name: float(total) / self._weights[name] for name, total in self._sums.items()}


def batches(count: int, epochs: int, size: int, key: tuple[Key, ...]) -> list[Tensor]:
    """Return positions of every mini-batch: a new permutation per epoch, whose last batch may be smaller."""
    generator = torch_generator(*key, "batches")
    at_once = min(size, count)  # torch cannot count as far as a user can
    return [part for _ in range(epochs) for part in torch.split(torch.randperm(count, generator=generator), at_once)]
