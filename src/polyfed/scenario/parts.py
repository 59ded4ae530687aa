"""Which samples each client has: the positions of all clients in one array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Parts:
    """Positions in a table, client after client, ascending within a client.

    ``positions`` (samples,) and ``owner`` (samples,), the client each position belongs to, ascending.
    """

    positions: IntArray
    owner: IntArray
    clients: int

    @staticmethod
    def of_lists(lists: Sequence[IntArray]) -> Parts:
        """Join one array of positions per client."""
        owner = np.repeat(np.arange(len(lists)), [len(part) for part in lists])
        return Parts.of_owners(np.concatenate(lists), owner, len(lists))

    @staticmethod
    def of_owners(positions: IntArray, owner: IntArray, clients: int) -> Parts:
        """Sort positions (samples,) by the client that owns each."""
        step = np.diff(owner)
        if bool(((step > 0) | ((step == 0) & (np.diff(positions) >= 0))).all()):  # as partitions deal them
            return Parts(positions, owner, clients)
        order = np.lexsort((positions, owner))
        return Parts(positions[order], owner[order], clients)

    @cached_property
    def sizes(self) -> IntArray:
        """Number of samples of each client, (clients,)."""
        return np.bincount(self.owner, minlength=self.clients)

    @cached_property
    def offsets(self) -> IntArray:
        """Where each client's positions start, (clients + 1,)."""
        return np.concatenate([[0], np.cumsum(self.sizes)])

    def span(self, client: int) -> slice:
        """Return where a client's positions stand."""
        return slice(int(self.offsets[client]), int(self.offsets[client + 1]))

    def of(self, client: int) -> IntArray:
        """Return a client's positions."""
        return self.positions[self.span(client)]

    def among(self, clients: IntArray) -> Parts:
        """Return the parts of some clients (ascending), numbered from 0."""
        if len(clients) == self.clients:
            return self
        keep = np.isin(self.owner, clients)
        return Parts(self.positions[keep], np.searchsorted(clients, self.owner[keep]), len(clients))

    def where(self, keep: BoolArray) -> Parts:
        """Return the parts with only those samples whose flag (samples,) is true."""
        return Parts(self.positions[keep], self.owner[keep], self.clients)

    def owning(self, values: BoolArray) -> BoolArray:
        """Return which clients have a sample whose flag (samples,) is true, (clients,)."""
        return np.bincount(self.owner[values], minlength=self.clients) > 0
