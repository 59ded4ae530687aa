"""Task skews: which client solves which tasks.

Every builder is called as ``builder(names, clients, seed, **options)`` with the names of the tasks in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from polyfed.registry import Options
from polyfed.scenario import holdings
from polyfed.scenario.holdings import Holdings, Rates


class TaskGroup(Options):
    """So many clients with these tasks."""

    clients: Annotated[int, Field(ge=1)]
    tasks: list[str]


def everything(names: Sequence[str], clients: int, seed: int) -> Holdings:
    """Every client solves every task its samples are labelled for."""
    return holdings.everybody(names, clients)


def rated(names: Sequence[str], clients: int, seed: int, *, rates: Rates) -> Holdings:
    """Each client has each task with a probability; at least one task each, and every task has a client."""
    return holdings.by_rates("task", names, clients, seed, rates)


def grouped(names: Sequence[str], clients: int, seed: int, *, groups: list[TaskGroup]) -> Holdings:
    """Groups of clients with the tasks named for each."""
    return holdings.grouped("task", names, clients, [(group.clients, group.tasks) for group in groups])


def listed(names: Sequence[str], clients: int, seed: int, *, sets: list[list[str]]) -> Holdings:
    """The tasks of every client, one list per client id."""
    return holdings.listed("task", names, clients, sets)
