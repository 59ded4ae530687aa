"""Uni-modal accuracy: what the global model tells from one modality alone, whatever the method.

Its default figure is ``ncm_train``, the accuracy of the nearest class prototype, with prototypes that are means of the
encoder's features over all clients' training samples. Source: Fan et al., "Overcome Modal Bias in Multi-modal Federated
Learning via Balanced Modality Selection", ECCV 2024; their code takes the prototypes from the test samples
(``ncm_test``), which tells the classifier the labels it is judged by.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from polyfed.data.samples import Samples, concatenate
from polyfed.data.schema import Task
from polyfed.engine.evaluate import global_model, judged, outputs_of
from polyfed.engine.resident import Resident
from polyfed.engine.trainer import MEASURE_BATCH, Trainer
from polyfed.method.prototypes import class_means, class_sums, nearest
from polyfed.model.architecture import Tensors
from polyfed.scenario.federation import Card, Federation

NCM_TRAIN, ZEROED_HEAD, NCM_TEST = "ncm_train", "zeroed_head", "ncm_test"
T = TypeVar("T")


class Address(NamedTuple):
    """What is judged: a classification task, by one modality alone."""

    task: str
    modality: str


Prototypes = Mapping[Address, Tensor]
"""Class prototypes (classes, width) by what they judge."""


@dataclass
class UnimodalEvaluation:
    """Test samples counted, and how many of them each rule told rightly."""

    examples: Counter[Address] = field(default_factory=Counter)
    correct: dict[Address, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def add(self, address: Address, labels: Tensor, told: Mapping[str, Tensor]) -> None:
        """Count labels (samples,) and, by rule, the classes that were told (samples,)."""
        self.examples[address] += len(labels)
        self.correct[address].update({rule: int((classes == labels).sum()) for rule, classes in told.items()})

    @property
    def accuracy(self) -> dict[Address, dict[str, float]]:
        """Shares of the test samples that are told rightly, by rule."""
        return {
            address: {rule: count / self.examples[address] for rule, count in counts.items()}
            for address, counts in self.correct.items()
        }

    def record(self, round_number: int) -> dict[str, Any]:
        """Return the line for the records."""
        return {
            "kind": "unimodal_evaluation",
            "round": round_number,
            "examples": nested(self.examples),
            "accuracy": nested(self.accuracy),
        }


def nested(values: Mapping[Address, T]) -> dict[str, dict[str, T]]:
    """Return values by task, then by modality."""
    found: dict[str, dict[str, T]] = {}
    for address, value in values.items():
        found.setdefault(address.task, {})[address.modality] = value
    return found


@torch.no_grad()
def evaluate_unimodal(
    federation: Federation, trainer: Trainer, parameters_of: Callable[[Card], Tensors]
) -> UnimodalEvaluation | None:
    """Judge every modality alone on the server's test samples that have it.

    This takes one pass over all clients' training samples and two over the server's test samples, in batches; features
    are summed up, never kept. Nothing that training uses is changed or drawn from. None where there is no global model
    (see ``global_model``) or no labelled sample of a classification task.
    """
    served = global_model(federation, trainer, parameters_of)
    if served is None:
        return None
    encoder = Encoder(judged(trainer, served.card, served.parameters), trainer, federation.tasks)
    learned = encoder.prototypes(training(federation))
    leaked = encoder.prototypes([served.samples])
    found = UnimodalEvaluation()
    for seen in encoder.each(served.samples):
        told = {ZEROED_HEAD: seen.logits.argmax(-1)}
        for rule, prototypes in ((NCM_TRAIN, learned), (NCM_TEST, leaked)):
            if seen.address in prototypes:
                told[rule] = nearest(seen.features, prototypes[seen.address])
        found.add(seen.address, seen.labels, told)
    return found if found.examples else None


def training(federation: Federation) -> Iterator[Samples]:
    """Yield all clients' training samples; those of small clients are joined, as they would make tiny batches."""
    waiting: list[Samples] = []
    for client in federation.clients():
        waiting.append(client.train)
        if sum(map(len, waiting)) >= MEASURE_BATCH:
            yield concatenate(waiting)
            waiting = []
    if waiting:
        yield concatenate(waiting)


class Seen(NamedTuple):
    """Labelled samples of a batch, by one modality: features (samples, width), labels (samples,) and logits."""

    address: Address
    features: Tensor
    labels: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Encoder:
    """The global model, of which the features of single modalities are asked."""

    model: Resident
    trainer: Trainer
    tasks: Mapping[str, Task]

    def each(self, samples: Samples) -> Iterator[Seen]:
        """Show the model one modality at a time, and no other, of the samples that have it."""
        for modality in samples.modalities:
            held = samples.holding([modality])
            for batch, outputs in outputs_of(self.model, self.trainer, held, frozenset([modality])):
                for task in sorted(batch.targets):
                    here = batch.labelled[task]
                    if self.tasks[task].kind == "classification" and bool(here.any()):
                        features = outputs.features[modality][here].float()
                        labels, logits = batch.targets[task][here], outputs.predictions[task][here].float()
                        yield Seen(Address(task, modality), features, labels, logits)

    def prototypes(self, parts: Iterable[Samples]) -> Prototypes:
        """Return the class means of features over all samples; nothing of a task and modality without any."""
        sums: dict[Address, tuple[Tensor, Tensor]] = {}
        for samples in parts:
            for seen in self.each(samples):
                everyone = torch.ones_like(seen.labels, dtype=torch.bool)
                more = class_sums(seen.features, seen.labels, everyone, self.tasks[seen.address.task].classes)
                held = sums.get(seen.address)
                sums[seen.address] = more if held is None else (held[0] + more[0], held[1] + more[1])
        return {address: class_means(*held) for address, held in sums.items()}
