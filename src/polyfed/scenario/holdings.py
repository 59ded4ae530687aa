"""Which clients hold which modalities, or tasks: what the builders of both have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np
from pydantic import Field

from polyfed.errors import UserError, unknown
from polyfed.rng import numpy_generator
from polyfed.scenario.parts import BoolArray

Names = tuple[str, ...]
Rate = Annotated[float, Field(gt=0, le=1)]
Rates = Annotated[
    Rate | Mapping[str, Rate], Field(description="probability of holding it: one for all, or by name (not named: 1)")
]


class Skew(Protocol):
    """Takes modalities away from single samples."""

    def masks(self, client: int, names: Names, samples: int) -> Mapping[str, BoolArray]:
        """Return for each modality the client holds which of its samples keep it, (samples,)."""
        ...


@dataclass(frozen=True)
class Holdings:
    """What each client holds: ``sets[k]`` are client k's names, sorted.

    ``explicit``: the user listed the sets, so it is an error if a client's samples have nothing of what it should hold.
    Otherwise the set of a client is reduced to what its samples have.
    """

    sets: Sequence[Names]
    explicit: bool = False
    skew: Skew | None = None


def everybody(names: Sequence[str], clients: int) -> Holdings:
    """Every client holds everything."""
    return Holdings([tuple(sorted(names))] * clients)


def grouped(kind: str, names: Sequence[str], clients: int, groups: Sequence[tuple[int, Sequence[str]]]) -> Holdings:
    """Give the first clients the names of the first group, the next ones those of the second, and so on."""
    total = sum(count for count, _ in groups)
    if total != clients:
        raise UserError(f"{kind} groups: the groups count {total} clients together, but the scenario has {clients}")
    sets = [known(kind, held, names, f"{kind} groups, group {g}") for g, (_, held) in enumerate(groups)]
    repeated = [held for held, (count, _) in zip(sets, groups, strict=True) for _ in range(count)]
    return covered(kind, names, Holdings(repeated, explicit=True))


def listed(kind: str, names: Sequence[str], clients: int, sets: Sequence[Sequence[str]]) -> Holdings:
    """Give client k the names in ``sets[k]``."""
    if len(sets) != clients:
        raise UserError(f"{kind} listed: {len(sets)} sets are listed, but the scenario has {clients} clients")
    checked = [known(kind, held, names, f"{kind} listed, client {k}") for k, held in enumerate(sets)]
    return covered(kind, names, Holdings(checked, explicit=True))


def by_rates(kind: str, names: Sequence[str], clients: int, seed: int, rates: float | Mapping[str, float]) -> Holdings:
    """Let each client hold each name with a probability; a client left with nothing draws one name.

    A name nobody drew is given to a random client besides what it holds, so every name has a holder.
    """
    if isinstance(rates, Mapping):
        known(kind, list(rates), names, f"{kind} rates")
    chances = np.array([rates.get(name, 1.0) if isinstance(rates, Mapping) else rates for name in names])
    generator = numpy_generator(seed, "rates", kind)
    held = generator.random((clients, len(names))) < chances
    for client in np.flatnonzero(~held.any(axis=1)):
        held[client, generator.choice(len(names), p=chances / chances.sum())] = True
    for name in np.flatnonzero(~held.any(axis=0)):
        held[generator.integers(clients), name] = True
    return Holdings(sets_of(held, names))


def known(kind: str, held: Sequence[str], names: Sequence[str], place: str) -> Names:
    """Return a set of names, sorted, or raise an error if it is empty or a name is none of the choices."""
    if not held:
        raise UserError(f"{place}: name at least one {kind}. Choices: {', '.join(names)}")
    for name in held:
        if name not in names:
            raise unknown(kind, name, names, place=place)
    return tuple(sorted(set(held)))


def covered(kind: str, names: Sequence[str], holdings: Holdings) -> Holdings:
    """Return the holdings, or raise an error if nobody holds one of the names."""
    orphans = [name for name in names if not any(name in held for held in set(holdings.sets))]
    if orphans:
        raise nobody_holds(kind, orphans)
    return holdings


def nobody_holds(kind: str, orphans: Sequence[str]) -> UserError:
    """Build the error for names that no client holds."""
    remedy = "take it out with the option 'only'" if kind == "modality" else "leave it out of the tasks in use"
    return UserError(f"no client holds the {kind} {', '.join(map(repr, orphans))}; give it to a client or {remedy}")


def sets_of(held: BoolArray, names: Sequence[str]) -> list[Names]:
    """Turn a table of who holds what (clients, names) into sets of names; equal sets are one object."""
    patterns, pattern = np.unique(held, axis=0, return_inverse=True)
    sets = [tuple(sorted(name for name, holds in zip(names, row, strict=True) if holds)) for row in patterns]
    return [sets[p] for p in pattern.ravel()]


def table_of(sets: Sequence[Names], names: Sequence[str]) -> BoolArray:
    """Turn sets of names into a table of who holds what, (clients, names)."""
    rows = {held: [name in held for name in names] for held in set(sets)}
    return np.array([rows[held] for held in sets], dtype=bool).reshape(len(sets), len(names))
