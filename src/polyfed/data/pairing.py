"""Seeded choices of rows by class: pairing samples of two sources, and smaller stratified subsets."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from polyfed.errors import UserError


def pair_by_class(labels: Tensor, pool: Tensor, generator: np.random.Generator) -> Tensor:
    """Draw, for each label, a row of ``pool`` that has the same label, with replacement.

    ``labels`` (rows,) and ``pool`` (candidates,) hold class numbers; returns positions in ``pool`` (rows,) int64.
    Raises UserError for a label that ``pool`` lacks.
    """
    partner = torch.empty(len(labels), dtype=torch.int64)
    for label in np.unique(labels).tolist():
        wanted, found = torch.nonzero(labels == label)[:, 0], torch.nonzero(pool == label)[:, 0]
        if len(found) == 0:
            raise UserError(f"class {label} has no sample to be paired with")
        partner[wanted] = found[torch.from_numpy(generator.integers(len(found), size=len(wanted)))]
    return partner


def stratified(labels: Tensor, limit: int | None, generator: np.random.Generator) -> Tensor:
    """Choose ``limit`` rows with the class shares of ``labels`` (each class within one row of its exact share).

    Returns row numbers in ascending order, all rows when ``limit`` is None. Raises UserError when ``limit`` exceeds
    the number of rows.
    """
    if limit is None:
        return torch.arange(len(labels))
    if limit > len(labels):
        raise UserError(f"limit {limit} is more than the {len(labels)} training samples there are")
    # Spread each class evenly over [0, 1) in a random order; the first rows then hold every class in proportion.
    place = np.empty(len(labels))
    for label in np.unique(labels).tolist():
        rows = np.flatnonzero(labels.numpy() == label)
        place[generator.permutation(rows)] = (np.arange(len(rows)) + 0.5) / len(rows)
    return torch.from_numpy(np.sort(np.argsort(place, kind="stable")[:limit]))
