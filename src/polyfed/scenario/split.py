"""Splits inside the clients: validation and test parts, and shares of an official test table.

A part is stratified by label. Where samples belong together (overlapping windows of one recording), whole units are
kept on one side of the cut.
"""

from __future__ import annotations

import numpy as np

from polyfed.scenario.parts import BoolArray, IntArray, Parts


def part_size(samples: IntArray, fraction: float) -> IntArray:
    """Return how many samples of each client are cut off: the fraction rounded up, at least 8, at most half.

    Zero if the fraction is zero.
    """
    if fraction == 0:
        return np.zeros_like(samples)
    wanted = np.ceil(fraction * samples - 1e-9).astype(np.int64)  # 0.1 * 30 is a little above 3
    size: IntArray = np.minimum(np.maximum(8, wanted), samples // 2)
    return size


def cut(
    parts: Parts, strata: IntArray, fraction: float, generator: np.random.Generator, units: IntArray | None = None
) -> BoolArray:
    """Choose a part of each client's samples, (samples,) bool.

    ``strata`` (samples,) numbers each sample's stratum, ``units`` (samples,) the unit it must not be torn from. Single
    samples meet the size and the strata's quotas exactly; units meet the size as nearly as whole units can, and at
    least one stays on either side (a client with a single unit is not cut).
    """
    size = part_size(parts.sizes, fraction)
    if units is not None:
        return cut_units(parts, strata, units, size, generator)
    order, stratum = ordered(parts.owner, strata, generator)
    first = np.flatnonzero(np.diff(stratum, prepend=-1))
    counts = np.diff(first, append=len(order))
    quota = quotas(parts.owner[order[first]], counts, size)
    rank = np.arange(len(order)) - first[stratum]
    chosen = np.zeros(len(order), dtype=bool)
    chosen[order] = rank < quota[stratum]
    return chosen


def ordered(owner: IntArray, strata: IntArray, generator: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Shuffle inside each client's strata: the order, and the running number of (client, stratum) in that order."""
    order = np.lexsort((generator.random(len(owner)), strata, owner))
    new = np.diff(owner[order], prepend=-1) + np.abs(np.diff(strata[order], prepend=-1)) > 0
    return order, np.cumsum(new) - 1


def quotas(owner: IntArray, counts: IntArray, size: IntArray) -> IntArray:
    """Share each client's ``size`` among its strata in proportion, by largest remainders (ties: lower stratum).

    ``owner`` (strata,) ascending and ``counts`` (strata,) describe the strata of all clients; ``size`` (clients,).
    """
    total = np.bincount(owner, weights=counts, minlength=len(size)).astype(np.int64)
    product = size[owner] * counts
    quota = product // total[owner]
    remainder = product % total[owner]
    left = size - np.bincount(owner, weights=quota, minlength=len(size)).astype(np.int64)
    by_remainder = np.lexsort((np.arange(len(owner)), -remainder, owner))
    start = np.searchsorted(owner, np.arange(len(size)))
    rank = np.empty_like(owner)
    rank[by_remainder] = np.arange(len(owner)) - start[owner]
    return quota + (rank < left[owner])


def cut_units(
    parts: Parts, strata: IntArray, units: IntArray, size: IntArray, generator: np.random.Generator
) -> BoolArray:
    """Choose whole units of each client until its ``size`` is met as nearly as possible.

    Units are taken from the strata in turn: a unit's place in its shuffled stratum, as a share of the stratum, is its
    place in the queue. A unit counts to the commonest stratum of its samples (ties: the lower).
    """
    pairs, unit = np.unique(np.stack([parts.owner, units]), axis=1, return_inverse=True)
    unit = unit.ravel()
    owner = pairs[0]
    weight = np.bincount(unit)
    stratum = commonest(unit, strata)
    order, group = ordered(owner, stratum, generator)
    first = np.flatnonzero(np.diff(group, prepend=-1))
    queued = weight[order]
    starts = np.cumsum(queued) - queued
    place = np.empty(len(owner))
    place[order] = (starts - starts[first][group] + queued / 2) / np.bincount(group, weights=queued)[group]
    queue = np.lexsort((generator.random(len(owner)), place, owner))
    chosen = np.zeros(len(owner), dtype=bool)
    chosen[queue] = within(owner[queue], weight[queue], size)
    of_sample: BoolArray = chosen[unit]
    return of_sample


def within(owner: IntArray, weight: IntArray, size: IntArray) -> BoolArray:
    """Mark the units of each client's queue up to its size: the first always, the last never."""
    new = np.diff(owner, prepend=-1) > 0
    start = np.flatnonzero(new)
    starts = np.cumsum(weight) - weight
    middle = starts - starts[start][np.cumsum(new) - 1] + weight / 2
    chosen: BoolArray = (middle <= size[owner]) & (size[owner] > 0)
    chosen[start] = size[owner[start]] > 0
    chosen[np.append(start[1:], len(owner)) - 1] = False
    return chosen


def commonest(group: IntArray, values: IntArray) -> IntArray:
    """Return each group's most frequent value (ties: the lowest), (groups,)."""
    pairs, counts = np.unique(np.stack([group, values]), axis=1, return_counts=True)
    order = np.lexsort((-pairs[1], counts, pairs[0]))
    last = np.flatnonzero(np.diff(pairs[0][order], append=-1))
    values_of_group: IntArray = pairs[1][order[last]]
    return values_of_group
