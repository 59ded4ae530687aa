"""Build a federation: deal a dataset to clients, and say who holds which modalities and tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import torch

from polyfed.data.dataset import Dataset, unknown_task
from polyfed.data.samples import Samples
from polyfed.data.schema import Task
from polyfed.data.several import NOWHERE
from polyfed.errors import UserError, count_of, up_to
from polyfed.registry import Chosen
from polyfed.rng import numpy_generator
from polyfed.scenario.catalog import MODALITY_SETS, PARTITIONS, TASK_SETS
from polyfed.scenario.federation import Cards, Federation, Split
from polyfed.scenario.groups import Domain, Group, across, cast, named_tasks
from polyfed.scenario.holdings import Holdings, Names, nobody_holds, sets_of, table_of
from polyfed.scenario.labels import check_targets, strata
from polyfed.scenario.official_test import deal_test, task_sets
from polyfed.scenario.parts import BoolArray, IntArray, Parts
from polyfed.scenario.shared_validation import SharedRows, set_apart
from polyfed.scenario.split import cut
from polyfed.scenario.store import Rows, Store, Thinning
from polyfed.scenario.usable import usable_of


def build(
    dataset: Dataset,
    *,
    clients: int | Sequence[Group] | None,
    partition: Chosen,
    modalities: Chosen,
    tasks: Chosen,
    validation: float,
    test: float,
    only_tasks: Sequence[str] | None,
    seed: int,
    validation_source: Literal["client", "shared"] = "client",
) -> Federation:
    """Deal a dataset to clients.

    ``validation`` and ``test`` are the shares of a client's samples that are held out; with an official test table
    ``test`` is not used, each client gets a part of that table. With the ``validation_source`` "shared" a share of the
    training table is held out before it is dealt, and is the validation part of all clients. ``only_tasks`` names the
    tasks in use (None: classification and regression, or those that groups name). ``clients`` is their number (None:
    the partition knows), or groups of them; groups say themselves which modalities and tasks their clients hold, and
    the partition deals the samples of each domain. The federation keeps row numbers only and makes a client when it is
    asked for.

    Raises UserError for options that do not fit the data, and for a client that would have nothing to train on.
    """
    check_fraction("validation", validation)
    check_fraction("test", test)
    if isinstance(clients, Sequence) and only_tasks is None:
        only_tasks = named_tasks(clients, dataset)
    used = tasks_in_use(dataset, only_tasks)
    check_targets(dataset.train.everything(), list(used.values()), f"{dataset.name}, training table")
    pool, shared = dataset.train.everything(), None
    if validation_source == "shared":
        field = partition.options.get("field")
        pool, shared = set_apart(pool, list(used.values()), validation, dataset.unit, field, seed)
    if isinstance(clients, Sequence):
        domains, held, solved = cast(clients, dataset, pool, used, seed)
        dealt = deal_by_domain(dataset, pool, domains, partition, used)
    else:
        dealt = deal(dataset, pool, clients, partition, used, seed)
        count = dealt.clients
        domains = (Domain(np.arange(count), seed),)
        held = MODALITY_SETS.build(modalities.name, modalities.options, list(dataset.modalities), count, seed)
        solved = TASK_SETS.build(tasks.name, tasks.options, list(used), count, seed)
    check_dealt(dealt, partition.name)
    pool = pool.only({name for names in set(held.sets) for name in names}, used)
    modality_sets = reduced("modality", held, dealt, pool.present)
    task_names = reduced("task", solved, dealt, pool.labelled)
    usable = dealt.where(usable_of(pool, dealt, modality_sets, task_names))
    check_trainable(usable, dealt, modality_sets, task_names)
    check_held("modality", pool.modalities, modality_sets)
    check_held("task", list(used), task_names)
    splitter = Splitter(dataset, pool, used, modality_sets, task_names, domains, seed)
    kept, tested, test_pool = splitter.test(usable, test, str(partition.options.get("field", "")))
    validating = splitter.cut(kept, validation if shared is None else 0, "validation")
    splits: dict[Split, Rows] = {
        "train": Rows.of(pool, kept.where(~validating)),
        "validation": Rows.of(pool, kept.where(validating)),
        "test": Rows.of(test_pool, tested),
    }
    thinning = None if held.skew is None else Thinning(held.skew, validating)
    store = Store(splits, thinning, None if shared is None else SharedRows(shared))
    names = client_names(pool, dealt, partition, dataset.field_labels)
    return Federation(
        {name: modality for name, modality in dataset.modalities.items() if name in pool.present},
        used,
        Cards(modality_sets, task_names, np.diff(splits["train"].offsets), names),
        store.load,
        server_test=splits["test"].samples,
    )


def check_fraction(name: str, value: float) -> None:
    """Refuse a held-out share outside 0 to below 1."""
    if not 0 <= value < 1:
        raise UserError(f"scenario: {name} is {value}, but must be at least 0 and below 1")


def tasks_in_use(dataset: Dataset, only: Sequence[str] | None) -> dict[str, Task]:
    """Return the tasks named, in the dataset's order (None: its classification and regression tasks)."""
    if only is None:
        found = {name: task for name, task in dataset.tasks.items() if task.kind != "generation"}
    else:
        for name in only:
            if name not in dataset.tasks:
                raise unknown_task(name, dataset, f"dataset {dataset.name}")
        found = {name: task for name, task in dataset.tasks.items() if name in only}
    if not found:
        raise UserError(
            f"dataset {dataset.name}: no task is in use; name at least one (generation tasks must be named)."
            f" Choices: {', '.join(dataset.tasks)}"
        )
    return found


