"""What stands in a run folder's files: one typed entry per line of records.jsonl, and the summary."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, field_validator


def _nan_for_null(value: Any) -> Any:
    return math.nan if value is None else value


Number = Annotated[float, BeforeValidator(_nan_for_null)]
"""A float; null, as strict JSON writes what is not a number, reads as NaN."""

Count = Annotated[int, Field(ge=0)]
Cosine = Annotated[float, Field(ge=-1, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Metrics = Mapping[str, Mapping[str, Number]]
"""Task -> metric -> value."""

NOTHING = ("", sha256().hexdigest())
"""Digests that say nothing: not recorded, or of no tensor at all."""


class Entry(BaseModel):
    """Base of all entries: frozen, and forgiving about keys a newer version may add."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ComponentBytes(Entry):
    """Bytes one client received (``down``) and sent (``up``), by component."""

    up: Mapping[str, Count] = {}
    down: Mapping[str, Count] = {}


class TotalBytes(Entry):
    """Bytes sent by clients (``up``) and by the server (``down``)."""

    up: Count = 0
    down: Count = 0

    @property
    def both(self) -> int:
        """Bytes in both directions."""
        return self.up + self.down


class ClientRecord(Entry):
    """One client's answer to one order."""

    kind: Literal["client"]
    round: Count
    exchange: Count = 0
    step: str
    aside: bool = False
    client: int
    modalities: tuple[str, ...] = ()
    examples: Count = 0
    numbers: Mapping[str, Number] = {}
    notes: Mapping[str, Number] = {}
    divergence: Mapping[str, Number] = {}
    bytes: ComponentBytes = ComponentBytes()
    seconds: Number = 0.0


class Refusal(Entry):
    """A reply that was refused, and why. ``component`` is empty where the whole reply was at fault."""

    round: Count
    client: int
    component: str | None = None
    reason: str


class RefusedRecord(Refusal):
    """A refusal as a line of the records."""

    kind: Literal["refused"]
    bytes: ComponentBytes = ComponentBytes()


class ClientMetrics(Entry):
    """One client's metrics on one split after a round (round 0: before training)."""

    round: Count
    split: str
    client: int
    examples: Mapping[str, Count] = {}
    metrics: Metrics = {}


class EvaluationRecord(ClientMetrics):
    """Metrics of the model that the client goes by."""

    kind: Literal["evaluation"]


class OtherEvaluationRecord(ClientMetrics):
    """Metrics of a model beside that one: what the server deploys, or a part of it."""

    kind: Literal["other_evaluation"]
    model: str


class ServerEvaluationRecord(Entry):
    """Metrics of the global model on all test samples with all modalities after a round."""

    kind: Literal["server_evaluation"]
    round: Count
    examples: Mapping[str, Count] = {}
    metrics: Metrics = {}


class UnimodalEvaluationRecord(Entry):
    """Accuracy of the global model with each modality alone after a round: by task, modality and rule."""

    kind: Literal["unimodal_evaluation"]
    round: Count
    examples: Mapping[str, Mapping[str, Count]] = {}
    accuracy: Mapping[str, Metrics] = {}


class NoteRecord(Entry):
    """What a method noted of a round, and of single clients in it."""

    kind: Literal["note"]
    round: Count
    numbers: Mapping[str, Number] = {}
    clients: Mapping[int, Mapping[str, Number]] = {}
    links: Mapping[str, Mapping[int, Mapping[int, Number]]] = {}


class SkewRecord(Entry):
    """How far one client's labels are from everybody's, by task and modality."""

    kind: Literal["skew"]
    client: int
    label_distance: Metrics = {}


class AgreementRecord(Entry):
    """How far the clients' updates of each component pointed the same way in an exchange: mean cosine of all pairs."""

    kind: Literal["agreement"]
    round: Count
    cosine: Mapping[str, Cosine] = {}
    clients: Mapping[str, Count] = {}


class ExpertUseRecord(Entry):
    """How much one client used each path of its experts: by task, modality, input scope and output scope."""

    kind: Literal["expert_use"]
    round: Count
    client: int
    weights: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Share]]]] = {}


class RouterUseRecord(Entry):
    """How much one client's router gave to the adapter of each task: by the client's task and the adapter's."""

    kind: Literal["router_use"]
    round: Count
    client: int
    weights: Mapping[str, Mapping[str, Share]] = {}


