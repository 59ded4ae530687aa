"""How several text adapters in one language model are weighed: by default, sample by sample, and by similarity.

Their outputs are added in every layer, each times its weight (peft's ``scaling``, which may be a tensor).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from polyfed.data.samples import Batch
from polyfed.model.adapter_names import FROZEN_LORA, LORA, PERSONAL_LORA

Weights = Mapping[str, Tensor]
"""Weights of text adapters by name: () or (batch,). Those that are not named weigh nothing."""

GIVEN = "weight of "
"""What the inputs of a batch begin with that weigh a text adapter."""

DETACHED = "detached "
"""What the inputs of a batch begin with that cut gradients off."""

DUAL_TEACHER = {PERSONAL_LORA: 0.5, FROZEN_LORA: 0.5}
"""FedDAT's teacher, which is also the model that a client uses."""


def weighted(batch: Batch, weights: Mapping[str, float], detached: Collection[str] = ()) -> Batch:
    """Return a batch for which a model with several text adapters weighs them so; others weigh nothing.

    No gradient goes through the ``detached`` ones.
    """
    held = next(iter(batch.present.values()))
    given = {f"{GIVEN}{name}": torch.full(held.shape, value, device=held.device) for name, value in weights.items()}
    marks = {f"{DETACHED}{name}": held for name in detached}
    return batch._replace(inputs={**batch.inputs, **given, **marks})


def in_both_ways(batch: Batch, one: Mapping[str, float], other: Mapping[str, float]) -> Batch:
    """Return every sample twice: a first half whose text adapters are weighed as ``one``, a second as ``other``."""
    names = {**one, **other}
    parts = [weighted(batch, {name: ways.get(name, 0.0) for name in names}) for ways in (one, other)]
    twice = batch.each(lambda value: torch.cat([value, value]))
    given = {
        name: torch.cat([part.inputs[name] for part in parts]) for name in parts[0].inputs if name.startswith(GIVEN)
    }
    return twice._replace(inputs={**twice.inputs, **given})


def given_weights(batch: Batch) -> Weights:
    """Return the weights that a batch gives, (batch,) by text adapter; none if it does not tell."""
    return {name.removeprefix(GIVEN): value for name, value in batch.inputs.items() if name.startswith(GIVEN)}


def detached_in(batch: Batch) -> list[str]:
    """Name the text adapters through which a batch lets no gradient."""
    return [name.removeprefix(DETACHED) for name in batch.inputs if name.startswith(DETACHED)]


def default_weights(adapters: Collection[str]) -> Weights:
    """Return the weights where nothing tells them: 1 for a single adapter, FedDAT's teacher if it can be made.

    Else the shared adapter weighs 1 and the personal one nothing.
    """
    if adapters and set(DUAL_TEACHER) <= set(adapters):
        return {name: torch.tensor(value) for name, value in DUAL_TEACHER.items()}
    (chosen,) = adapters if len(adapters) == 1 else (LORA,)
    return {chosen: torch.tensor(1.0)}


class AdaptedLayers:
    """Peft's layers of one model, whose adapters are weighed together."""

    def __init__(self, layers: Collection[Any]) -> None:
        self._layers = layers
        self._detached: frozenset[str] = frozenset()
        for layer in layers:
            for name, module in layer.lora_B.items():
                module.register_forward_hook(partial(self._cut, name))

    def _cut(self, name: str, module: nn.Module, given: object, output: Tensor) -> Tensor:
        return output.detach() if name in self._detached else output

    def weigh(self, weights: Weights, detached: Collection[str] = ()) -> None:
        """Weigh the adapters, and let no gradient through the ``detached`` ones, until this is called again.

        So it still holds when gradient checkpointing computes a layer anew in the backward pass.
        """
        self._detached = frozenset(detached)
        shaped = {name: value.view(-1, 1, 1) if value.dim() else value for name, value in weights.items()}
        for layer in self._layers:
            for name in layer.scaling:
                rule = layer.lora_alpha[name] / layer.r[name]
                layer.scaling[name] = rule * shaped[name] if name in shaped else 0.0


class AdapterMixing(nn.Module):
    """The weight of a client's own text adapter: clip(offset + slope · s, 0, 1); the shared one has the rest.

    s is the mean cosine of a prompt's embedding with those of some of the client's own: ``prompts`` (width,) is the
    mean of these, scaled to length 1 before. The three are written by methods and never trained.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.prompts = nn.Parameter(torch.zeros(width))
        self.offset = nn.Parameter(torch.zeros(()))
        self.slope = nn.Parameter(torch.zeros(()))

    @property
    def fixed(self) -> bool:
        """Whether the weight is the same for all prompts."""
        return not self.slope

    @torch.no_grad()
    def own(self, embedded: Tensor | None) -> Tensor:
        """Return the weight (batch,) for embeddings of prompts (batch, width); () without them."""
        if embedded is None:
            return self.offset.clamp(0, 1)
        similar = functional.normalize(embedded.float(), dim=-1) @ self.prompts
        return (self.offset + self.slope * similar).clamp(0, 1)


def mixed(own: Tensor) -> Weights:
    """Return the weights of both adapters, given that of the client's own."""
    return {PERSONAL_LORA: own, LORA: 1 - own}
