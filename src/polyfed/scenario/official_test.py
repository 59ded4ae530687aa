"""Clients' shares of an official test table: disjoint, and like their training samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from polyfed.data.samples import Samples
from polyfed.data.schema import Task
from polyfed.rng import numpy_generator
from polyfed.scenario.holdings import Names
from polyfed.scenario.labels import label_strata
from polyfed.scenario.parts import BoolArray, IntArray, Parts
from polyfed.scenario.split import quotas
from polyfed.scenario.usable import usable_of

NONE: IntArray = np.empty(0, dtype=np.int64)
NOBODY = -1


def deal_test(
    parts: Parts,
    pool: Samples,
    test: Samples,
    tasks: Mapping[str, Task],
    modality_sets: Sequence[Names],
    sets: Sequence[Names],
    field: str,
    seed: int,
) -> Parts:
    """Give each client its part of the test table, of samples it can use.

    The parts are the clients' own groups of ``field`` if each client has usable samples of its groups, else shares by
    label. ``modality_sets[k]`` and ``sets[k]`` are the modalities and tasks of client k. Which modalities and targets
    a sample lacks plays no part in the dealing: training and test table may differ in that.
    """
    own = deal_by_field(parts, pool, test, field)
    if own is not None:
        own = own.where(usable_of(test, own, modality_sets, sets))
        if bool((own.sizes > 0).all()):
            return own
    dealt = deal_by_labels(parts, pool, test, tasks, sets, seed)
    dealt = dealt.where(usable_of(test, dealt, modality_sets, sets))
    owner = np.full(len(test), NOBODY)
    owner[dealt.positions] = dealt.owner
    shares = share_sizes(parts.sizes, len(test))
    for client in np.flatnonzero((dealt.sizes == 0) & (shares > 0)).tolist():
        everything = Parts(np.arange(len(test)), np.full(len(test), client), parts.clients)
        usable = usable_of(test, everything, modality_sets, sets)
        held = [task for name, task in tasks.items() if name in sets[client]]
        trained = label_strata(pool.take(torch.from_numpy(parts.of(client))), held)
        familiar = usable & np.isin(label_strata(test, held), trained)
        make_up(owner, client, familiar if familiar.any() else usable, int(shares[client]), seed)
    kept = np.flatnonzero(owner != NOBODY)
    return Parts.of_owners(kept, owner[kept], parts.clients)


def make_up(owner: IntArray, client: int, wanted: BoolArray, share: int, seed: int) -> None:
    """Give a client that went away empty ``share`` of the ``wanted`` samples that are nobody's (changes ``owner``).

    If none is left, it gets one of the client that has most of the table, as long as that one keeps a sample.
    """
    candidates = numpy_generator(seed, "test part", "made up", client).permutation(np.flatnonzero(wanted))
    free = candidates[owner[candidates] == NOBODY]
    if len(free):
        owner[free[:share]] = client
    elif len(candidates):
        sizes = np.bincount(owner[owner != NOBODY])[owner[candidates]]
        if sizes.max() > 1:
            owner[candidates[sizes.argmax()]] = client


def deal_by_field(parts: Parts, pool: Samples, test: Samples, field: str) -> Parts | None:
    """Give each client the test samples of its own groups (subjects, speakers).

    None if the test table has no such field or nothing of some client's groups.
    """
    if field not in test.table.fields:
        return None
    groups, first = np.unique(pool.field(field).numpy()[parts.positions], return_index=True)
    values = test.field(field).numpy()
    shared = np.flatnonzero(np.isin(values, groups))
    dealt = Parts.of_owners(shared, parts.owner[first[np.searchsorted(groups, values[shared])]], parts.clients)
    return dealt if bool((dealt.sizes > 0).all()) else None


def deal_by_labels(
    parts: Parts, pool: Samples, test: Samples, tasks: Mapping[str, Task], sets: Sequence[Names], seed: int
) -> Parts:
    """Give each client a share of the test samples, proportional to its training samples and of the same label mix.

    Clients choose in random order; what a stratum can no longer give comes from the client's other strata, and from
    no stratum it does not train on. Every client gets at least one sample if there are enough samples for that.
    ``sets[k]`` are client k's tasks, whose labels count.
    """
    shares = share_sizes(parts.sizes, len(test))
    shuffled = numpy_generator(seed, "test part", "stock").permutation(len(test))
    taken = np.zeros(len(test), dtype=bool)
    stocks = {held: Stock(label_strata(test, used), shuffled, taken) for held, used in task_sets(sets, tasks).items()}
    trained = {held: label_strata(pool, used) for held, used in task_sets(sets, tasks).items()}
    lists: list[IntArray] = [NONE] * parts.clients
    for client in numpy_generator(seed, "test part", "order").permutation(parts.clients):
        held = sets[client]
        kinds, counts = np.unique(trained[held][parts.of(client)], return_counts=True)
        lists[client] = stocks[held].take(kinds, counts, int(shares[client]))
    return Parts.of_lists(lists)


def task_sets(sets: Sequence[Names], tasks: Mapping[str, Task]) -> dict[Names, list[Task]]:
    """Return the tasks of each distinct task set, in the order of ``tasks``."""
    return {held: [task for name, task in tasks.items() if name in held] for held in sorted(set(sets))}


def share_sizes(sizes: IntArray, samples: int) -> IntArray:
    """Share test samples among clients in proportion to their training sizes, (clients,).

    By largest remainders; no client gets less than one if there are as many samples as clients.
    """
    one = np.zeros(len(sizes), dtype=bool)
    if samples >= len(sizes):
        while True:
            rest = np.where(one, 0, sizes)
            small = ~one & (rest * (samples - int(one.sum())) < rest.sum())
            if not small.any():
                break
            one |= small
    others = np.flatnonzero(~one)
    shares = np.ones(len(sizes), dtype=np.int64)
    left = np.array([samples - int(one.sum())])
    shares[others] = quotas(np.zeros(len(others), dtype=np.int64), sizes[others], left)
    return shares


class Stock:
    """Test samples by stratum, handed out once. ``taken`` (samples,) is shared by stocks over the same samples."""

    def __init__(self, strata_of: IntArray, shuffled: IntArray, taken: BoolArray) -> None:
        order = shuffled[np.argsort(strata_of[shuffled], kind="stable")]
        kinds, first = np.unique(strata_of[order], return_index=True)
        self._rows = {int(kind): rows for kind, rows in zip(kinds, np.split(order, first[1:]), strict=True)}
        self._seen = dict.fromkeys(self._rows, 0)
        self._taken = taken

    def take(self, kinds: IntArray, counts: IntArray, need: int) -> IntArray:
        """Take ``need`` samples in proportion to ``counts`` of the strata ``kinds``, or as many as these have left."""
        wanted = quotas(np.zeros(len(kinds), dtype=np.int64), counts, np.array([need]))
        pieces = [self._draw(int(kind), int(number)) for kind, number in zip(kinds, wanted, strict=True)]
        missing = need - sum(map(len, pieces))
        for kind in kinds[np.argsort(-counts, kind="stable")]:
            if missing == 0:
                break
            pieces.append(self._draw(int(kind), missing))
            missing -= len(pieces[-1])
        return np.concatenate(pieces)

    def _draw(self, kind: int, number: int) -> IntArray:
        rows = self._rows.get(kind, NONE)
        pieces = [NONE]
        while number > 0 and (seen := self._seen.get(kind, 0)) < len(rows):
            piece = rows[seen : seen + number]
            self._seen[kind] = seen + len(piece)
            pieces.append(piece[~self._taken[piece]])
            number -= len(pieces[-1])
        drawn = np.concatenate(pieces)
        self._taken[drawn] = True
        return drawn