class WorkerRecord(Entry):
    """A worker process that died."""

    kind: Literal["worker"]
    after_round: Count
    worker: Count
    reason: str = ""
    clients: tuple[int, ...] = ()
    tried_again: bool = True


class RoundRecord(Entry):
    """Who was asked in a round and who answered, how long it took and what travelled."""

    kind: Literal["round"]
    round: Count
    cohort: tuple[int, ...] = ()
    replied: tuple[int, ...] = ()
    seconds: Number = 0.0
    bytes: TotalBytes = TotalBytes()


Record = Annotated[
    ClientRecord
    | RefusedRecord
    | EvaluationRecord
    | OtherEvaluationRecord
    | ServerEvaluationRecord
    | UnimodalEvaluationRecord
    | NoteRecord
    | SkewRecord
    | AgreementRecord
    | ExpertUseRecord
    | RouterUseRecord
    | WorkerRecord
    | RoundRecord,
    Field(discriminator="kind"),
]
RECORD: TypeAdapter[Record] = TypeAdapter(Record)


def group_name(modalities: Iterable[str]) -> str:
    """Name a set of modalities in alphabetical order: ``audio+image``."""
    return "+".join(sorted(modalities)) or "no modality"


class Statistic(Entry):
    """A metric over clients: mean, standard deviation, and the mean of each modality group."""

    mean: Number
    std: Number = math.nan
    by_modalities: Mapping[str, Number] = {}

    @field_validator("by_modalities")
    @classmethod
    def _in_order(cls, groups: Mapping[str, float]) -> Mapping[str, float]:
        return {group_name(group.split("+")): value for group, value in groups.items()}


Tasks = Mapping[str, Mapping[str, Statistic]]
"""Task -> metric -> statistic over clients."""


class ClientResult(Entry):
    """One client and its metrics at the end."""

    id: int
    name: str = ""
    modalities: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    examples: Count = 0
    metrics: Metrics = {}

    @property
    def group(self) -> str:
        """Name of the client's modality group, such as ``audio+image``."""
        return group_name(self.modalities)


class Best(Entry):
    """The best round by its validation score, with the tasks' metrics at that round."""

    round: Count
    split: str = "validation"
    score: Number = math.nan
    tasks: Tasks = {}


class Baseline(Entry):
    """What the same clients reach with another method, usually by training alone."""

    method: str
    tasks: Tasks = {}
    clients: tuple[ClientResult, ...] = ()


class StepSize(Entry):
    """Parameters of one client's step, by component: in its models, trained, received and sent."""

    step: str
    client: int
    present: Mapping[str, Count] = {}
    trained: Mapping[str, Count] = {}
    down: Mapping[str, Count] = {}
    up: Mapping[str, Count] = {}


class Parameters(Entry):
    """Parameter counts: all components on the server, and the mean over clients of what one carries.

    ``frozen`` are parts of the model that are never trained, ``steps`` the sizes of the first client of each kind.
    """

    server: Number = math.nan
    client_mean: Number = math.nan
    frozen: Mapping[str, Count] = {}
    steps: tuple[StepSize, ...] = ()


class Summary(Entry):
    """The end of a run in numbers (summary.json)."""

    polyfed: str = ""
    experiment: str
    method: str
    seed: int
    rounds: Count
    wall_seconds: Number = math.nan
    bytes: TotalBytes = TotalBytes()
    parameters: Parameters = Parameters()
    tasks: Tasks = {}
    clients: tuple[ClientResult, ...] = ()
    refused: tuple[Refusal, ...] = ()
    digest: str = ""
    personal_digest: str = ""
    stopped: str | None = None
    best: Best | None = None
    baseline: Baseline | None = None

    @property
    def told_digest(self) -> tuple[str, str]:
        """Name and value of the digest that tells runs apart: the personal one where the server holds no tensor."""
        personal = self.digest in NOTHING and self.personal_digest not in NOTHING
        return ("personal digest", self.personal_digest) if personal else ("digest", self.digest)


def first_fault(error: ValidationError) -> str:
    """Say in one line what was wrong first and where."""
    fault = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in fault["loc"])
    return f"{place}: {fault['msg']}" if place else str(fault["msg"])
