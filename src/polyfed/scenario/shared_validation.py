"""One set of validation samples that all clients share, taken out of the training table before it is dealt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from polyfed.data.samples import Samples
from polyfed.data.schema import Task
from polyfed.errors import UserError
from polyfed.rng import numpy_generator
from polyfed.scenario.federation import Card
from polyfed.scenario.holdings import Names
from polyfed.scenario.labels import strata
from polyfed.scenario.parts import Parts
from polyfed.scenario.split import cut


@dataclass(frozen=True)
class SharedRows:
    """Samples that every client has. One sees them with its own modalities and tasks, and those of use to it only."""

    samples: Samples
    _kinds: dict[tuple[Names, Names], Samples] = field(default_factory=dict, repr=False, compare=False)

    def held_by(self, card: Card) -> Samples:
        """Return the samples as a client sees them."""
        kind = (card.modalities, card.tasks)
        found = self._kinds.get(kind)
        if found is None:
            seen = self.samples.only(*kind).holding(card.modalities)
            labelled = torch.stack([seen.labelled[task] for task in card.tasks]).any(0)
            found = self._kinds[kind] = seen.take(torch.nonzero(labelled).flatten())
        return found


def set_apart(
    pool: Samples, tasks: Sequence[Task], fraction: float, unit: str | None, grouped_by: object, seed: int
) -> tuple[Samples, Samples]:
    """Return what is left to deal to clients, and the validation samples: a share of each label, whole units.

    Raises UserError for a fraction of 0, and where nothing would be left of a group of the field ``grouped_by``.
    """
    if fraction == 0:
        raise UserError(
            "scenario: validation is 0, but validation_source is 'shared'; set validation to the share of the training "
            "table that all clients are to be validated on, such as 0.1, or validation_source to 'client'"
        )
    everybody = Parts(np.arange(len(pool)), np.zeros(len(pool), dtype=np.int64), 1)
    units = None if unit is None else pool.field(unit).numpy()
    generator = numpy_generator(seed, "split", "shared validation")
    chosen = torch.from_numpy(cut(everybody, strata(pool, tasks), fraction, generator, units))
    left = pool.take(torch.nonzero(~chosen).flatten())
    if isinstance(grouped_by, str) and grouped_by in pool.table.fields:
        lost = np.setdiff1d(pool.field(grouped_by).numpy(), left.field(grouped_by).numpy())
        if len(lost):
            raise UserError(
                f"scenario: the shared validation samples are all there is of the {grouped_by!r} {lost[0]}, so nothing "
                "is left for its client; use a smaller validation, or the validation_source 'client'"
            )
    return left, pool.take(torch.nonzero(chosen).flatten())
