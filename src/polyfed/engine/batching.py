"""Which fits are trained together: a rule on configuration, model and device, never on measured time."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from polyfed.data.samples import Batch
from polyfed.engine.minibatches import steps_of
from polyfed.engine.resident import Resident
from polyfed.engine.stacked import STACKED, Mapped
from polyfed.method.protocol import Fit, Recipe
from polyfed.model.architecture import Architecture, Tensors
from polyfed.model.losses import Logged, Share

Batching = Literal["auto", "on", "off"]

LARGEST_ON_CPU = 20_000
"""Parameters of a model up to which stacking pays on a CPU, where matrix products of more are fast one by one."""

STATES: Mapping[str, int] = {"sgd": 1, "adam": 2, "adamw": 2}
"""Tensors that an optimiser may keep per parameter."""


@dataclass(frozen=True)
class Rule:
    """``batching`` as configured; ``memory`` (bytes) bounds what a stack takes; ``accelerated``: on a GPU."""

    batching: Batching = "auto"
    memory: int = 512 * 2**20
    accelerated: bool = False

    def against(self, model: Resident) -> str | None:
        """Return why clients with this model are trained one by one, None if they may be stacked."""
        if self.batching == "off":
            return "batching is switched off"
        if not getattr(model.module, "stackable", True):
            return "a model with a frozen base cannot be stacked"
        if self.batching == "on" or self.accelerated:
            return None
        if convolutional(model):
            return "convolutions are faster one by one on a CPU"
        if len(model.values) > LARGEST_ON_CPU:
            return f"a model of more than {LARGEST_ON_CPU} parameters is faster one by one on a CPU"
        return None

    def clients(self, model: Resident, recipe: Recipe, sample_bytes: int) -> int:
        """Return how many clients fit into the memory at once; ``sample_bytes`` is what training keeps of a sample."""
        copies = 3 + STATES[recipe.optimizer]  # start, current, gradient, and the optimiser's
        each = copies * model.values.nbytes + recipe.batch_size * sample_bytes
        return max(1, self.memory // each)

    def width(self, model: Resident) -> int:
        """Return how many clients to gather before training: as many as fit, counting parameters only."""
        if self.against(model) is not None:
            return 1
        return max(1, self.memory // (6 * model.values.nbytes))


def convolutional(model: Resident) -> bool:
    """Whether a model has convolutions, going by the shapes of its parameters."""
    return any(parameter.dim() > 2 for parameter in model.parameters.values())


def signature(components: tuple[str, ...], request: Fit) -> Hashable:
    """Return what fits must have in common to be stacked: all but values, samples and seeds."""
    data, objective, recipe = request.data, request.objective, request.recipe
    scheduled = recipe.scheduled  # then all clients of a stack must take equally many steps
    return (
        components,
        objective if isinstance(objective, Hashable) else id(objective),
        recipe,
        steps_of(len(data), recipe.epochs, recipe.batch_size) if scheduled else None,
        request.trains,
        tuple(request.start),
        tuple((group, layout(held)) for group, held in request.extra.items()),
        id(data.table),
        tuple(name for name in data.modalities if name in request.active),
        data.tasks,
    )


def layout(tensors: Tensors) -> Hashable:
    """Return names, shapes and dtypes."""
    return tuple((name, value.shape, value.dtype) for name, value in tensors.items())


@dataclass(frozen=True)
class Trial:
    """What a trial on blank samples tells: why an objective cannot be stacked (None: it can), bytes kept per sample."""

    obstacle: str | None
    sample_bytes: int = 0


CLIENTS = 2
FEWEST_SAMPLES, MOST_SAMPLES = 2, 64
PADDING = 1

Found = tuple[Tensor, Logged, Sequence[Tensor | None]]
"""Losses (clients,), what is logged, and gradients by parameter."""


def trial(architecture: Architecture, model: Resident, request: Fit) -> Trial:
    """Map the objective over two clients with a few made-up samples each, and again with a padded one beside them.

    It fails where the objective or the model draws random numbers (clients would share them), branches on values or
    keeps something in its buffers, or where padding, which is absent and unlabelled, changes what is found. What it
    finds depends on the model's first values, not on those it happens to hold.
    """
    device = model.values.device
    values = architecture.initial(0)
    buffers = buffers_of(model)
    samples = samples_needed(architecture, request.data.tasks)
    names = [name for name in request.data.modalities if name in request.active]
    kept = 0

    def weigh(value: Tensor) -> Tensor:
        nonlocal kept
        kept += value.nbytes
        return value

    batches = [made_up(architecture, names, request.data.tasks, samples, padding, device) for padding in (0, PADDING)]
    try:
        with torch.autograd.graph.saved_tensors_hooks(weigh, lambda value: value):
            plain = tried(model, values, request, batches[0])
        in_first = kept
        padded = tried(model, values, request, batches[1])
    except Exception as error:  # whatever an objective, perhaps the user's own, does that cannot be mapped
        reason = str(error).split("\n", 1)[0].strip().rstrip(".")
        return Trial(f"the objective cannot be stacked: {type(error).__name__}: {reason[:200]}")
    finally:
        changed = put_back(model, buffers)
    if changed:
        return Trial(f"the model keeps state in its buffer {changed[0]!r}")
    if not agree(plain, padded):
        return Trial("the objective or the model counts samples that are absent and unlabelled, as padding is")
    parameters = CLIENTS * model.values.nbytes
    return Trial(None, max(0, in_first - parameters) // (CLIENTS * samples))


def samples_needed(architecture: Architecture, tasks: tuple[str, ...]) -> int:
    """Return how many samples a trial needs: one of every class, so that not all are predicted wrongly."""
    classes = max((architecture.tasks[name].classes for name in tasks), default=0)
    return min(max(FEWEST_SAMPLES, classes), MOST_SAMPLES)


def buffers_of(model: Resident) -> dict[str, tuple[Tensor, int]]:
    """Return a model's buffers, and how often each was changed."""
    return {name: (buffer, buffer._version) for name, buffer in model.module.named_buffers()}


