"""How many processes do the work, and what each works with."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable

import torch

from polyfed.engine.batching import convolutional
from polyfed.engine.resident import Resident
from polyfed.engine.steps import Alone, Crew
from polyfed.engine.trainer import Trainer
from polyfed.engine.workers import Event, Workers
from polyfed.errors import UserError
from polyfed.scenario.federation import ClientId, Federation

LEAST_WORK = 10_000_000
"""Samples times parameters of a client's round from which another process pays."""


def workers_of(wanted: int | None, device: torch.device, planner: Trainer, federation: Federation) -> int:
    """Return the number of processes that train, at most one per client; None leaves it to model and machine.

    Then it is one per GPU; or, on a CPU, one per core, but one alone where it has several threads, and where all models
    are small: so small that clients are trained stacked, or that handing a client over costs more than training it.
    Raises UserError where the system cannot fork.
    """
    forks = "fork" in multiprocessing.get_all_start_methods()
    if wanted is not None:
        if wanted > 1 and not forks:
            raise UserError(f"engine.workers: {wanted}, but this system cannot fork processes; set it to 1")
        return max(1, min(wanted, len(federation.cards)))
    if not forks or torch.get_num_threads() > 1:
        return 1
    if device.type == "cuda":
        return max(1, torch.cuda.device_count())
    samples = federation.cards.mean_examples
    if all(small(planner, planner.model(parts), samples) for parts in federation.cards.models):
        return 1
    return max(1, min(cores(), len(federation.cards)))


def small(planner: Trainer, model: Resident, samples: float) -> bool:
    """Whether a client with such a model and so many samples is no work worth handing over."""
    if planner.rule.against(model) is None:
        return True
    # A convolution uses each parameter at many places of a sample, so parameters do not tell its work.
    return not convolutional(model) and samples * len(model.values) < LEAST_WORK


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def crew_of(
    count: int, alone: Alone, device: torch.device, parameter_bytes: int, note: Callable[[Event], None]
) -> Crew:
    """Return who does the work: ``alone``, or so many workers that do as it would, each on one of the GPUs if any."""
    if count == 1:
        return alone
    planner, federation = alone.trainer, alone.federation

    def make(number: int) -> Alone:
        place = torch.device(device.type, number % torch.cuda.device_count()) if device.type == "cuda" else device
        trainer = Trainer(planner.architecture, place, planner.rule, planner.precision)
        return Alone(alone.method, federation, alone.judged, trainer)

    def weigh(client: ClientId) -> float:
        card = federation.cards[client]
        return card.examples * len(planner.model(card.components).values)

    return Workers(count, make, parameter_bytes, weigh, note)
