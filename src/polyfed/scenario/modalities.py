"""Modality skews: which client holds which modalities, and which of its samples have them.

Every builder is called as ``builder(names, clients, seed, **options)`` with the names of the dataset's modalities; the
option ``only`` restricts the experiment to some of them. Cases A, B and C are those of Chen & Li, "Towards Optimal
Multi-Modal Federated Learning on Non-IID Data with Hierarchical Gradient Blending", INFOCOM 2022; the exact rules of
the mixed case B and of case C are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from polyfed.errors import UserError
from polyfed.registry import Options
from polyfed.rng import numpy_generator
from polyfed.scenario import holdings
from polyfed.scenario.holdings import Holdings, Names, Rates, sets_of
from polyfed.scenario.parts import BoolArray, IntArray

ATTEMPTS = 1000  # draws before a modality with too few holders is dealt by exchange

Only = Annotated[list[str], Field(description="modalities in use; null: all of the dataset")]
Holders = Annotated[int, Field(ge=1, description="clients that hold each modality at least; null: 5 % of them")]
Sizes = Annotated[
    list[Annotated[float, Field(ge=0)]], Field(description="probabilities of holding 1, 2, ... modalities; null: equal")
]
Size = Annotated[int, Field(ge=1, description="modalities per client")]


class ModalityGroup(Options):
    """So many clients with these modalities."""

    clients: Annotated[int, Field(ge=1)]
    modalities: list[str]


def everything(names: Sequence[str], clients: int, seed: int, *, only: Only | None = None) -> Holdings:
    """Case A: every client holds every modality its samples have."""
    return holdings.everybody(in_use(names, only), clients)


def mixed(
    names: Sequence[str],
    clients: int,
    seed: int,
    *,
    size_probabilities: Sizes | None = None,
    min_holders: Holders | None = None,
    only: Only | None = None,
) -> Holdings:
    """Case B, Mixed-B: each client holds a random number of modalities, drawn at random."""
    used = in_use(names, only)
    chances = [1.0] * len(used) if size_probabilities is None else size_probabilities
    if len(chances) != len(used) or sum(chances) <= 0:
        raise UserError(
            f"modalities mixed: size_probabilities {chances} must be {len(used)} numbers, one for each of 1 to"
            f" {len(used)} modalities, and not all zero"
        )
    return Holdings(sets_of(draw_table(used, clients, seed, np.array(chances), min_holders), used))


def n_of_m(
    names: Sequence[str],
    clients: int,
    seed: int,
    *,
    n: Size,
    min_holders: Holders | None = None,
    only: Only | None = None,
) -> Holdings:
    """Case B, nM-B: each client holds n of the modalities, drawn at random."""
    used = in_use(names, only)
    if n >= len(used):
        remedy = f"use n below {len(used)}, or 'all'" if len(used) > 1 else "use 'all'"
        raise UserError(
            f"modalities n-of-m: n is {n}, but there are {len(used)} modalities ({', '.join(used)}); {remedy}"
        )
    chances = np.arange(1, len(used) + 1) == n
    return Holdings(sets_of(draw_table(used, clients, seed, chances.astype(float), min_holders), used))


def sample_skew(
    names: Sequence[str],
    clients: int,
    seed: int,
    *,
    beta: Annotated[float, Field(gt=0, description="evenness of the modalities' sample counts")] = 0.5,
    minimum_rate: Annotated[float, Field(gt=0, le=1, description="share of samples a modality keeps at least")] = 0.1,
    base: Annotated[Literal["mixed", "all", "n-of-m"], Field(description="who holds which modalities")] = "mixed",
    n: Annotated[Size | None, Field(description="modalities per client, for the base n-of-m")] = None,
    size_probabilities: Annotated[Sizes | None, Field(description="as in mixed, for the base mixed")] = None,
    min_holders: Holders | None = None,
    only: Only | None = None,
) -> Holdings:
    """Case C: as the base case, and each modality is missing in some of a client's samples."""
    if (n is None) == (base == "n-of-m"):
        raise UserError(f"modalities sample-skew: base {base!r} with n {n}; n goes with the base 'n-of-m' and no other")
    if size_probabilities is not None and base != "mixed":
        raise UserError(f"modalities sample-skew: size_probabilities goes with the base 'mixed', not with {base!r}")
    if n is not None:
        based = n_of_m(names, clients, seed, n=n, min_holders=min_holders, only=only)
    elif base == "all":
        based = everything(names, clients, seed, only=only)
    else:
        based = mixed(names, clients, seed, size_probabilities=size_probabilities, min_holders=min_holders, only=only)
    return replace(based, skew=SampleSkew(seed, beta, minimum_rate))


