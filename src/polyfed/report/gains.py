"""Transfer: how much better or worse each client does than by training alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from polyfed.report.entries import ClientResult
from polyfed.report.formats import gain
from polyfed.report.records import RunData
from polyfed.report.variants import Variant

LOCAL = "local"


@dataclass(frozen=True)
class ClientGain:
    """One client's gain in a metric: positive is better, one value per seed."""

    id: int
    name: str
    group: str
    tasks: tuple[str, ...]
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return fmean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds; None for one seed."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def sign(self) -> int:
        """1 for a gain, -1 for a loss, 0 where the mean is within one standard deviation over seeds of nothing."""
        return 0 if abs(self.mean) <= (self.std or 0.0) else 1 if self.mean > 0 else -1


@dataclass(frozen=True)
class TaskGains:
    """The gains of all clients of one method in one task's metric."""

    method: str
    task: str
    metric: str
    clients: tuple[ClientGain, ...]

    def entry(self) -> dict[str, Any]:
        """Return them as JSON, in raw units."""
        clients = [
            {"id": one.id, "name": one.name, "modalities": one.group, "mean": one.mean, "std": one.std}
            | {"seeds": len(one.values)}
            for one in self.clients
        ]
        return {"method": self.method, "task": self.task, "metric": self.metric, "clients": clients}


def gains_over_local(found: Sequence[Variant], judged: Iterable[tuple[str, str]]) -> tuple[TaskGains, ...]:
    """Return the gains of all methods over local training with the same seed, by task and metric; none without it."""
    return tuple(
        TaskGains(one.label, task, metric, clients)
        for task, metric in judged
        for one in found
        if one.method != LOCAL and (clients := _gains(one.runs, found, task, metric))
    )


def gains_over_baseline(run: RunData, judged: Iterable[tuple[str, str]]) -> tuple[TaskGains, ...]:
    """Return the gains of one run over its baseline."""
    alone = run.baseline.clients if run.baseline else ()
    return tuple(
        TaskGains(run.summary.method, task, metric, clients)
        for task, metric in judged
        if (clients := _between([(run.clients, alone)], task, metric))
    )


def _gains(runs: Sequence[RunData], found: Sequence[Variant], task: str, metric: str) -> tuple[ClientGain, ...]:
    return _between([(run.clients, _alone(run, found)) for run in runs], task, metric)


def _alone(run: RunData, found: Sequence[Variant]) -> Sequence[ClientResult]:
    """Return the clients trained alone: those of the run's own baseline, or of a compared local run of its seed."""
    baseline = run.baseline
    if baseline is not None and baseline.method == LOCAL:
        return baseline.clients
    locals_ = [one for one in found if one.method == LOCAL]
    # with several local variants nobody could say which one is meant
    matching = [held for held in locals_[0].runs if held.summary.seed == run.summary.seed] if len(locals_) == 1 else []
    return matching[0].clients if matching else ()


def _between(
    pairs: Iterable[tuple[Sequence[ClientResult], Sequence[ClientResult]]], task: str, metric: str
) -> tuple[ClientGain, ...]:
    """Return the gains between results and references, one pair per seed."""
    values: dict[int, list[float]] = {}
    known: dict[int, ClientResult] = {}
    for results, references in pairs:
        alone = {client.id: client for client in references}
        for client in results:
            value, reference = (_metric(held, task, metric) for held in (client, alone.get(client.id)))
            if math.isfinite(value) and math.isfinite(reference):
                known.setdefault(client.id, client)
                values.setdefault(client.id, []).append(gain(metric, value, reference))
    return tuple(_client(known[id_], values[id_]) for id_ in sorted(values))


def _client(client: ClientResult, values: Sequence[float]) -> ClientGain:
    return ClientGain(client.id, client.name or f"client {client.id}", client.group, client.tasks, tuple(values))


def _metric(client: ClientResult | None, task: str, metric: str) -> float:
    held: Mapping[str, float] = client.metrics.get(task, {}) if client else {}
    return held.get(metric, math.nan)


Kind = tuple[str, ...]
"""A modality group and, where clients of the group have different tasks, the tasks."""


def by_kind(methods: Sequence[TaskGains]) -> dict[Kind, list[int]]:
    """Return the clients of one task by their kind; in each the one that gains most, mean over methods, comes first."""
    held: dict[int, list[ClientGain]] = {}
    for one in methods:
        for client in one.clients:
            held.setdefault(client.id, []).append(client)
    tasks: dict[str, set[tuple[str, ...]]] = {}
    for clients in held.values():
        tasks.setdefault(clients[0].group, set()).add(clients[0].tasks)
    kinds: dict[Kind, list[int]] = {}
    for id_, (first, *_) in held.items():
        several = len(tasks[first.group]) > 1
        kind = (first.group, ", ".join(first.tasks)) if several else (first.group,)
        kinds.setdefault(kind, []).append(id_)
    return {
        kind: sorted(kinds[kind], key=lambda id_: -fmean(one.mean for one in held[id_]))
        for kind in sorted(kinds, key=lambda kind: (kind[0].count("+"), kind))
    }
