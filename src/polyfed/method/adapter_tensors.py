"""Tensors of adapters by the first part of their names, the weights of an average, and what is drawn."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from polyfed.model.architecture import Tensors


def within(held: Tensors, first: Collection[str], components: Collection[str] | None = None) -> dict[str, Tensor]:
    """Return the parameters of components whose names begin so; of those among ``components``, if these are given."""
    found = {name: value for name, value in held.items() if name.split(".", 1)[0] in first}
    if components is None:
        return found
    return {name: value for name, value in found.items() if any(name.startswith(f"{one}.") for one in components)}


def shares(examples: Sequence[int]) -> Tensor:
    """Return each client's share of the samples (clients,), float64; equal shares where nobody has any."""
    sizes = torch.tensor(examples, dtype=torch.float64)
    return sizes / sizes.sum() if float(sizes.sum()) else torch.full_like(sizes, 1 / len(sizes))


def noisy(value: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """Add normal noise with ``deviation`` times the tensor's own standard deviation."""
    return value + deviation * value.std(correction=0) * torch.randn(value.shape, generator=generator)


def drawn_like(value: Tensor, held: Tensors, name: str, generator: torch.Generator) -> Tensor:
    """Draw a weight or bias as torch does for a linear layer: even within ± 1 / √inputs."""
    bound: float = held[f"{name.rpartition('.')[0]}.weight"].shape[1] ** -0.5
    return bound * (2 * torch.rand(value.shape, generator=generator) - 1)