def rated(names: Sequence[str], clients: int, seed: int, *, rates: Rates, only: Only | None = None) -> Holdings:
    """Each client holds each modality with a probability; at least one each, and every modality has a client."""
    return holdings.by_rates("modality", in_use(names, only), clients, seed, rates)


def grouped(
    names: Sequence[str], clients: int, seed: int, *, groups: list[ModalityGroup], only: Only | None = None
) -> Holdings:
    """Groups of clients with the modalities named for each."""
    pairs = [(group.clients, group.modalities) for group in groups]
    return holdings.grouped("modality", in_use(names, only), clients, pairs)


def listed(
    names: Sequence[str], clients: int, seed: int, *, sets: list[list[str]], only: Only | None = None
) -> Holdings:
    """The modalities of every client, one list per client id."""
    return holdings.listed("modality", in_use(names, only), clients, sets)


@dataclass(frozen=True)
class SampleSkew:
    """Case C: a client's modality m keeps a random ceil(rate_m * samples) of its samples.

    With r drawn from Dirichlet(beta) over the client's modalities, rate_m = max(minimum_rate, r_m / max r). So one
    modality keeps all samples, and every sample keeps at least that one.
    """

    seed: int
    beta: float
    minimum_rate: float

    def masks(self, client: int, names: Names, samples: int) -> Mapping[str, BoolArray]:
        """Return for each modality the client holds which of its samples keep it, (samples,)."""
        generator = numpy_generator(self.seed, "sample skew", client)
        shares = generator.dirichlet(np.full(len(names), self.beta))
        rates = np.maximum(self.minimum_rate, shares / shares.max())
        kept = {}
        for name, rate in zip(names, rates, strict=True):
            mask = np.zeros(samples, dtype=bool)
            mask[generator.permutation(samples)[: ceil(rate * samples)]] = True
            kept[name] = mask
        return kept


def in_use(names: Sequence[str], only: Sequence[str] | None) -> list[str]:
    """Return the modalities in use, in the dataset's order."""
    if only is None:
        return list(names)
    wanted = holdings.known("modality", only, names, "modalities, option only")
    return [name for name in names if name in wanted]


def draw_table(
    names: Sequence[str], clients: int, seed: int, chances: np.ndarray, min_holders: int | None
) -> BoolArray:
    """Draw who holds what, (clients, modalities): a set size from ``chances``, then a uniform set of that size.

    Drawn again until each modality has ``min_holders`` clients (default 5 % of them, at least one), up to 1000 times;
    after that the last draw is repaired.
    """
    floor = max(1, ceil(0.05 * clients - 1e-9)) if min_holders is None else min_holders
    if floor > clients:
        raise UserError(f"modalities: min_holders is {floor}, but there are {clients} clients")
    largest = int(np.flatnonzero(chances)[-1]) + 1
    if clients * largest < floor * len(names):
        raise UserError(
            f"modalities: {clients} clients with at most {largest} modalities each cannot hold the {len(names)}"
            f" modalities {', '.join(names)} {floor} times each; use more clients, larger sets or a smaller min_holders"
        )
    held = np.empty((0, 0), dtype=bool)
    for attempt in range(ATTEMPTS):
        generator = numpy_generator(seed, "modality sets", attempt)
        sizes = 1 + generator.choice(len(names), size=clients, p=chances / chances.sum())
        rank = generator.random((clients, len(names))).argsort(axis=1).argsort(axis=1)
        held = rank < sizes[:, None]
        if (held.sum(axis=0) >= floor).all():
            return held
    return repaired(held, floor, names)


def repaired(held: BoolArray, floor: int, names: Sequence[str]) -> BoolArray:
    """Give modalities with fewer than ``floor`` holders to clients in exchange for their most common modality.

    The rarest modality goes first, to the lowest-id client that lacks it and has one with holders to spare.
    """
    if held.sum() < floor * len(names):
        raise UserError(
            f"modalities: the drawn sets are too small for each of {', '.join(names)} to have {floor} holders; use more"
            " clients, larger sets or a smaller min_holders"
        )
    held = held.copy()
    while True:
        counts: IntArray = held.sum(axis=0)
        rarest = int(counts.argmin())
        if counts[rarest] >= floor:
            return held
        common = np.where(held, counts, -1).max(axis=1)
        client = int(np.flatnonzero(~held[:, rarest] & (common > floor))[0])
        held[client, int(np.where(held[client], counts, -1).argmax())] = False
        held[client, rarest] = True
