"""What a selector remembers of the clients' updates: vectors, and the distances between them.

An update is (parameters sent) − (parameters after local training): an accumulated gradient times the step size. Those
of clients that do not take part stay as they were when they last did.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.linalg import vecdot

from polyfed.errors import UserError
from polyfed.method.facility import Distances
from polyfed.method.protocol import Groups
from polyfed.method.select import ids_of
from polyfed.model.architecture import Tensors
from polyfed.rng import torch_generator
from polyfed.scenario.federation import ClientId, Roster

EXACT = 2 * 10**7
"""Numbers up to which the updates of all clients are kept as they are; beyond, sketches of them are.

They are in every checkpoint, and products of all of them with the new ones are taken every round.
"""

SKETCH = 16_384
"""Entries of a sketch: a distance between sketches has a standard error of at most 1 / sqrt(2 · entries), 0.6 %."""

CHUNK = 2**22
"""Numbers that are multiplied at a time."""

SQUARES = "squares"
"""The group of memory that holds squared distances, a (clients, clients) float64 matrix per track."""


@dataclass(frozen=True)
class Track:
    """Updates of some of the parameters: which, and how many numbers they are."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    @staticmethod
    def of(parameters: Tensors, names: Sequence[str]) -> Track:
        """Make a track of these parameters."""
        return Track(tuple(names), tuple(parameters[name].numel() for name in names))

    @property
    def size(self) -> int:
        """Numbers in an update."""
        return sum(self.sizes)

    def kept(self, clients: int) -> int:
        """Return how many numbers of an update are remembered: all, or a sketch where there are that many clients."""
        return SKETCH if clients * self.size > EXACT and self.size > SKETCH else self.size

    def vector(self, update: Tensors, clients: int) -> Tensor:
        """Return an update as a vector, sketched where those of all clients would take too much memory.

        It is zero for parameters that a client does not hold.
        """
        pieces = [
            update[name].flatten() if name in update else torch.zeros(size)
            for name, size in zip(self.names, self.sizes, strict=True)
        ]
        whole = torch.cat(pieces)
        return whole if self.kept(clients) == self.size else sketch(whole)


@lru_cache(maxsize=4)
def hashing(size: int) -> tuple[Tensor, list[int]]:
    """Return a sign for each of so many numbers, and a shift for each piece of them."""
    generator = torch_generator("count sketch", size)
    signs = torch.randint(2, (size,), generator=generator).float() * 2 - 1
    shifts: list[int] = torch.randint(SKETCH, (math.ceil(size / SKETCH),), generator=generator).tolist()
    return signs, shifts


def sketch(vector: Tensor) -> Tensor:
    """Return a count sketch (Charikar et al., 2002): numbers are added up, with random signs, in random buckets.

    Sums and differences of sketches are sketches of sums and differences, and squared lengths are kept in the mean. The
    vector is cut into pieces as long as the sketch, and each is added turned round by a random number of places: two
    numbers meet with the probability 1 / entries, or never, and that is all that the error bound needs. It is far
    faster than a bucket drawn for each number.
    """
    signs, shifts = hashing(len(vector))
    found = torch.zeros(SKETCH)
    for piece, shift in zip(torch.split(vector * signs, SKETCH), shifts, strict=True):
        ahead = min(len(piece), SKETCH - shift)
        found[shift : shift + ahead] += piece[:ahead]
        found[: len(piece) - ahead] += piece[ahead:]
    return found


def blank(tracks: Mapping[str, Track], clients: int) -> Groups:
    """Return a memory in which nothing is known; raises UserError if there is nothing to compare."""
    if not all(track.size for track in tracks.values()):
        raise UserError(
            "select.name: this selection compares the updates that clients send, and there are none: the method shares "
            "no parameters, or a modality's encoder has none"
        )
    squares = {name: torch.full((clients, clients), math.nan, dtype=torch.float64) for name in tracks}
    return {SQUARES: squares, **{name: {} for name in tracks}}


def distances(memory: Groups, track: str) -> Distances:
    """Return the distances between the clients' updates, NaN where one is unknown."""
    found: Distances = memory[SQUARES][track].sqrt().numpy()
    return found


def remembered(memory: Groups, track: str, new: Mapping[ClientId, Tensor], roster: Roster) -> Groups:
    """Return a memory with the updates of these clients (copied) renewed; only their rows and columns change."""
    if not new:
        return memory
    vectors = {**memory[track], **{str(client): vector.clone() for client, vector in new.items()}}
    places = {client: place for place, client in enumerate(ids_of(roster)) if str(client) in vectors}
    columns = torch.tensor(list(places.values()))
    rows = squared_distances(list(new.values()), [vectors[str(client)] for client in places])
    squares = memory[SQUARES][track].clone()
    for client, row in zip(new, rows, strict=True):
        place = places[client]
        squares[place, columns] = row
        squares[columns, place] = row
        squares[place, place] = 0.0
    return {**memory, track: vectors, SQUARES: {**memory[SQUARES], track: squares}}


def squared_distances(rows: Sequence[Tensor], columns: Sequence[Tensor]) -> Tensor:
    """Return the squared Euclidean distances (rows, columns) between vectors, in float64."""
    found = torch.zeros(len(rows), len(columns), dtype=torch.float64)
    step = max(1, CHUNK // (len(rows) + len(columns)))
    for start in range(0, len(columns[0]), step):
        left, right = (torch.stack([one[start : start + step] for one in side]).double() for side in (rows, columns))
        found.addmm_(left, right.t(), alpha=-2)
        found += vecdot(left, left)[:, None]
        found += vecdot(right, right)
    return found.clamp_(min=0)
