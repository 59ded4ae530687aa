"""Aggregation of text adapters by nearness: every client's own, mixed with those of the clients nearest to it.

Source: Xiong et al., "Pilot: Building the Federated Multimodal Instruction Tuning Framework", AAAI 2025, equations 11
and 12. The printed weights do not sum to one; what is done about it is an option.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from polyfed.method.protocol import MOST_LINKED, Links
from polyfed.model.architecture import Tensors
from polyfed.registry import Options
from polyfed.scenario.federation import ClientId

TextWeights = Literal["convex", "printed", "mean_one"]
Whom = Literal["nearest", "same_task", "all"]

LEAST_DISTANCE = 1e-12
"""Equal adapters count as this far apart, so that equal ones weigh alike."""


class TextAdapters(Options):
    """How text adapters are aggregated."""

    aggregate: Annotated[
        Whom, Field(description="with whose they are averaged: the nearest clients', those of the same task, or all")
    ] = "nearest"
    neighbours: Annotated[int, Field(ge=0, description="how many nearest clients count")] = 6
    weights: Annotated[
        TextWeights,
        Field(description="weights of the nearest: scaled to sum 1, as printed in equation 12, or of mean 1"),
    ] = "convex"


def distances(adapters: Sequence[Tensors]) -> Tensor:
    """Return the Euclidean distances (clients, clients) between adapters, over all their tensors, in float64."""
    count = len(adapters)
    squares = torch.zeros(count, count, dtype=torch.float64)
    for name in sorted(adapters[0]) if adapters else ():
        flat = torch.stack([adapter[name].flatten() for adapter in adapters]).double()
        for client in range(count):  # differences, not a product of both: near adapters differ in their last digits
            squares[client] += (flat - flat[client]).square().sum(1)
    return squares.sqrt()


def coefficients(apart: Tensor, examples: Sequence[int], neighbours: int, rule: TextWeights) -> Tensor:
    """Return what each client's new adapter takes of every client's: (clients, clients), float64, row by client.

    ``apart`` (clients, clients) are distances, ``examples`` the clients' training samples, ``neighbours`` how many of
    the nearest others count (fewer where there are fewer others; the earlier of equally near ones). With w the inverse
    distances of the neighbours, scaled to sum 1, own and neighbours' parts are as n_k : n_k' w_k' (``convex``: scaled
    to sum 1; ``printed``: divided by the samples of all of them, as in equation 12) or as n_k : n_k' M w_k'
    (``mean_one``, scaled to sum 1). A client keeps its own where neither it nor its neighbours have samples.
    """
    count = len(examples)
    chosen = min(neighbours, count - 1)
    sizes = torch.tensor(examples, dtype=torch.float64)
    found = torch.zeros(count, count, dtype=torch.float64)
    for client in range(count):
        near = nearest(apart[client], client, chosen)
        if not sizes[[client, *near]].any():
            found[client, client] = 1
            continue
        inverse = 1 / apart[client, near].clamp(min=LEAST_DISTANCE)
        share = inverse / inverse.sum() if chosen else inverse
        found[client, client] = sizes[client]
        found[client, near] = sizes[near] * share * (chosen if rule == "mean_one" else 1)
        found[client] /= sizes[client] + sizes[near].sum() if rule == "printed" else found[client].sum()
    return found


def nearest(apart: Tensor, client: int, count: int) -> list[int]:
    """Return the numbers of the ``count`` clients nearest to one, nearest first; ``apart`` (clients,) are distances."""
    others = [other for other in range(len(apart)) if other != client]
    return sorted(others, key=lambda other: (float(apart[other]), other))[:count]


def links(clients: Sequence[ClientId], apart: Tensor | None, parts: Tensor) -> dict[str, Links]:
    """Return what is noted of pairs of clients: ``distance`` (each pair once) and ``part``, what one takes of another.

    ``apart`` and ``parts`` are (clients, clients); without distances there are none to tell. Nothing is told where
    there are more than ``MOST_LINKED`` clients; parts of 0 are left out.
    """
    if len(clients) > MOST_LINKED:
        return {}
    pairs = list(enumerate(clients))
    found: dict[str, Links] = {
        "part": {
            one: {other: float(parts[row, place]) for place, other in pairs if float(parts[row, place])}
            for row, one in pairs
        }
    }
    if apart is not None:
        found["distance"] = {
            one: {other: float(apart[row, place]) for place, other in pairs[row + 1 :]} for row, one in pairs[:-1]
        }
    return found


def mixed(adapters: Sequence[Tensors], parts: Tensor) -> list[dict[str, Tensor]]:
    """Return every client's new adapter: the sum of all clients' by ``parts`` (clients, clients), in float64.

    A client that takes nothing of others keeps its very values.
    """
    found: list[dict[str, Tensor]] = []
    for client, row in enumerate(parts):
        used = [other for other in range(len(adapters)) if float(row[other])]
        if used == [client] and float(row[client]) == 1.0:
            found.append(dict(adapters[client]))
            continue
        found.append({name: combined(adapters, name, row, used) for name in adapters[client]})
    return found


def combined(adapters: Sequence[Mapping[str, Tensor]], name: str, row: Tensor, used: Sequence[int]) -> Tensor:
    """Return the weighted sum of one tensor over the clients ``used``, in their order."""
    total = torch.zeros(adapters[used[0]][name].shape, dtype=torch.float64)
    for other in used:
        total += float(row[other]) * adapters[other][name].double()
    return total.to(adapters[used[0]][name].dtype)
