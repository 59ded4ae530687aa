"""What every model offers: named components, assembled into the model a client's card calls for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol

from torch import Tensor, nn

from polyfed.data.samples import Batch
from polyfed.data.schema import Modality, Task

Tensors = Mapping[str, Tensor]


Mixed = Literal["experts", "adapters"]


class Mixing(NamedTuple):
    """How a mixture of experts weighs its paths: ``weights`` (batch or 1, paths), in the order of ``keys``.

    Weights are 0 where the path's modality is absent. A row sums to 1, or to 0 where there is no modality at all. With
    ``of`` "adapters" a router weighs the adapters of tasks instead, which are the keys.
    """

    keys: tuple[str, ...]
    weights: Tensor
    of: Mixed = "experts"


class Outputs(NamedTuple):
    """What a model computes from a batch.

    ``features[m]`` (batch, width) for each modality in the batch, ``fused`` (batch, fusion width), ``predictions[t]``
    (batch, classes) logits or (batch, *shape of t). ``unimodal[m][t]`` is what a head on the features of modality m
    alone predicts, where the model has such heads; it means nothing where m is absent. ``latents`` (batch, width) are
    those of a mixture of experts' paths, each once, by ``latent_key``; zero where the modality is absent. ``mixing``
    tells, by task, how these paths are mixed. ``inner`` is what else a model hands to the objectives of its methods.
    """

    features: dict[str, Tensor]
    fused: Tensor
    predictions: dict[str, Tensor]
    unimodal: Mapping[str, Mapping[str, Tensor]] = MappingProxyType({})
    latents: Mapping[str, Tensor] = MappingProxyType({})
    mixing: Mapping[str, Mixing] = MappingProxyType({})
    inner: Mapping[str, Tensor] = MappingProxyType({})


def latent_key(modality: str, input_scope: str, output_scope: str) -> str:
    """Name the latent of a modality's path through the experts of these scopes."""
    return f"{modality}|{input_scope}|{output_scope}"


def latent_parts(key: str) -> tuple[str, str, str]:
    """Return the modality, the input scope and the output scope of a latent."""
    modality, input_scope, output_scope = key.split("|")
    return modality, input_scope, output_scope


def latent_modality(key: str) -> str:
    """Return the modality of a latent."""
    modality, _, _ = latent_parts(key)
    return modality


def latent_type(key: str) -> tuple[str, str]:
    """Return the input and the output scope of a latent: what the latents of different modalities are compared by."""
    _, input_scope, output_scope = latent_parts(key)
    return input_scope, output_scope


class ClientModel(Protocol):
    """A client's model: a module whose parameter names begin with component names."""

    def __call__(self, batch: Batch) -> Outputs:
        """Compute features and predictions."""
        ...


class Architecture(Protocol):
    """The union of all components; ``modalities`` and ``tasks`` are those of the federation."""

    @property
    def modalities(self) -> Mapping[str, Modality]:
        """Modalities of the federation."""
        ...

    @property
    def tasks(self) -> Mapping[str, Task]:
        """Tasks of the federation."""
        ...

    def components(self, modalities: Collection[str], tasks: Collection[str]) -> tuple[str, ...]:
        """Name the components that a client with these modalities and tasks uses, sorted."""
        ...

    def assemble(self, components: Collection[str]) -> nn.Module:
        """Build a ``ClientModel`` of these components (values arbitrary; the engine loads parameters)."""
        ...

    def initial(self, seed: int) -> dict[str, Tensor]:
        """Return first values of every parameter of every component, the same for a seed whatever else is built."""
        ...


def component_of(parameter: str, components: Collection[str]) -> str:
    """Return the component a parameter name belongs to; no component name is the beginning of another."""
    parts = parameter.split(".")
    for end in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:end])
        if name in components:
            return name
    raise LookupError(f"parameter {parameter!r} belongs to none of the components {sorted(components)}")
