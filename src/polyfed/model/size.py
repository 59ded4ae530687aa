"""How large a model's components are."""

from __future__ import annotations

from collections.abc import Collection

from polyfed.model.architecture import Architecture, component_of


def parameter_count(architecture: Architecture, components: Collection[str]) -> dict[str, int]:
    """Count the parameters of each of these components, sorted by name."""
    counts = dict.fromkeys(sorted(components), 0)
    for name, parameter in architecture.assemble(components).named_parameters():
        counts[component_of(name, counts)] += parameter.numel()
    return counts