def deal(
    dataset: Dataset, pool: Samples, clients: int | None, partition: Chosen, used: Mapping[str, Task], seed: int
) -> Parts:
    """Deal training samples. Units that must not be torn apart are dealt whole, each as if it were one sample."""
    labels_from = {**used, **dataset.tasks}  # tasks in use first: the default label is that of the first
    natural = "field" in partition.options
    if dataset.unit is None or natural:
        parts = Parts.of_lists(PARTITIONS.build(partition.name, partition.options, pool, labels_from, clients, seed))
    else:
        values, first, unit = np.unique(pool.field(dataset.unit).numpy(), return_index=True, return_inverse=True)
        if clients is not None and clients > len(values):
            raise UserError(
                f"scenario: {count_of(clients, 'client')}, but {dataset.name} has {count_of(len(values), 'group')} of"
                f" the field {dataset.unit!r}, which stay together; use {up_to(len(values), 'client')}"
            )
        ones = pool.take(torch.from_numpy(first))
        try:
            lists = PARTITIONS.build(partition.name, partition.options, ones, labels_from, clients, seed)
        except UserError as error:
            raise UserError(
                f"{error} (rows of {dataset.name} with the same {dataset.unit!r} stay together and count as one sample"
                " here)"
            ) from error
        whole = Parts.of_lists(lists)
        owner = np.empty(len(values), dtype=np.int64)
        owner[whole.positions] = whole.owner
        parts = Parts.of_owners(np.arange(len(pool)), owner[unit.ravel()], whole.clients)
    return parts


def deal_by_domain(
    dataset: Dataset, pool: Samples, domains: Sequence[Domain], partition: Chosen, used: Mapping[str, Task]
) -> Parts:
    """Deal each domain's training samples among its clients; labels are those of tasks that the domain has."""

    def dealt(domain: Domain, samples: Samples) -> Parts:
        own = {name: task for name, task in dataset.tasks.items() if bool(samples.labelled[name].any())}
        solved = {name: task for name, task in used.items() if name in own}
        chosen = partition if has_field(samples, partition) else Chosen("iid")
        try:
            return deal(replace(dataset, tasks=own), samples, len(domain.clients), chosen, solved, domain.seed)
        except UserError as error:
            raise UserError(f"domain {domain.name!r}: {error}" if domain.name else str(error)) from error

    return across(domains, sum(len(domain.clients) for domain in domains), pool, dealt)


def has_field(samples: Samples, partition: Chosen) -> bool:
    """Whether a domain has the field that a partition goes by, if it goes by one; False: it is that of another."""
    field = str(partition.options.get("field", ""))
    return field not in samples.table.fields or bool((samples.field(field) != NOWHERE).any())


def check_dealt(parts: Parts, partition: str) -> None:
    """Refuse a partition that leaves a client without samples."""
    empty = np.flatnonzero(parts.sizes == 0)
    if len(empty):
        raise UserError(
            f"client {empty[0]} gets no samples from the partition {partition!r} ({len(empty)} of {parts.clients}"
            " clients are empty); raise 'minimum' or use fewer clients"
        )


def reduced(kind: str, holdings: Holdings, parts: Parts, masks: Mapping[str, torch.Tensor]) -> list[Names]:
    """Take from each client's set what none of its samples has; an error if the user listed the sets."""
    names = list(masks)
    wanted = table_of(holdings.sets, names)
    has = np.stack([parts.owning(masks[name].numpy()[parts.positions]) for name in names], axis=1)
    lacking = np.argwhere(wanted & ~has)
    if holdings.explicit and len(lacking):
        client, name = lacking[0]
        raise UserError(
            f"client {client} should hold the {kind} {names[name]!r}, but none of its {parts.sizes[client]} samples"
            " has it"
        )
    return sets_of(wanted & has, names)


