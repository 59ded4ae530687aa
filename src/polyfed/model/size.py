"""How large a model's components are, and how wide its features."""

from __future__ import annotations

from collections.abc import Collection

import torch

from polyfed.data.samples import Batch
from polyfed.model.architecture import Architecture, Outputs, component_of


def parameter_count(architecture: Architecture, components: Collection[str]) -> dict[str, int]:
    """Count the parameters of each of these components, sorted by name.

    They need not make a model together: those of several clients do not where a component belongs to a modality and a
    task that no client has both.
    """
    everything = architecture.components(tuple(architecture.modalities), tuple(architecture.tasks))
    counts = dict.fromkeys(everything, 0)
    for name, parameter in architecture.assemble(everything).named_parameters():
        counts[component_of(name, counts)] += parameter.numel()
    return {name: counts[name] for name in sorted(components)}


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
