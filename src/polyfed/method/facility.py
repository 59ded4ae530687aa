"""Facility location: choose clients whose updates stand for everybody's (Balakrishnan et al., DivFL, ICLR 2022).

The cost of a set S is Σ_k min_{i in S} D[k, i]. The gain N · max D − cost(S), 0 for the empty set, is monotone and
submodular, so greedy choice reaches at least 1 − 1/e of the best gain of any set of that size.

Distances are float64 matrices (clients, clients). A client of which nothing is known has NaN in its row and column: it
needs no representative and is none.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Distances = NDArray[np.float64]
Draw = Callable[[Sequence[int], int], Sequence[int]]
"""Draws so many of the places given, without replacement."""

ConflictRule = Literal["hybrid", "slides_literal", "code"]


def usable(distances: Distances) -> Distances:
    """Return columns that can be compared: those of unknown clients are infinite, their rows count nothing."""
    known = ~np.isnan(distances.diagonal())
    return np.where(known[:, None], np.where(known[None, :], distances, np.inf), 0.0)


def nearest_yet(count: int) -> Distances:
    """Return each client's distance (clients,) from the empty set."""
    return np.full(count, np.inf)


def best(columns: Distances, nearest: Distances, candidates: Sequence[int]) -> int:
    """Return the candidate that lowers the cost most; ties go to the lowest place.

    ``nearest`` (clients,) is each client's distance from the set so far.
    """
    ordered = np.sort(np.asarray(candidates))
    costs = np.minimum(nearest[:, None], columns[:, ordered]).sum(axis=0)
    return int(ordered[int(np.argmin(costs))])


def cost(distances: Distances, chosen: Sequence[int]) -> float:
    """Return Σ_k min_{i in S} D[k, i] over known clients."""
    return float(usable(distances)[:, list(chosen)].min(axis=1).sum())


def represented(distances: Distances, chosen: Sequence[int]) -> list[int]:
    """Return for how many clients each of the chosen ones stands: those to which it is the nearest of them.

    Each stands for itself; of several that are equally near the first one does. Nobody stands for unknown clients.
    """
    nearest = usable(distances)[:, list(chosen)].argmin(axis=1)
    nearest[list(chosen)] = range(len(chosen))
    counted = ~np.isnan(distances.diagonal())
    counted[list(chosen)] = True
    stands_for: list[int] = np.bincount(nearest[counted], minlength=len(chosen)).tolist()
    return stands_for


def enough(count: int, size: int) -> int:
    """Return the usual number of candidates per step, max(K, ⌊N / 10⌋)."""
    return max(size, count // 10)


def stochastic_greedy(distances: Distances, size: int, candidates: int, draw: Draw) -> list[int]:
    """Choose ``size`` clients one by one, each the best of ``candidates`` drawn anew from those not yet chosen."""
    columns, nearest = usable(distances), nearest_yet(len(distances))
    chosen: list[int] = []
    left = list(range(len(distances)))
    while len(chosen) < min(size, len(distances)):
        place = best(columns, nearest, draw(left, min(candidates, len(left))))
        chosen.append(place)
        left.remove(place)
        nearest = np.minimum(nearest, columns[:, place])
    return chosen


def lazy_greedy(distances: Distances, size: int) -> list[int]:
    """Choose ``size`` clients one by one, each the best of all: plain greedy, without recomputing every gain.

    Gains only shrink as the set grows, so a client whose gain of old is below another's gain of now need not be looked
    at (Minoux, 1978).
    """
    count = len(distances)
    columns, nearest = usable(distances), nearest_yet(count)
    first = best(columns, nearest, range(count))
    chosen, nearest = [first], np.minimum(nearest, columns[:, first])
    gains = (nearest[:, None] - np.minimum(nearest[:, None], columns)).sum(axis=0)
    queue = [(-float(gain), place) for place, gain in enumerate(gains) if place != first]
    heapq.heapify(queue)
    while len(chosen) < min(size, count):
        _, place = heapq.heappop(queue)
        gain = float((nearest - np.minimum(nearest, columns[:, place])).sum())
        if queue and (-gain, place) > queue[0]:
            heapq.heappush(queue, (-gain, place))
            continue
        chosen.append(place)
        nearest = np.minimum(nearest, columns[:, place])
    return chosen


def balanced_greedy(
    whole: Distances,
    single: Distances,
    ratios: NDArray[np.float64],
    size: int,
    *,
    threshold: float,
    candidates: int,
    draw: Draw,
    rule: ConflictRule = "hybrid",
    share_cover: bool = True,
) -> tuple[list[int], list[int]]:
    """Choose multi-modal participants, and participants that train the weak modality alone (BMSFed, ECCV 2024).

    ``whole`` are distances between updates of all encoders, ``single`` between updates of the weak modality's encoder
    (NaN for clients without it), ``ratios`` (clients,) how far the weak modality of a client is behind. Each step draws
    candidates and finds the best for either cost; where they differ, and the second one's ratio is above ``threshold``,
    it joins the uni-modal participants, else the first one joins the multi-modal ones. ``rule`` ``slides_literal`` has
    the second one join these instead, ``code`` does not look at whether they differ. With ``share_cover`` multi-modal
    participants also stand for others in the weak modality.
    """
    columns, weak = usable(whole), usable(single)
    owners = ~np.isnan(single.diagonal())
    covered = covered_weak = nearest_yet(len(whole))
    multi: list[int] = []
    uni: list[int] = []
    left = list(range(len(whole)))
    while len(multi) + len(uni) < min(size, len(whole)):
        drawn = draw(left, min(candidates, len(left)))
        first = best(columns, covered, drawn)
        able = [place for place in drawn if owners[place]]
        second = best(weak, covered_weak, able) if able else first
        same = first == second and rule != "code"
        alone = bool(able) and not same and bool(ratios[second] > threshold)
        place = second if alone or rule == "slides_literal" else first
        (uni if alone else multi).append(place)
        left.remove(place)
        if not alone:
            covered = np.minimum(covered, columns[:, place])
        if alone or share_cover:
            covered_weak = np.minimum(covered_weak, weak[:, place])
    return multi, uni
