"""What methods that modulate modalities have in common: how well each one predicts alone, and training with it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polyfed.data.samples import Batch
from polyfed.data.schema import Task
from polyfed.errors import UserError
from polyfed.method.protocol import Adaptive, Fit, Request, fit
from polyfed.method.training import Descend, Trained, Training
from polyfed.model.architecture import Tensors

Score = Callable[[Tensor], Tensor]
"""Of a probability (samples,) that a sample is given its own class, the sample's score (samples,)."""


def scores_of(
    tasks: Mapping[str, Task], batch: Batch, predictions: Mapping[str, Tensors], score: Score
) -> tuple[Tensor, Tensor]:
    """Return the mean scores (modalities,) float64, without gradient, and whether there is one of every modality ().

    ``predictions[m]`` are logits by task. The mean goes over all classification tasks and over the labelled samples
    that have the modality.
    """
    sums, counts = [], []
    for modality, predicted in predictions.items():
        total = torch.zeros((), dtype=torch.float64, device=batch.present[modality].device)
        samples = torch.zeros_like(total)
        for task in classifying(tasks, batch, predicted):
            counted = batch.labelled[task] & batch.present[modality]
            own = torch.softmax(predicted[task].detach().float(), -1).gather(1, batch.targets[task][:, None])
            total = total + torch.where(counted, score(own.squeeze(1)), 0.0).double().sum()
            samples = samples + counted.sum()
        sums.append(total)
        counts.append(samples)
    seen = torch.stack(counts)
    return torch.stack(sums) / seen.clamp(min=1), (seen > 0).all()


def classifying(tasks: Mapping[str, Task], batch: Batch, predicted: Tensors) -> list[str]:
    """Name the classification tasks that are predicted and in the batch."""
    return [task for task in sorted(predicted.keys() & batch.labelled.keys()) if tasks[task].kind == "classification"]


def of_the_others(values: Tensor) -> Tensor:
    """Return for each of the values (modalities,) the mean of the others; that of two is the other one."""
    places = range(len(values))
    return torch.stack([values[[other for other in places if other != own]].mean() for own in places])


def check_classification(tasks: Mapping[str, Task], method: str) -> None:
    """Raise UserError if a federation has no classification task."""
    if not any(task.kind == "classification" for task in tasks.values()):
        raise UserError(
            f"{method}: modalities are compared by how they classify; there is no classification task among "
            f"{', '.join(tasks) or 'the tasks'}"
        )


@dataclass(frozen=True)
class Modulated:
    """Minimise an adaptive objective where a client trains with several modalities; otherwise train as usual.

    Only in the first ``rounds``, unless that is None. With ``keeps`` the objective's memory stays with the client from
    round to round, as its personal group of that name.
    """

    objective: Adaptive
    rounds: int | None = None
    keeps: str | None = None

    def __call__(self, training: Training) -> Generator[Request, Any, Trained]:
        """Train one client."""
        over = self.rounds is not None and training.clock.round > self.rounds
        if over or len(training.active) < 2:
            return (yield from Descend()(training))
        memory = {} if self.keeps is None else training.personal.get(self.keeps, {})
        fitted = yield from fit(
            Fit(self.objective, training.start, training.data, training.recipe, training.active, memory=memory)
        )
        personal = {} if self.keeps is None else {self.keeps: fitted.memory}
        return Trained(fitted.parameters, {**fitted.numbers, "steps": float(fitted.steps)}, personal)
