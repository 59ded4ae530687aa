"""Evaluation: every client's current model on its own validation and test samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from polyfed.data.samples import Batch, Samples
from polyfed.data.schema import Task
from polyfed.engine.expert_use import ExpertUse, Use
from polyfed.engine.resident import Resident
from polyfed.engine.texts import text_tally, writing_tasks
from polyfed.engine.trainer import MEASURE_BATCH, Trainer
from polyfed.model.architecture import Mixed, Outputs, Tensors
from polyfed.model.metrics import LARGEST, Sums, add_sums, finish, metric_sums, primary
from polyfed.scenario.federation import Card, Client, Federation

SPLITS = ("validation", "test")
SERVER = -1  # in place of a client's id
Metrics = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one client on one split: by task, then by metric, with the labelled samples per task.

    ``use`` is how much the model's paths were used, where it mixes any; ``mixes`` tells of what.
    """

    client: int
    split: str
    examples: dict[str, int]
    metrics: Metrics
    use: Use = field(default_factory=dict)
    mixes: Mixed = "experts"

    def record(self, round_number: int) -> dict[str, Any]:
        """Return the line for the records."""
        return {
            "kind": "evaluation",
            "round": round_number,
            "split": self.split,
            "client": self.client,
            "examples": self.examples,
            "metrics": self.metrics,
        }


def evaluate(
    federation: Federation, trainer: Trainer, parameters_of: Callable[[Card], Tensors], splits: Sequence[str] = SPLITS
) -> Iterator[Evaluation]:
    """Evaluate all clients in ascending id. Nothing that training uses is changed or drawn from."""
    for client in federation.clients():
        yield from evaluate_client(client, trainer, parameters_of(client.card), federation.tasks, splits)


def evaluate_client(
    client: Client, trainer: Trainer, parameters: Tensors, tasks: Mapping[str, Task], splits: Sequence[str] = SPLITS
) -> Iterator[Evaluation]:
    """Evaluate one client's model on each of its splits that has samples."""
    for split in splits:
        samples = samples_of(client, split)
        if len(samples):
            use = ExpertUse()
            sums = tally(trainer, client.card, parameters, samples, tasks, use)
            metrics = {task: found for task, held in sums.items() if (found := finish(held))}
            examples = {task: int(max(tally.samples for tally in sums[task].values())) for task in metrics}
            yield Evaluation(client.card.id, split, examples, metrics, use.means(), use.of)


@dataclass(frozen=True)
class GlobalModel:
    """The model of all components and what the server judges it on: all test samples, with all modalities."""

    card: Card
    parameters: Tensors
    samples: Samples


def global_model(
    federation: Federation, trainer: Trainer, parameters_of: Callable[[Card], Tensors]
) -> GlobalModel | None:
    """Return the global model with the server's test samples.

    None if there are no such samples, or if the method has no such model: its parameters stay with the clients.
    """
    samples = federation.server_test
    modalities, tasks = tuple(sorted(federation.modalities)), tuple(sorted(federation.tasks))
    card = Card(SERVER, "server", modalities, tasks, 0, trainer.architecture.components(modalities, tasks))
    parameters = parameters_of(card)
    model = trainer.model(trainer.components(card, frozenset(modalities)))
    if samples is None or not len(samples) or model.parameters.keys() - parameters.keys():
        return None
    return GlobalModel(card, parameters, samples)


def evaluate_global(
    federation: Federation, trainer: Trainer, parameters_of: Callable[[Card], Tensors]
) -> Evaluation | None:
    """Evaluate the global model on the server's test samples; None where there is none (see ``global_model``)."""
    served = global_model(federation, trainer, parameters_of)
    if served is None:
        return None
    nothing = served.samples.span(0, 0)
    client = Client.of(served.card, nothing, nothing, served.samples)
    (found,) = evaluate_client(client, trainer, served.parameters, federation.tasks)
    return found


def samples_of(client: Client, split: str) -> Samples:
    """Return a client's samples of a split by its name."""
    samples: Samples = getattr(client, split)
    return samples


@torch.no_grad()
def tally(
    trainer: Trainer, card: Card, parameters: Tensors, samples: Samples, tasks: Mapping[str, Task], use: ExpertUse
) -> dict[str, Sums]:
    """Sum up metrics over samples in batches, and add to the use of the model's paths."""
    sums: dict[str, Sums] = {name: {} for name in samples.tasks}
    model = judged(trainer, card, parameters)
    for batch, outputs in outputs_of(model, trainer, samples, frozenset(card.modalities)):
        for name, prediction in outputs.predictions.items():
            found = metric_sums(tasks[name], prediction.float(), batch.targets[name], batch.labelled[name])
            sums[name] = add_sums(sums[name], found)
        use.add(outputs.mixing, batch)
    for name in writing_tasks(samples.tasks, tasks):
        sums[name] = {**text_tally(model, trainer, samples, card, tasks[name]), **sums[name]}
    return sums


def judged(trainer: Trainer, card: Card, parameters: Tensors) -> Resident:
    """Return a client's model with these parameters, in evaluation mode."""
    model = trainer.model(trainer.components(card, frozenset(card.modalities)))
    model.load(parameters)
    model.module.eval()
    return model


def outputs_of(
    model: Resident, trainer: Trainer, samples: Samples, active: frozenset[str]
) -> Iterator[tuple[Batch, Outputs]]:
    """Yield batches of samples, with these modalities only, and what the model computes from them."""
    for positions in torch.split(torch.arange(len(samples)), MEASURE_BATCH) if len(samples) else ():
        batch = trainer.batch(samples, positions, active)
        with trainer.computing():
            outputs = model(batch)
        yield batch, outputs


def score(evaluations: Sequence[Evaluation], tasks: Mapping[str, Task]) -> float | None:
    """Return one number, higher is better: the mean over tasks of their primary metric's mean over clients.

    Metrics of which less is better (errors) count negatively; CIDEr, from 0 to 1000, counts a thousandth, so that it
    weighs no more than the accuracy of another task. None if there is nothing to judge.
    """
    means = []
    for name, task in tasks.items():
        metric, higher_is_better = primary(task)
        values = [found.metrics[name][metric] for found in evaluations if name in found.metrics]
        if values:
            mean = sum(values) / len(values) / LARGEST.get(metric, 1.0)
            means.append(mean if higher_is_better else -mean)
    return sum(means) / len(means) if means else None
