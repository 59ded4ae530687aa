"""When a client leaves a knowledge type: the rule behind DisentAFL's routing by affinity.

The slides of DisentAFL speak of automatic routing and of little negative transfer, and give no rule: this one is ours.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from polyfed.method.similarity import Held, pieces
from polyfed.model.architecture import Tensors
from polyfed.model.expert_names import GENERAL, expert
from polyfed.registry import Options
from polyfed.scenario.federation import ClientId

LEAST_PARTICIPANTS = 3
"""Of two clients each agrees with the other as much as the other with it: neither could be told to be in the way."""


class Affinity(Options):
    """When a client leaves a knowledge type, and when it is tried again."""

    threshold: Annotated[
        float, Field(ge=-1, le=1, description="a client whose mean cosine is below this is in the way")
    ] = -0.05
    patience: Annotated[
        int, Field(ge=1, description="participations in a row below the threshold with which a client leaves")
    ] = 5
    decay: Annotated[
        float, Field(ge=0, lt=1, description="weight of the former value in the mean cosine, which starts at 0")
    ] = 0.9
    retest_every: Annotated[int, Field(ge=1, description="rounds after which a client that left is tried again")] = 20

    def renewed(self, standing: Standing, cosine: float) -> Standing:
        """Return a member's standing after a participation with this cosine."""
        mean = self.decay * standing.mean + (1 - self.decay) * cosine
        return Standing(mean, standing.below + 1 if mean < self.threshold else 0)

    def may_leave(self, standing: Standing) -> bool:
        """Whether a member may leave after its next participation."""
        return standing.away is None and standing.below + 1 >= self.patience

    def due(self, standing: Standing, number: int) -> bool:
        """Whether a client that left is to be tried in this round."""
        return standing.away is not None and number - standing.away >= self.retest_every


@dataclass(frozen=True)
class Standing:
    """How a client stands with a knowledge type.

    ``mean`` is the exponential mean of its cosines, ``below`` counts the participations in a row that left it below the
    threshold. ``away`` is the round in which it left or was last tried, None for a member.
    """

    mean: float = 0.0
    below: int = 0
    away: int | None = None


MEMBER = Standing()
"""The first standing, and that of a client which has just returned."""


def types_of(components: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return the components of each knowledge type that a client may leave, by the first of them.

    A type is an expert with what is tied to it: the attention of a modality belongs to that modality's expert, the
    attention and the queries of a task to that task's. In the plain network each stack is a type. Exempt are what all
    clients have, heads, stems (they stand for one data set's input, not for a type) and gates.
    """
    pairs = expert(GENERAL, GENERAL) in components
    found: dict[str, tuple[str, ...]] = {}
    for component in sorted(components):
        kind, *scopes = component.split(".")
        if kind in ("input_stack", "output_stack"):
            found[component] = (component,)
        elif kind == "expert":
            first, second = scopes if pairs else both_scopes(*scopes)
            attention = tied(first, second)
            if (first, second) != (GENERAL, GENERAL):
                found[component] = (component, *attention)
    return found


def both_scopes(axis: str, scope: str) -> tuple[str, str]:
    """Return the input and the output scope of an axis' experts."""
    return (scope, GENERAL) if axis == "input" else (GENERAL, scope)


def tied(first: str, second: str) -> tuple[str, ...]:
    """Return the attention that belongs to the type of these scopes."""
    if second == GENERAL:
        return (f"self_attention.{first}",)
    return (f"cross_attention.{second}",) if first == GENERAL else ()


# ---------------------------------------------------------------------------------------------- agreement


def cosines(updates: Held, weights: Mapping[ClientId, float], sent: Tensors) -> dict[ClientId, float]:
    """Return the cosine of each client's update and the weighted mean of the others', by client.

    ``updates`` are the clients' parameters after training, ``sent`` those before. Clients without weight are compared
    with the others and are not among them. One whose own update or whose others' mean is zero has no cosine.
    """
    clients = sorted(updates)
    products = torch.zeros(len(clients), len(clients), dtype=torch.float64)
    for name, value in sent.items():
        before = value.flatten()
        for span, rows in pieces(name, clients, updates):
            changes = rows - before[span].double()
            products.addmm_(changes, changes.t())
    shares = torch.tensor([weights.get(client, 0.0) for client in clients], dtype=torch.float64)
    found = {client: cosine_of(products, shares, place) for place, client in enumerate(clients)}
    return {client: value for client, value in found.items() if value is not None}


def cosine_of(products: Tensor, shares: Tensor, place: int) -> float | None:
    """Return the cosine of one update and the others' mean, given all inner products (n, n) and weights (n,)."""
    others = shares.clone()
    others[place] = 0.0
    squares = float(products[place, place]) * float(others @ products @ others)
    if squares <= 0:
        return None
    return max(-1.0, min(1.0, float(products[place] @ others) / math.sqrt(squares)))


# ---------------------------------------------------------------------------------------------- who leaves


def judged(
    rule: Affinity, before: Mapping[ClientId, Standing], found: Mapping[ClientId, float], number: int
) -> dict[ClientId, Standing]:
    """Return the standings with one type after round ``number``.

    ``before`` holds those of all who sent an update, ``found`` the cosines. With too few members among them none is
    judged. Of several that would leave, the one with the lowest mean does: the others are next compared without it.
    """
    after = dict(before)
    members = [client for client, standing in before.items() if standing.away is None]
    for client in before.keys() - set(members):
        after[client] = MEMBER if found.get(client, -1.0) >= 0 else replace(before[client], away=number)
    if len(members) < LEAST_PARTICIPANTS:
        return after
    for client in found.keys() & set(members):
        after[client] = rule.renewed(before[client], found[client])
    leaving = [(after[client].mean, client) for client in members if after[client].below >= rule.patience]
    for _, client in sorted(leaving)[:1]:
        after[client] = replace(after[client], away=number)
    return after
