"""Which of the compared methods ended with the same parameters, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

from polyfed.report.entries import NOTHING, Summary
from polyfed.report.variants import Variant


def same_bits(found: Sequence[Variant]) -> list[tuple[Variant, ...]]:
    """Group variants that have a seed in common and the same digests for every such seed; others are left out."""
    groups: list[list[Variant]] = []
    for one in found:
        for group in groups:
            if all(_same(one, other) for other in group):
                group.append(one)
                break
        else:
            groups.append([one])
    return [tuple(group) for group in groups if len(group) > 1]


def _same(one: Variant, other: Variant) -> bool:
    mine, others = ({run.summary.seed: _bits(run.summary) for run in each.runs} for each in (one, other))
    common = mine.keys() & others.keys()
    return bool(common) and all(mine[seed] is not None and mine[seed] == others[seed] for seed in common)


def _bits(summary: Summary) -> tuple[str, str] | None:
    """Return what the server and the clients ended with; None where the digest that tells runs apart says nothing."""
    _, told = summary.told_digest
    return None if told in NOTHING else (summary.digest, summary.personal_digest)
