"""How far two numbers of the clients go together."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from statistics import correlation, mean

Points = Iterable[tuple[Hashable, float, float]]
"""Group, first and second number of every point."""

NOISE = 1e-9
"""Numbers that differ by less than this share of their size differ by rounding only."""


def correlation_within(points: Points) -> float | None:
    """Return the mean over groups (say, rounds) of Pearson's correlation within a group.

    Losses and weights both change from round to round; pooled over rounds, their correlation would mix that trend with
    the differences between clients that are asked about. Groups of fewer than three points, and those where a number
    does not vary, say nothing and are left out, as are points with a number that is not finite; None where nothing is
    left.
    """
    groups: dict[Hashable, tuple[list[float], list[float]]] = {}
    for group, first, second in points:
        if math.isfinite(first) and math.isfinite(second):
            firsts, seconds = groups.setdefault(group, ([], []))
            firsts.append(first)
            seconds.append(second)
    found = [
        correlation(_from_0_to_1(firsts), _from_0_to_1(seconds))
        for firsts, seconds in groups.values()
        if len(firsts) > 2 and _varies(firsts) and _varies(seconds)
    ]
    return mean(found) if found else None


def _varies(values: Sequence[float]) -> bool:
    spread = max(values) - min(values)
    return NOISE * max(map(abs, values)) < spread < math.inf


def _from_0_to_1(values: Sequence[float]) -> list[float]:
    """Rescale, which changes no correlation: squares of very small or large numbers would be 0 or infinite."""
    lowest, highest = min(values), max(values)
    return [(value - lowest) / (highest - lowest) for value in values]
