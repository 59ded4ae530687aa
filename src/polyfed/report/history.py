"""What happened over the rounds, summed up while the records are read, so that large runs fit in memory."""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from polyfed.report.entries import (
    AgreementRecord,
    ClientMetrics,
    ClientRecord,
    ComponentBytes,
    EvaluationRecord,
    ExpertUseRecord,
    Metrics,
    NoteRecord,
    OtherEvaluationRecord,
    Record,
    Refusal,
    RefusedRecord,
    RoundRecord,
    RouterUseRecord,
    ServerEvaluationRecord,
    SkewRecord,
    TotalBytes,
    UnimodalEvaluationRecord,
    WorkerRecord,
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

Links = Mapping[int, Mapping[int, float]]
"""A number of each pair of clients: by the client it is of, and by the other one."""

Weights = Mapping[str, Mapping[str, float]]
"""Input scope -> output scope -> weight."""


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


class UnimodalKey(NamedTuple):
    """Address of one curve of a modality alone; ``rule`` is how the class was told."""

    task: str
    modality: str
    rule: str


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
    server: dict[tuple[str, str], Series] = field(default_factory=lambda: defaultdict(_series))
    unimodal: dict[UnimodalKey, Series] = field(default_factory=lambda: defaultdict(_series))
    noted: dict[str, Series] = field(default_factory=lambda: defaultdict(_series))
    divergence: dict[str, Series] = field(default_factory=lambda: defaultdict(_series))
    agreement: dict[str, Series] = field(default_factory=lambda: defaultdict(_series))
    agreeing: dict[str, Mean] = field(default_factory=lambda: defaultdict(Mean))
    expert_use: dict[int, tuple[int, Mapping[str, Mapping[str, Weights]]]] = field(default_factory=dict)
    router_use: dict[int, tuple[int, Mapping[str, Mapping[str, float]]]] = field(default_factory=dict)
    links: dict[str, tuple[int, Links]] = field(default_factory=dict)
    skews: dict[int, Metrics] = field(default_factory=dict)
    round_notes: dict[str, Series] = field(default_factory=lambda: defaultdict(_series))
    client_notes: dict[tuple[int, int], dict[str, float]] = field(default_factory=lambda: defaultdict(dict))

    def global_model(self, task: str, metric: str) -> Curve:
        """Return a metric of the global model on the server's test samples."""
        return _merged([self.server.get((task, metric), {})])

    def alone(self, task: str, modality: str, rule: str) -> Curve:
        """Return the global model's accuracy with one modality alone."""
        return _merged([self.unimodal.get(UnimodalKey(task, modality, rule), {})])

    def round_note(self, name: str) -> Curve:
        """Return a number that the method noted of its rounds."""
        return _merged([self.round_notes.get(name, {})])

    def diverged(self, component: str) -> Curve:
        """Return how far clients' parameters of a component went from the server's, mean over clients."""
        return _merged([self.divergence.get(component, {})])

    def agreed(self, component: str) -> Curve:
        """Return the mean cosine between clients' updates of a component."""
        return _merged([self.agreement.get(component, {})])

    def note(self, name: str) -> Curve:
        """Return the mean over clients of something they noted."""
        return _merged([self.noted.get(name, {})])

    def pairs(self, one: str, other: str) -> list[tuple[int, int, float, float]]:
        """Return (round, client, value, value) wherever both were noted of a client, by it or by the server."""
        return [
            (*place, held[one], held[other])
            for place, held in sorted(self.client_notes.items())
            if one in held and other in held and math.isfinite(held[one]) and math.isfinite(held[other])
        ]

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


TEST = "test"
BESIDE = f"{TEST}, "
"""How the test is named on which not the model that a client goes by is judged, but the one named behind it."""


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
        ADDERS[type(record)](history, record)
    return history


def _add_refused(history: History, record: RefusedRecord) -> None:
    history.refused.append(record)
    _add_bytes(history, record.bytes)


def _add_server_evaluation(history: History, record: ServerEvaluationRecord) -> None:
    for task, metrics in record.metrics.items():
        for metric, value in metrics.items():
            history.server[task, metric][record.round].add(value)


def _add_unimodal_evaluation(history: History, record: UnimodalEvaluationRecord) -> None:
    for task, modalities in record.accuracy.items():
        for modality, rules in modalities.items():
            for rule, value in rules.items():
                history.unimodal[UnimodalKey(task, modality, rule)][record.round].add(value)


def _add_skew(history: History, record: SkewRecord) -> None:
    history.skews[record.client] = record.label_distance


def _add_agreement(history: History, record: AgreementRecord) -> None:
    for component, value in record.cosine.items():
        history.agreement[component][record.round].add(value)
        history.agreeing[component].add(record.clients.get(component, 0))


def _add_expert_use(history: History, record: ExpertUseRecord) -> None:
    """Keep what was found last."""
    before, _ = history.expert_use.get(record.client, (0, {}))
    if record.round >= before:
        history.expert_use[record.client] = record.round, record.weights


def _add_router_use(history: History, record: RouterUseRecord) -> None:
    """Keep what was found last."""
    before, _ = history.router_use.get(record.client, (0, {}))
    if record.round >= before:
        history.router_use[record.client] = record.round, record.weights


def _add_worker(history: History, record: WorkerRecord) -> None:
    """What became of a worker changed nothing in the results."""


def _add_client(history: History, record: ClientRecord) -> None:
    _add_bytes(history, record.bytes)
    if record.aside:
        return
    rounds = history.active[record.client]
    before = {part for part in rounds.get(record.round, NO_REPLY).split("+") if part}
    # interned: a run has few sets of modalities and very many records
    rounds[record.round] = sys.intern(group_name(before | set(record.modalities)))
    group = history.groups.get(record.client, "unknown")
    for name, value in record.numbers.items():
        history.training[TrainingKey(record.step, name, group)][record.round].add(value, max(record.examples, 1))
    for component, distance in record.divergence.items():
        history.divergence[component][record.round].add(distance)
    for name, value in record.notes.items():
        history.noted[name][record.round].add(value)
    if record.notes:
        history.client_notes[record.round, record.client].update(record.notes)


def _add_note(history: History, record: NoteRecord) -> None:
    for name, value in record.numbers.items():
        history.round_notes[name][record.round].add(value)
    for client, numbers in record.clients.items():
        history.client_notes[record.round, client].update(numbers)
    for name, links in record.links.items():  # of several rounds the last ones stay
        history.links[name] = record.round, links


def _add_bytes(history: History, travelled: ComponentBytes) -> None:
    """Count what travelled, whether or not the reply was used."""
    for component, count in travelled.up.items():
        history.up[component] += count
    for component, count in travelled.down.items():
        history.down[component] += count


def _add_other_evaluation(history: History, record: OtherEvaluationRecord) -> None:
    """Of models that nobody goes by only the test is of interest."""
    if record.split == TEST:
        _add_metrics(history, record, BESIDE + record.model)


def _add_evaluation(history: History, record: EvaluationRecord) -> None:
    _add_metrics(history, record, record.split)


def _add_metrics(history: History, record: ClientMetrics, split: str) -> None:
    group = history.groups.get(record.client, "unknown")
    for task, metrics in record.metrics.items():
        for metric, value in metrics.items():
            history.evaluations[EvaluationKey(task, metric, split, group)][record.round].add(value)


def _add_round(history: History, record: RoundRecord) -> None:
    history.traffic[record.round] = record.bytes
    for client in set(record.cohort) - set(record.replied):
        history.active[client].setdefault(record.round, NO_REPLY)


ADDERS: Mapping[type[Record], Callable[[History, Any], None]] = {
    ClientRecord: _add_client,
    EvaluationRecord: _add_evaluation,
    OtherEvaluationRecord: _add_other_evaluation,
    ServerEvaluationRecord: _add_server_evaluation,
    UnimodalEvaluationRecord: _add_unimodal_evaluation,
    RoundRecord: _add_round,
    RefusedRecord: _add_refused,
    NoteRecord: _add_note,
    SkewRecord: _add_skew,
    AgreementRecord: _add_agreement,
    ExpertUseRecord: _add_expert_use,
    RouterUseRecord: _add_router_use,
    WorkerRecord: _add_worker,
}
"""What takes in each kind of record."""
