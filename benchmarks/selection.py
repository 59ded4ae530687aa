"""What one selection costs the server: 1,000 clients of a model of 1,000,000 parameters, on one core.

A selection is choosing the cohort and, after its training, renewing what is remembered of its members' updates.
Times are those of the processor, so a machine that is busy with other things changes them little.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.engine import as_the_command_line
from benchmarks.fold import peak_and_now
from polyfed.engine.drive import drive
from polyfed.method.balance import BALANCE, RATIOS
from polyfed.method.companion import Asked
from polyfed.method.protocol import Ask, Clock, Cohort, Groups, Order, Reply
from polyfed.method.select import Selector, whole_cohort
from polyfed.method.selections import SELECTORS
from polyfed.scenario.federation import Card

CLIENTS = 1_000
PER_ROUND = (10, 100)
MODALITIES = ("audio", "image")
SHAPES: Mapping[str, tuple[int, ...]] = {
    "encoder.audio.weight": (700, 700),
    "encoder.image.weight": (700, 700),
    "head.label.weight": (10, 2_000),
}
WAYS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "divfl": ("divfl", {}),
    "divfl, full greedy": ("divfl", {"greedy": "full"}),
    "bms": ("bms", {}),
}
DIRECTIONS = 8


class Federation:
    """Cards, and replies whose updates are mixtures of a few directions: to make new noise would take longest."""

    def __init__(self, clients: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.roster = {k: Card(k, f"client {k}", MODALITIES, ("label",), 50) for k in range(clients)}
        self.parameters = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        self._mixes = torch.randn(clients, DIRECTIONS, generator=generator)
        self._directions = {
            name: torch.randn(DIRECTIONS, *shape, generator=generator) for name, shape in shapes.items()
        }

    def reply(self, client: int) -> Reply:
        """Return what a client would send."""
        after = {name: value + self._update(name, client) for name, value in self.parameters.items()}
        return Reply(50, {"parameters": after, BALANCE: {RATIOS: torch.tensor([1.0 + client % 3])}})

    def _update(self, name: str, client: int) -> Tensor:
        directions = self._directions[name]
        return (self._mixes[client] @ directions.flatten(1)).view(directions.shape[1:])


def unasked(cohort: Cohort) -> dict[int, Order]:
    """These selections ask nobody before they choose."""
    raise AssertionError("no orders are wanted")


def nobody(wanted: Ask) -> None:
    """As they ask nobody, nobody answers."""
    raise AssertionError("nobody is asked")


def renewed(
    selector: Selector, memory: Groups, cohort: Cohort, held: Federation, starting: bool
) -> tuple[Groups, float]:
    """Feed the cohort's replies to what remembers them; return that and the seconds, without those to make replies."""
    reducer, spent = selector.watch(memory, Asked(held.parameters, cohort, held.roster, starting)), 0.0
    for client in cohort:
        reply = held.reply(client)
        started = time.process_time()
        reducer.add(client, reply)
        spent += time.process_time() - started
    started = time.process_time()
    return reducer.finish(), spent + time.process_time() - started


def measure_one(selector: Selector, held: Federation, repeats: int) -> dict[str, Any]:
    """Time the start-up pass and some selections after it; bytes are those kept, and the most in use at a time."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    _, before = peak_and_now()
    everybody = whole_cohort(held.roster, held.roster)
    memory = selector.begin(held.parameters, held.roster)
    memory, start = renewed(selector, memory, everybody, held, starting=True)
    choosing, renewing = [], []
    for number in range(1, repeats + 1):
        started = time.process_time()
        chosen = selector.choose(unasked, memory, held.roster, Clock(0, number, repeats))
        cohort, memory = drive(chosen, nobody)
        choosing.append(time.process_time() - started)
        memory, seconds = renewed(selector, memory, cohort, held, starting=False)
        renewing.append(seconds)
    kept = sum(value.numel() * value.element_size() for group in memory.values() for value in group.values())
    return {
        "start": start,
        "choose": median(choosing),
        "renew": median(renewing),
        "kept": kept,
        "peak": peak_and_now()[0] - before,
    }


def row(label: str, count: int, repeats: int, clients: int, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Measure one way to select."""
    as_the_command_line()
    name, options = WAYS[label]
    selector = SELECTORS.build(name, {"clients": count, **options})
    return {"name": label, "clients": count, **measure_one(selector, Federation(clients, shapes), repeats)}


def measure(repeats: int) -> list[dict[str, Any]]:
    """Measure every way to select, each in a process of its own, so that its memory can be read."""
    rows = []
    for label in WAYS:
        for count in PER_ROUND:
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                rows.append(pool.submit(row, label, count, repeats, CLIENTS, SHAPES).result())
    return rows
