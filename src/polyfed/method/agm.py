"""AGM: each modality's part of the prediction passes back a gradient that is raised or lowered (Li et al., ICCV 2023).

Source: "Boosting Multi-modal Model Performance with Adaptive Gradient Modulation" and the authors' code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from math import factorial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from polyfed.data.samples import Batch
from polyfed.method.averaging import Averaging, Context
from polyfed.method.classic import MissingRule
from polyfed.method.modulation import Modulated, check_classification, classifying, of_the_others, scores_of
from polyfed.method.protocol import Adaptive, Groups, Model
from polyfed.model.architecture import Tensors
from polyfed.model.losses import Logged, total_loss

MEANS = "agm"
"""The personal group of a client's running means: ``mean.<modality>`` () of its scores in ``steps.<modality>`` ()."""

SMALLEST = 1e-8
"""The least that a probability counts as in a score."""

LARGEST = 10.0
"""The most that alpha is multiplied by in the exponent of k."""

Alpha = Annotated[float, Field(ge=0, le=1e6, description="how strongly modalities are modulated")]
Sign = Literal["agm", "bmsfed"]


@dataclass(frozen=True)
class ResponseModulation(Adaptive):
    """The supervised loss, with a gradient that is multiplied by k_m where it goes back through modality m's response.

    Responses: with f(S) the logits of a batch in which modalities outside S are zeros (but present), modality m's is
    its Shapley value Σ_{S ∋ m} (|S| − 1)! (M − |S|)! / M! · (f(S) − f(S without m)) with f(nothing) = 0. They add up to
    the prediction. Of two modalities they are the authors' (f(a, v) − f(0, v) + f(a, 0)) / 2 and its mirror image.
    M modalities take 2^M − 1 passes. All are in training mode: with dropout each draws its own, where the authors pad
    in evaluation mode.

    s_m is the mean cross-entropy of response m, its probabilities at least 1e-8. With d_m = mean of the others' s − s_m
    and D_m the same of the running means of s (0 at first, renewed after use) k_m = exp(alpha · min(exp D_m − exp d_m,
    10)); ``sign`` bmsfed: min(exp −D_m − exp −d_m, 10). Only predictions of classification tasks are modulated. In a
    batch in which a modality has no labelled sample k is 1, and the running means stay.
    """

    alpha: float = 1.0
    sign: Sign = "agm"

    def loss(self, model: Model, batch: Batch, extra: Groups, memory: Tensors) -> tuple[Tensor, Logged, Tensors]:
        """Return the loss (), its parts and each k_m, and the running means."""
        outputs = model(batch)
        names = sorted(outputs.features)
        tasks = classifying(model.tasks, batch, outputs.predictions)
        if len(names) < 2 or not tasks:
            return (*total_loss(model.tasks, outputs, batch), memory)
        padded = {part: model(keeping(batch, part)).predictions for part in subsets(names) if len(part) < len(names)}
        padded[tuple(names)] = outputs.predictions
        responses = {name: {task: response(padded, names, name, task) for task in tasks} for name in names}
        scores, compared = scores_of(model.tasks, batch, responses, lambda right: -right.clamp(min=SMALLEST).log())
        means = torch.stack([memory.get(f"mean.{name}", scores.new_zeros(())) for name in names])
        factors = torch.where(compared, self.factors(scores, means), 1.0)
        modulated = {task: passed_back([responses[name][task] for name in names], factors) for task in tasks}
        changed = outputs._replace(predictions={**outputs.predictions, **modulated})
        loss, logged = total_loss(model.tasks, changed, batch)
        logged |= {f"modulation.{name}": factor for name, factor in zip(names, factors.unbind(), strict=True)}
        return loss, logged, {**memory, **renewed(memory, names, scores, compared)}

    def factors(self, scores: Tensor, means: Tensor) -> Tensor:
        """Return k (modalities,) from the scores and their running means, both (modalities,)."""
        sign = 1.0 if self.sign == "agm" else -1.0
        now, before = (torch.exp(sign * (of_the_others(values) - values)) for values in (scores, means))
        return torch.exp(self.alpha * (before - now).clamp(max=LARGEST))


def renewed(memory: Tensors, names: list[str], scores: Tensor, compared: Tensor) -> dict[str, Tensor]:
    """Return the running means after scores (modalities,) were added, if they could be compared."""
    found = {}
    for name, score in zip(names, scores.unbind(), strict=True):
        mean = memory.get(f"mean.{name}", torch.zeros_like(score))
        steps = memory.get(f"steps.{name}", torch.zeros_like(score)) + compared
        found[f"mean.{name}"] = torch.where(compared, mean + (score - mean) / steps.clamp(min=1), mean)
        found[f"steps.{name}"] = steps
    return found


def subsets(names: list[str]) -> Iterator[tuple[str, ...]]:
    """Yield every set of names but the empty one."""
    for size in range(1, len(names) + 1):
        yield from combinations(names, size)


def keeping(batch: Batch, names: tuple[str, ...]) -> Batch:
    """Return a batch in which the inputs of all modalities but these are zeros; what is present stays so."""
    inputs = {name: value if name in names else torch.zeros_like(value) for name, value in batch.inputs.items()}
    return batch._replace(inputs=inputs)


def response(
    padded: Mapping[tuple[str, ...], Mapping[str, Tensor]], names: list[str], modality: str, task: str
) -> Tensor:
    """Return a modality's Shapley value of the predictions of a task, of the shape of these."""
    count = len(names)
    total = torch.zeros_like(padded[tuple(names)][task])
    for part, predicted in padded.items():
        inside = len(part) if modality in part else len(part) + 1
        share = factorial(inside - 1) * factorial(count - inside) / factorial(count)
        total = total + (share if modality in part else -share) * predicted[task]
    return total


def passed_back(responses: list[Tensor], factors: Tensor) -> Tensor:
    """Add responses up; their gradients, and nothing else, are multiplied by the factors (modalities,)."""
    total = torch.zeros_like(responses[0])
    for value, factor in zip(responses, factors.to(responses[0].dtype).unbind(), strict=True):
        total = total + value.detach() + factor * (value - value.detach())
    return total


def agm(
    context: Context,
    *,
    alpha: Alpha = 1.0,
    sign: Annotated[
        Sign, Field(description="agm: a modality that is ahead of its running ratio is slowed; bmsfed: it is boosted")
    ] = "agm",
    missing: MissingRule = "renormalise",
) -> Averaging:
    """AGM (Li et al., ICCV 2023): clients modulate how gradients go back through each modality's response.

    Each client keeps its running means from round to round. Clients that train with one modality do so as in FedAvg.
    ``sign: bmsfed`` is what the comparison in BMSFed's code does.
    """
    check_classification(context.tasks, "agm")
    return Averaging(context, local=Modulated(ResponseModulation(alpha, sign), keeps=MEANS), missing=missing)
