"""Samples that are of use to a client: they have a modality it holds and a target of one of its tasks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polyfed.data.samples import Samples
from polyfed.scenario.holdings import Names, table_of
from polyfed.scenario.parts import BoolArray, Parts


def usable_of(pool: Samples, parts: Parts, modality_sets: Sequence[Names], sets: Sequence[Names]) -> BoolArray:
    """Mark the samples of which their client holds a modality and a task's target, (samples,)."""
    usable = np.ones(len(parts.positions), dtype=bool)
    for held, masks in ((modality_sets, pool.present), (sets, pool.labelled)):
        table = table_of(held, list(masks))
        found = np.zeros_like(usable)
        for column, mask in enumerate(masks.values()):
            found |= table[parts.owner, column] & mask.numpy()[parts.positions]
        usable &= found
    return usable