def put_back(model: Resident, buffers: Mapping[str, tuple[Tensor, int]]) -> list[str]:
    """Put buffers back that were replaced; return the names of those that were replaced or changed."""
    changed = []
    for name, (buffer, version) in buffers.items():
        place, _, key = name.rpartition(".")
        held = model.module.get_submodule(place)._buffers
        if held.get(key) is not buffer or buffer._version != version:
            held[key] = buffer
            changed.append(name)
    return changed


def tried(model: Resident, values: Tensors, request: Fit, batch: Batch) -> Found:
    """Map the objective over a batch of every client, and differentiate."""
    moving = {
        name: values[name].to(model.values.device).expand(CLIENTS, *values[name].shape).contiguous()
        for name in model.parameters
    }
    extra: dict[str, dict[str, Tensor]] = {
        group: {name: value.to(model.values.device).expand(CLIENTS, *value.shape) for name, value in held.items()}
        for group, held in request.extra.items()
    }
    axes: dict[str, Any] = {
        "fixed": {},
        "extra": {group: dict.fromkeys(held, STACKED) for group, held in extra.items()},
    }
    leaves = {name: value.requires_grad_() for name, value in moving.items()}
    losses, logged = Mapped(model, request.objective, {}, extra, axes)(leaves, batch, CLIENTS)
    return losses, logged, torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True)


def agree(one: Found, other: Found) -> bool:
    """Whether losses, what is logged and gradients are equal but for rounding."""
    (losses, logged, slopes), (other_losses, other_logged, other_slopes) = one, other
    if logged.keys() != other_logged.keys():
        return False
    pairs: list[tuple[Any, Any]] = [(losses, other_losses), *zip(slopes, other_slopes, strict=True)]
    for name, value in logged.items():
        pairs += zip(parts_of(value), parts_of(other_logged[name]), strict=True)
    return all(
        found is expected if found is None or expected is None else close(found, expected) for found, expected in pairs
    )


def parts_of(logged: Tensor | Share) -> tuple[Tensor, ...]:
    """Return the sum and the count of a share, or what else was logged."""
    return tuple(logged) if isinstance(logged, Share) else (logged,)


def close(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal but for rounding."""
    return torch.allclose(one.detach().double(), other.detach().double(), rtol=1e-3, atol=1e-6, equal_nan=True)


def made_up(
    architecture: Architecture,
    modalities: list[str],
    tasks: tuple[str, ...],
    samples: int,
    padding: int,
    device: torch.device,
) -> Batch:
    """Return stacked samples (clients, samples + padding, *shape): ones of all classes, zeros as padding."""
    numbers = torch.arange(samples + padding, device=device)
    here = (numbers < samples).expand(CLIENTS, -1)

    def filled(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return here.to(dtype).view(*here.shape, *[1] * len(shape)).expand(*here.shape, *shape).contiguous()

    inputs, targets = {}, {}
    for name in modalities:
        modality = architecture.modalities[name]
        inputs[name] = filled(modality.shape, torch.int64 if modality.kind == "tokens" else torch.float32)
    for name in tasks:
        task = architecture.tasks[name]
        if task.kind == "classification":
            targets[name] = torch.where(here, numbers % task.classes, 0)
        else:
            targets[name] = filled(task.shape, torch.float32)
    return Batch(inputs, dict.fromkeys(modalities, here), targets, dict.fromkeys(tasks, here))
