"""The similarity graph of FedMSplit: which blocks clients have in common, how alike these are, how they are mixed."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from polyfed.model.architecture import Tensors, component_of
from polyfed.scenario.federation import ClientId

Similarity = Literal["dot", "cosine"]

TEMPERATURE = 0.1
"""What cosines are divided by before the softmax."""

SMALLEST_NORM = 1e-60
"""Smaller than that of any float32: a block of zeros resembles all blocks alike."""

PIECE = 2**14
"""Numbers of each owner that are multiplied at a time: many at once take longer, as they do not fit into caches."""

JOINS: Mapping[str, str] = {"fusion": "encoder", "head": "output_stack"}
"""A component of the first kind is one block with that of the second kind and the same name, where there is one."""

Held = Mapping[ClientId, Tensors]
"""What each client holds, by parameter name."""


@dataclass(frozen=True)
class Block:
    """One block, a view of the graph: its first component, its parameters, and who holds it, ascending."""

    component: str
    parameters: tuple[str, ...]
    owners: tuple[ClientId, ...]

    @property
    def kind(self) -> str:
        """What sort of component the block is, such as ``encoder``."""
        return self.component.partition(".")[0]


def leading(component: str, components: Collection[str]) -> str:
    """Return the component that a component is one block with: itself, or see ``JOINS``."""
    kind, _, name = component.partition(".")
    partner = f"{JOINS.get(kind)}.{name}"
    return partner if partner in components else component


def parts_of(parameters: Collection[str], components: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return the parameters of each block of a client, by the block's first component."""
    components_held = {name: component_of(name, components) for name in sorted(parameters)}
    present = set(components_held.values())
    found: dict[str, list[str]] = {}
    for name, component in components_held.items():
        found.setdefault(leading(component, present), []).append(name)
    return {component: tuple(names) for component, names in found.items()}


def blocks_of(held: Held, components: Mapping[ClientId, Collection[str]]) -> list[Block]:
    """Return all blocks; clients have one in common if it holds the same parameters."""
    owners: dict[tuple[str, tuple[str, ...]], list[ClientId]] = {}
    for client in sorted(held):
        for part in parts_of(held[client], components[client]).items():
            owners.setdefault(part, []).append(client)
    return [Block(*part, tuple(clients)) for part, clients in sorted(owners.items())]


def correlations(block: Block, held: Held, similarity: Similarity) -> Tensor:
    """Return A (owners, owners) in float64: the softmax of each owner's similarities to all owners, itself included.

    ``dot``: inner products over the square root of the block's length; ``cosine``: cosines over ``TEMPERATURE``. The
    softmax is taken of the differences to the largest, so that no size of a block overflows.
    """
    products = torch.zeros(len(block.owners), len(block.owners), dtype=torch.float64)
    length = 0
    for name in block.parameters:
        length += held[block.owners[0]][name].numel()
        for _, rows in pieces(name, block.owners, held):
            products.addmm_(rows, rows.t())
    if similarity == "cosine":
        norms = products.diagonal().sqrt().clamp_min(SMALLEST_NORM)
        return torch.softmax(products / torch.outer(norms, norms) / TEMPERATURE, 1)
    return torch.softmax(products / math.sqrt(max(length, 1)), 1)


def pieces(name: str, owners: Sequence[ClientId], held: Held) -> Iterator[tuple[slice, Tensor]]:
    """Yield what the owners hold under a name piece by piece: where, and (owners, numbers) in float64."""
    vectors = [held[client][name].flatten() for client in owners]
    for start in range(0, len(vectors[0]), PIECE):
        span = slice(start, start + PIECE)
        yield span, torch.stack([vector[span] for vector in vectors]).double()


def shares(
    blocks: Sequence[Block], held: Held, similarity: Similarity, weights: Mapping[ClientId, float]
) -> list[Tensor]:
    """Return the shares with which each block is mixed, (owners, owners) in float64; rows sum to 1.

    Share of l in the block v of k: A^v_kl c_kl, times the weight of l, over the sum of that; c_kl is the mean of A_kl
    over the blocks that k and l have in common. Where nobody whom k resembles has any weight, k keeps its block.
    """
    place = {client: number for number, client in enumerate(sorted(held))}
    totals = torch.zeros(len(place), len(place), dtype=torch.float64)
    common = torch.zeros_like(totals)
    found = []
    for block in blocks:
        alike = correlations(block, held, similarity)
        places = torch.tensor([place[client] for client in block.owners])
        totals[places[:, None], places] += alike
        common[places[:, None], places] += 1
        found.append((alike, places))
    means = totals / common.clamp_min(1)
    counts = torch.tensor([weights[client] for client in place], dtype=torch.float64)
    return [normalised(alike * means[places[:, None], places] * counts[places]) for alike, places in found]


def normalised(rows: Tensor) -> Tensor:
    """Divide rows by their sums; one that sums to nothing becomes that of the identity."""
    sums = rows.sum(1, keepdim=True)
    return torch.where(sums > 0, rows / sums, torch.eye(len(rows), dtype=rows.dtype))


def mixed(blocks: Sequence[Block], portions: Sequence[Tensor], held: Held) -> dict[ClientId, dict[str, Tensor]]:
    """Return new parameters by client: each block is a mean of its owners' with the given shares.

    All are computed from what is held, none from another's new one. What all hold alike stays as it is bit for bit.
    """
    found: dict[ClientId, dict[str, Tensor]] = {client: {} for client in held}
    for block, portion in zip(blocks, portions, strict=True):
        for name in block.parameters:
            vectors = [torch.empty_like(held[client][name]).flatten() for client in block.owners]
            for span, rows in pieces(name, block.owners, held):
                moved = rows[0] + portion @ (rows - rows[0])
                for vector, row in zip(vectors, moved, strict=True):
                    vector[span] = row
            for client, vector in zip(block.owners, vectors, strict=True):
                found[client][name] = vector.view(held[client][name].shape)
    return found