def check_trainable(usable: Parts, dealt: Parts, modality_sets: Sequence[Names], sets: Sequence[Names]) -> None:
    """Refuse a client none of whose samples has one of its modalities and one of its tasks."""
    idle = np.flatnonzero(usable.sizes == 0)
    if len(idle):
        k = int(idle[0])
        raise UserError(
            f"client {k} has nothing to train on: none of its {dealt.sizes[k]} samples has one of its modalities"
            f" ({', '.join(modality_sets[k]) or 'none'}) and a target of one of its tasks"
            f" ({', '.join(sets[k]) or 'none'})"
        )


def check_held(kind: str, names: Sequence[str], sets: Sequence[Names]) -> None:
    """Refuse a modality or task that no client has samples of."""
    held = {name for names_held in set(sets) for name in names_held}
    orphans = [name for name in names if name not in held]
    if orphans:
        raise nobody_holds(kind, orphans)


def client_names(
    pool: Samples, parts: Parts, partition: Chosen, field_labels: Mapping[str, Sequence[str]]
) -> dict[int, str]:
    """Name the clients that are one group of a field: "subject 7" or "speaker george"."""
    field = partition.options.get("field")
    if field is None:
        return {}
    values = pool.field(str(field)).numpy()[parts.positions]
    lowest = np.minimum.reduceat(values, parts.offsets[:-1])
    highest = np.maximum.reduceat(values, parts.offsets[:-1])
    labels = field_labels.get(str(field))
    single = np.flatnonzero(lowest == highest)
    values_held, times = np.unique(lowest[single], return_counts=True)  # no field at all is no group of one client
    return {
        client: f"{field} {lowest[client] if labels is None or lowest[client] < 0 else labels[lowest[client]]}"
        for client in single[np.isin(lowest[single], values_held[times == 1])].tolist()
    }


class Splitter:
    """Cuts the clients' samples, each client stratified by the labels of its own tasks."""

    def __init__(
        self,
        dataset: Dataset,
        pool: Samples,
        tasks: Mapping[str, Task],
        modality_sets: Sequence[Names],
        sets: Sequence[Names],
        domains: Sequence[Domain],
        seed: int,
    ) -> None:
        self.dataset, self.pool, self.tasks = dataset, pool, tasks
        self.modality_sets, self.sets, self.domains, self.seed = modality_sets, sets, domains, seed

    def test(self, parts: Parts, fraction: float, field: str) -> tuple[Parts, Parts, Samples]:
        """Return what the clients keep, their test samples, and the samples which the latter are positions of."""
        if self.dataset.test is None:
            testing = self.cut(parts, fraction, "test")
            return parts.where(~testing), parts.where(testing), self.pool
        table = self.dataset.test.everything()
        check_targets(table, list(self.tasks.values()), f"{self.dataset.name}, test table")
        test = table.only(self.pool.modalities, self.tasks)
        return parts, across(self.domains, parts.clients, test, partial(self._deal_test, parts, field)), test

    def _deal_test(self, parts: Parts, field: str, domain: Domain, test: Samples) -> Parts:
        """Give the clients of a domain, numbered from 0, their parts of its test samples."""
        modality_sets, sets = ([held[k] for k in domain.clients] for held in (self.modality_sets, self.sets))
        mine = parts.among(domain.clients)
        return deal_test(mine, self.pool, test, self.tasks, modality_sets, sets, field, domain.seed)

    def cut(self, parts: Parts, fraction: float, purpose: str) -> BoolArray:
        """Choose a share of each client's samples, (samples,)."""
        if fraction == 0:
            return np.zeros(len(parts.positions), dtype=bool)
        generator = numpy_generator(self.seed, "split", purpose)
        unit = self.dataset.unit
        units = None if unit is None else self.pool.field(unit).numpy()[parts.positions]
        return cut(parts, self._strata(parts), fraction, generator, units)

    def _strata(self, parts: Parts) -> IntArray:
        found = np.empty(len(parts.positions), dtype=np.int64)
        numbers = {held: number for number, held in enumerate(sorted(set(self.sets)))}
        number_of_client = np.array([numbers[held] for held in self.sets])
        for held, tasks in task_sets(self.sets, self.tasks).items():
            mine = number_of_client[parts.owner] == numbers[held]
            found[mine] = strata(self.pool, tasks)[parts.positions[mine]]
        return found
