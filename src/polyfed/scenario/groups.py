"""Groups of clients: so many of one domain, with these modalities and these tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field

from polyfed.data.dataset import DOMAIN, Dataset, unknown_task
from polyfed.data.samples import Samples
from polyfed.data.schema import Task
from polyfed.errors import UserError, unknown
from polyfed.registry import Options
from polyfed.rng import seed_of
from polyfed.scenario.holdings import Holdings, Names
from polyfed.scenario.parts import IntArray, Parts

PLACE = "scenario.groups"
Times = Literal["rho", "1-rho"]


class Group(Options):
    """So many clients of one domain with these modalities and tasks."""

    clients: Annotated[int, Field(ge=1, description="number of clients, before `times`")]
    times: Annotated[
        Times | None, Field(description="multiply the number by scenario.rho, or by 1 - scenario.rho; null: neither")
    ] = None
    domain: Annotated[str | None, Field(description="whose samples they have, where a dataset has domains")] = None
    modalities: Annotated[list[str], Field(min_length=1, description="inputs, by name or by family")]
    tasks: Annotated[list[str], Field(min_length=1, description="outputs")]


@dataclass(frozen=True)
class Domain:
    """Clients among whom the same samples are dealt: those of one ``value`` of the field ``domain``; None: all."""

    clients: IntArray
    seed: int
    name: str = ""
    value: int | None = None

    def positions(self, samples: Samples) -> IntArray:
        """Return which samples are of the domain."""
        return np.flatnonzero(samples.field(DOMAIN).numpy() == self.value)


class Cast(NamedTuple):
    """Who is there: the domains with their clients, and what each client holds."""

    domains: tuple[Domain, ...]
    modalities: Holdings
    tasks: Holdings


def cast(groups: Sequence[Group], dataset: Dataset, pool: Samples, used: Mapping[str, Task], seed: int) -> Cast:
    """Number the clients group by group, and say what each holds and in which domain it is.

    ``used`` are the tasks in use. Raises UserError naming the group for a domain, modality or task it cannot have.
    """
    firsts = np.cumsum([0] + [group.clients for group in groups])
    members: dict[str | None, list[IntArray]] = {}
    modality_sets: list[Names] = []
    task_sets: list[Names] = []
    offers = offers_of(dataset, pool)
    for number, group in enumerate(groups):
        if not group.clients:
            continue
        place = f"{PLACE}.{number}"
        offer = offers[checked_domain(group.domain, offers, dataset.name, place)]
        if group.domain is not None:
            place = f"{place}, domain {group.domain!r}"
        modality_sets += [chosen_modalities(group.modalities, offer.modalities, dataset, place)] * group.clients
        task_sets += [chosen_tasks(group.tasks, offer.tasks, used, place)] * group.clients
        members.setdefault(group.domain, []).append(np.arange(firsts[number], firsts[number + 1]))
    domains = [
        Domain(np.concatenate(clients), domain_seed(seed, name), name or "", offers[name].value)
        for name, clients in members.items()
    ]
    return Cast(tuple(domains), Holdings(modality_sets, explicit=True), Holdings(task_sets, explicit=True))


def multiplied(groups: tuple[Group, ...] | None, rho: float | None) -> tuple[Group, ...] | None:
    """Multiply the groups' numbers of clients by what their ``times`` says, rounding halves up.

    A group that is left with no client stays, so that the others keep their numbers, but plays no part. Raises
    UserError where ``rho`` or ``times`` is given without the other, and where no client is left.
    """
    used = {number: group.times for number, group in enumerate(groups or ()) if group.times is not None}
    if rho is None:
        for number, times in used.items():
            raise UserError(
                f"{PLACE}.{number}: times is {times!r}, but scenario.rho is not given; set it to a number from 0 to 1"
            )
        return groups
    if groups is None or not used:
        raise UserError(
            f"scenario.rho is {rho}, but no group of scenario.groups is multiplied by it; write times: rho or"
            " times: 1-rho in a group, or leave rho out"
        )
    exact = Decimal(str(rho))  # as it was written: 10 * (1 - 0.95) is a half, which in binary it is not
    factors = {None: Decimal(1), "rho": exact, "1-rho": 1 - exact}
    counts = [(group.clients * factors[group.times]).quantize(Decimal(1), ROUND_HALF_UP) for group in groups]
    if not any(counts):
        raise UserError(f"scenario.groups: no client is left at the scenario.rho {rho}")
    return tuple(group.model_copy(update={"clients": int(count)}) for group, count in zip(groups, counts, strict=True))


def named_tasks(groups: Sequence[Group], dataset: Dataset) -> list[str]:
    """Return the tasks that groups with clients name; raises UserError for one that the dataset does not have."""
    for number, group in enumerate(groups):
        for name in group.tasks:
            if name not in dataset.tasks:
                raise unknown_task(name, dataset, f"{PLACE}.{number}")
    return [name for name in dataset.tasks if any(name in group.tasks for group in groups if group.clients)]


def domain_seed(seed: int, name: str | None) -> int:
    """Return the seed of a domain's draws, so that domains of equal size are not dealt by the same permutation."""
    return seed if name is None else seed_of(seed, "domain", name)


