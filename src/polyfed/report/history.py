"""What happened over the rounds, summed up while the records are read, so that large runs fit in memory."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from polyfed.report.entries import (
    ClientRecord,
    ComponentBytes,
    EvaluationRecord,
    Record,
    Refusal,
    RefusedRecord,
    RoundRecord,
    TotalBytes,
    group_name,
)

NO_REPLY = ""
"""Mark of a client that was asked in a round and did not give a usable reply."""


@dataclass
class Mean:
    """A weighted mean under way."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, value: float, weight: float = 1.0) -> None:
        """Take one value in."""
        self.total += weight * value
        self.weight += weight

    @property
    def value(self) -> float:
        """The mean so far; NaN without values."""
        return self.total / self.weight if self.weight else float("nan")


Series = dict[int, Mean]
"""Round -> mean."""


class EvaluationKey(NamedTuple):
    """Address of one evaluation curve."""

    task: str
    metric: str
    split: str
    group: str


class TrainingKey(NamedTuple):
    """Address of one training curve: a number that a client step logged."""

    step: str
    number: str
    group: str


@dataclass(frozen=True)
class Curve:
    """Values over rounds, in ascending round."""

    rounds: tuple[int, ...]
    values: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.rounds)


def _series() -> defaultdict[int, Mean]:
    return defaultdict(Mean)


@dataclass(frozen=True)
class History:
    """Sums over the records of a run. ``groups`` maps a client to its modality group."""

    groups: Mapping[int, str]
    evaluations: dict[EvaluationKey, Series] = field(default_factory=lambda: defaultdict(_series))
    training: dict[TrainingKey, Series] = field(default_factory=lambda: defaultdict(_series))
    active: dict[int, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))
    up: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    down: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    traffic: dict[int, TotalBytes] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)

    def metric(self, task: str, metric: str, split: str, belongs: Callable[[str], bool] | None = None) -> Curve:
        """Return the mean over clients of a metric; ``belongs`` chooses modality groups (default: all)."""
        return _merged(
            series
            for key, series in self.evaluations.items()
            if key[:3] == (task, metric, split) and (belongs is None or belongs(key.group))
        )

    def trained(self, step: str, number: str, belongs: Callable[[str], bool] | None = None) -> Curve:
        """Return the mean over clients, weighted by examples, of a number logged in training."""
        return _merged(
            series
            for key, series in self.training.items()
            if key[:2] == (step, number) and (belongs is None or belongs(key.group))
        )


def _merged(many: Iterable[Series]) -> Curve:
    merged = _series()
    for series in many:
        for number, mean in series.items():
            merged[number].add(mean.value, mean.weight)
    rounds = tuple(sorted(merged))
    return Curve(rounds, tuple(merged[number].value for number in rounds))


def gather(records: Iterable[Record], groups: Mapping[int, str]) -> History:
    """Read all records once and sum them up."""
    history = History(groups)
    for record in records:
        if isinstance(record, ClientRecord):
            _add_client(history, record)
        elif isinstance(record, EvaluationRecord):
            _add_evaluation(history, record)
        elif isinstance(record, RoundRecord):
            _add_round(history, record)
        elif isinstance(record, RefusedRecord):
            history.refused.append(record)
            _add_bytes(history, record.bytes)
    return history


def _add_client(history: History, record: ClientRecord) -> None:
    rounds = history.active[record.client]
    before = {part for part in rounds.get(record.round, NO_REPLY).split("+") if part}
    # interned: a run has few sets of modalities and very many records
    rounds[record.round] = sys.intern(group_name(before | set(record.modalities)))
    group = history.groups.get(record.client, "unknown")
    for name, value in record.numbers.items():
        history.training[TrainingKey(record.step, name, group)][record.round].add(value, max(record.examples, 1))
    _add_bytes(history, record.bytes)


def _add_bytes(history: History, travelled: ComponentBytes) -> None:
    """Count what travelled, whether or not the reply was used."""
    for component, count in travelled.up.items():
        history.up[component] += count
    for component, count in travelled.down.items():
        history.down[component] += count


def _add_evaluation(history: History, record: EvaluationRecord) -> None:
    group = history.groups.get(record.client, "unknown")
    for task, metrics in record.metrics.items():
        for metric, value in metrics.items():
            history.evaluations[EvaluationKey(task, metric, record.split, group)][record.round].add(value)


def _add_round(history: History, record: RoundRecord) -> None:
    history.traffic[record.round] = record.bytes
    for client in set(record.cohort) - set(record.replied):
        history.active[client].setdefault(record.round, NO_REPLY)
