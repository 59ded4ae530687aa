"""How large a model's components are, and how wide its features."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import Protocol, runtime_checkable

import torch

from polyfed.data.samples import Batch
from polyfed.model.architecture import Architecture, Outputs, component_of


def parameter_count(architecture: Architecture, components: Collection[str]) -> dict[str, int]:
    """Count the parameters of each of these components, sorted by name.

    They need not make a model together: those of several clients do not where a component belongs to a modality and a
    task that no client has both.
    """
    counts = dict.fromkeys(sorted(components), 0)
    for name, value in architecture.initial(0).items():
        with suppress(LookupError):
            counts[component_of(name, counts)] += value.numel()
    return counts


@runtime_checkable
class Frozen(Protocol):
    """An architecture with parts that are never trained and belong to no component."""

    @property
    def frozen(self) -> dict[str, int]:
        """Their parameters, by name."""
        ...


def frozen_count(architecture: Architecture) -> dict[str, int]:
    """Count the parameters of each part that is never trained, sorted by name; most models have none."""
    return dict(sorted(architecture.frozen.items())) if isinstance(architecture, Frozen) else {}


@torch.no_grad()
def feature_widths(architecture: Architecture) -> dict[str, int]:
    """Return the width of the features by modality: those of a blank sample, computed once."""
    modalities = architecture.modalities
    model = architecture.assemble(architecture.components(tuple(modalities), tuple(architecture.tasks))).eval()
    inputs = {
        name: torch.zeros(1, *modality.shape, dtype=torch.int64 if modality.kind == "tokens" else torch.float32)
        for name, modality in modalities.items()
    }
    here = torch.ones(1, dtype=torch.bool)
    outputs: Outputs = model(Batch(inputs, dict.fromkeys(modalities, here), {}, {}))
    return {name: features.shape[1] for name, features in outputs.features.items()}