@dataclass(frozen=True)
class Offer:
    """What the training samples of a domain have."""

    value: int | None
    modalities: Names
    tasks: Names


def offers_of(dataset: Dataset, pool: Samples) -> dict[str | None, Offer]:
    """Return what each domain with samples has, by name; a dataset without domains offers itself under None."""
    if DOMAIN not in dataset.train.fields or DOMAIN not in dataset.field_labels:
        return {None: Offer(None, tuple(dataset.modalities), tuple(dataset.tasks))}
    domain = pool.field(DOMAIN)
    found: dict[str | None, Offer] = {}
    for value, name in enumerate(dataset.field_labels[DOMAIN]):
        here = domain == value
        if here.any():
            modalities = [m for m in dataset.modalities if bool(pool.present[m][here].any())]
            tasks = [t for t in dataset.tasks if bool(pool.labelled[t][here].any())]
            found[name] = Offer(value, tuple(modalities), tuple(tasks))
    return found


def checked_domain(name: str | None, offers: Mapping[str | None, Offer], dataset: str, place: str) -> str | None:
    """Return the domain a group names, if it is one."""
    if name in offers:
        return name
    if None in offers:
        raise UserError(f"{place}: the dataset {dataset} has no domains; leave out domain: {name}")
    choices = [str(choice) for choice in offers]
    if name is None:
        raise UserError(f"{place}: say in which domain the clients are. Choices: {', '.join(choices)}")
    raise unknown("domain", name, choices, place=place)


def chosen_modalities(wanted: Iterable[str], offered: Names, dataset: Dataset, place: str) -> Names:
    """Return the modalities that names and families stand for, sorted."""
    families = {name: dataset.modalities[name].family for name in offered}
    found: set[str] = set()
    for name in wanted:
        meant = {name} if name in families else {key for key, family in families.items() if family == name}
        if not meant:
            raise unknown("modality", name, {*families, *families.values()}, place=place)
        found |= meant
    return tuple(sorted(found))


def chosen_tasks(wanted: Iterable[str], offered: Names, used: Mapping[str, Task], place: str) -> Names:
    """Return the tasks a group names, sorted, if its samples have them and they are in use."""
    for name in wanted:
        if name not in offered:
            raise unknown("task", name, offered, place=place)
        if name not in used:
            raise UserError(
                f"{place}: the task {name!r} is not in use; add it to data.tasks ({', '.join(used)}), or leave"
                " data.tasks out"
            )
    return tuple(sorted(set(wanted)))


def across(
    domains: Sequence[Domain], clients: int, samples: Samples, deal: Callable[[Domain, Samples], Parts]
) -> Parts:
    """Deal each domain's samples among its clients by ``deal``, and join what that returns.

    ``deal`` is given a domain and its samples, and numbers samples and clients from 0.
    """
    positions: list[IntArray] = [np.empty(0, dtype=np.int64)]
    owners = list(positions)
    for domain in domains:
        if domain.value is None:
            return deal(domain, samples)
        mine = domain.positions(samples)
        if len(mine):
            parts = deal(domain, samples.take(torch.from_numpy(mine)))
            positions.append(mine[parts.positions])
            owners.append(domain.clients[parts.owner])
    return Parts.of_owners(np.concatenate(positions), np.concatenate(owners), clients)
