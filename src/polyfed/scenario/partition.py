"""Partitions: how the training pool is dealt to the clients.

Every builder is called as ``builder(pool, tasks, clients, seed, **options)`` and returns the positions in the pool that
each client gets, ascending. The parts are disjoint and cover the pool.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import numpy as np
from pydantic import Field

from polyfed.data.samples import Samples
from polyfed.data.schema import Task
from polyfed.errors import UserError, count_of, unknown, up_to
from polyfed.rng import numpy_generator
from polyfed.scenario.labels import label_task, labels_of
from polyfed.scenario.parts import IntArray

Concentration = Annotated[float, Field(gt=0, le=1e9)]
Minimum = Annotated[int, Field(ge=0, description="samples every client gets at least; null: min(200, 40 % of n/K)")]
Label = Annotated[str, Field(description="classification task whose labels are used; null: the first")]
Tasks = Mapping[str, Task]


def iid(pool: Samples, tasks: Tasks, clients: int | None, seed: int) -> list[IntArray]:
    """Equal parts of the shuffled pool."""
    count = counted(clients, len(pool), "iid")
    order = numpy_generator(seed, "partition", "iid").permutation(len(pool))
    return [np.sort(part) for part in np.array_split(order, count)]


def dirichlet(
    pool: Samples,
    tasks: Tasks,
    clients: int | None,
    seed: int,
    *,
    alpha: Annotated[Concentration | None, Field(description="evenness of labels; null: the pool's label mix")] = 0.5,
    quantity_alpha: Annotated[Concentration | None, Field(description="evenness of sizes; null: equal")] = None,
    minimum: Minimum | None = None,
    label: Label | None = None,
) -> list[IntArray]:
    """Label skew: each client has its own label mix, drawn from Dirichlet(alpha).

    Clients take their samples in random order from what is left of each class, so that late clients may have to deviate
    from the mix they drew (case A of Chen & Li, INFOCOM 2022, with disjoint clients). Small ``alpha``: few classes per
    client; a large one tends to equally frequent classes; null follows the label frequencies of the pool.
    """
    count = counted(clients, len(pool), "dirichlet")
    labels = labels_of(pool, label_task(tasks, label, "partition dirichlet"))
    sizes = sizes_of(len(pool), count, quantity_alpha, minimum, seed)
    shuffle = numpy_generator(seed, "partition", "stock")
    stocks = [shuffle.permutation(np.flatnonzero(labels == value)) for value in np.unique(labels)]
    left = np.array([len(stock) for stock in stocks])
    everybody = left / left.sum()
    draw = numpy_generator(seed, "partition", "label mix")
    parts: dict[int, IntArray] = {}
    for client in numpy_generator(seed, "partition", "order").permutation(count):
        mix = everybody if alpha is None else draw.dirichlet(np.full(len(stocks), alpha))
        taken = take_from_stock(int(sizes[client]), mix, left, draw)
        pieces = [stocks[c][left[c] - taken[c] : left[c]] for c in np.flatnonzero(taken)]
        parts[client] = np.sort(np.concatenate(pieces)) if pieces else np.empty(0, dtype=np.int64)
        left = left - taken
    return [parts[client] for client in range(count)]


def take_from_stock(need: int, mix: np.ndarray, left: IntArray, generator: np.random.Generator) -> IntArray:
    """Draw how many samples of each class a client takes, (classes,), never more than are ``left``.

    What a class cannot give is drawn again from the classes still in stock; if the mix has none of these, in proportion
    to the stock.
    """
    taken = np.zeros_like(left)
    while need > 0:
        stock = left - taken
        weights = np.where(stock > 0, mix, 0.0)
        if weights.sum() < 1e-12:
            weights = stock.astype(float)
        counts = np.minimum(generator.multinomial(need, weights / weights.sum()), stock)
        taken = taken + counts
        need -= int(counts.sum())
    return taken


def shards(
    pool: Samples,
    tasks: Tasks,
    clients: int | None,
    seed: int,
    *,
    shards_per_client: Annotated[int, Field(ge=1)] = 2,
    label: Label | None = None,
) -> list[IntArray]:
    """Label skew: the pool sorted by label is cut into shards, a few of which go to each client.

    Source: McMahan et al., AISTATS 2017, section 3 (there 200 shards, two for each of 100 clients).
    """
    count = counted(clients, len(pool), "shards")
    total = count * shards_per_client
    if total > len(pool):
        raise UserError(
            f"partition shards: {count} clients with {shards_per_client} shards each need {total} samples, but the pool"
            f" has {len(pool)}; use fewer clients or shards"
        )
    generator = numpy_generator(seed, "partition", "shards")
    labels = labels_of(pool, label_task(tasks, label, "partition shards"))
    shuffled = generator.permutation(len(pool))
    pieces = np.array_split(shuffled[np.argsort(labels[shuffled], kind="stable")], total)
    dealt = generator.permutation(total).reshape(count, shards_per_client)
    return [np.sort(np.concatenate([pieces[shard] for shard in hand])) for hand in dealt]


def quantity(
    pool: Samples,
    tasks: Tasks,
    clients: int | None,
    seed: int,
    *,
    alpha: Annotated[Concentration, Field(description="evenness of the sizes")] = 1.0,
    minimum: Minimum | None = None,
) -> list[IntArray]:
    """Quantity skew: sizes drawn from Dirichlet(alpha), samples at random."""
    sizes = sizes_of(len(pool), counted(clients, len(pool), "quantity"), alpha, minimum, seed)
    order = numpy_generator(seed, "partition", "quantity").permutation(len(pool))
    return [np.sort(part) for part in np.split(order, np.cumsum(sizes)[:-1])]


def natural(
    pool: Samples,
    tasks: Tasks,
    clients: int | None,
    seed: int,
    *,
    field: Annotated[str, Field(description="integer field of the dataset, such as subject or speaker")],
) -> list[IntArray]:
    """The groups of a field (subjects, speakers) as they are; with fewer clients, several groups each.

    One client per group, in ascending order of the field's values, when ``clients`` is null or the number of groups.
    """
    if field not in pool.table.fields:
        raise unknown("field", field, pool.table.fields, place="partition natural")
    values, group = np.unique(pool.field(field).numpy(), return_inverse=True)
    count = len(values) if clients is None else clients
    if not 1 <= count <= len(values):
        raise UserError(
            f"partition natural: {count_of(count, 'client')}, but the field {field!r} has"
            f" {count_of(len(values), 'group')}; use {up_to(len(values), 'client')}, or null for one client per group"
        )
    owner = np.arange(len(values))
    if count < len(values):
        owner[numpy_generator(seed, "partition", "natural").permutation(len(values))] = owner % count
    by_client = np.argsort(owner[group], kind="stable")
    sizes = np.bincount(owner[group], minlength=count)
    return np.split(by_client, np.cumsum(sizes)[:-1])


def counted(clients: int | None, samples: int, name: str) -> int:
    """Return the number of clients if the pool has a sample for each."""
    if clients is None:
        raise UserError(f"partition {name}: say how many clients; only the partition 'natural' takes it from the data")
    if not 1 <= clients <= samples:
        raise UserError(
            f"partition {name}: {count_of(clients, 'client')}, but the pool has {count_of(samples, 'sample')} to deal;"
            f" use {up_to(samples, 'client')}"
        )
    return clients


def sizes_of(samples: int, clients: int, alpha: float | None, minimum: int | None, seed: int) -> IntArray:
    """Draw the clients' sizes, (clients,): a minimum each, and shares from Dirichlet(alpha) of the rest.

    ``alpha`` None gives equal sizes. What is left after rounding down goes to the largest fractional
    parts (ties: lower id).
    """
    floor = max(1, min(200, int(0.4 * samples / clients))) if minimum is None else minimum
    rest = samples - clients * floor
    if rest < 0:
        raise UserError(
            f"partition: minimum {floor} for each of {clients} clients needs {clients * floor} samples, but the pool"
            f" has {samples}; lower the minimum to {samples // clients} or less"
        )
    if alpha is None:
        shares = np.full(clients, 1 / clients)
    else:
        shares = numpy_generator(seed, "partition", "sizes").dirichlet(np.full(clients, alpha))
    exact = shares * rest
    sizes: IntArray = np.floor(exact).astype(np.int64)
    largest = np.lexsort((np.arange(clients), sizes - exact))
    sizes[largest[: rest - int(sizes.sum())]] += 1
    sizes += floor
    return sizes
