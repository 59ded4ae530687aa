"""The modal-enhancement loss: a modality's features are drawn to the prototype of their class, away from the others.

Sources: Fan et al., PMR, CVPR 2023; Fan et al., BMSFed, ECCV 2024, whose printed loss lacks the minus sign that its
code has; and the prototype loss of Tan et al., FedProto, AAAI 2022.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from polyfed.data.samples import Batch
from polyfed.method.balance import key_of
from polyfed.method.protocol import Groups, Model
from polyfed.method.prototypes import known, log_probabilities
from polyfed.model.architecture import Outputs
from polyfed.model.losses import Logged, total_loss

PROTOTYPES = "prototypes"
"""The group, of extra tensors and of messages, that holds prototypes (classes, width) by ``<modality>.<task>``."""

BEHIND = "behind"
"""The group of an objective's extra tensors that holds, () by modality, how far each is behind the best."""

SMALLEST = 1e-12
"""The least that the mean probability of a batch counts: distances of some hundreds make it underflow."""

Which = Literal["weakest", "all"]
Coefficient = Literal["const", "clip"]


@dataclass(frozen=True)
class Enhanced:
    """The supervised loss plus ``strength`` times the enhancement loss of the weakest modality (or of all).

    For features z and prototypes c: p(c | x) = softmax of −‖z − c‖ over the known classes, and the loss is the mean of
    −log p(y | x) over samples of known classes. With ``which`` weakest it is that of the modality with the smallest
    mean p(y | x) in the batch, if that is strictly below the largest, and ``coefficient`` clip multiplies it by
    min(1, ratio − 1), the ratio being largest over smallest; modalities that no counted sample has are not compared.
    Where one modality is in use it is that one's, in full. ``by_client``: modalities are compared by
    ``extra["behind"]`` instead of by the batch.
    """

    strength: float = 1.0
    which: Which = "weakest"
    coefficient: Coefficient = "const"
    by_client: bool = False

    def __call__(self, model: Model, batch: Batch, extra: Groups) -> tuple[Tensor, Logged]:
        """Return the loss () and its parts."""
        outputs = model(batch)
        loss, logged = total_loss(model.tasks, outputs, batch)
        for task in sorted(outputs.predictions.keys() & batch.labelled.keys()):
            if model.tasks[task].kind == "classification" and outputs.features:
                losses, scores = modality_losses(outputs, batch, task, extra[PROTOTYPES])
                behind = self._behind(scores, extra)
                shares = weights(behind, self.which, self.coefficient)
                enhancement = sum((shares[name] * value for name, value in losses.items()), start=loss.new_zeros(()))
                loss = loss + self.strength * enhancement
                logged |= {f"enhancement.{task}": enhancement.detach()}
        return loss, logged

    def _behind(self, scores: Mapping[str, Tensor], extra: Groups) -> dict[str, Tensor]:
        if self.by_client:
            return {name: extra[BEHIND][name] for name in scores}
        largest = torch.stack(list(scores.values())).amax(0)
        return {name: torch.where(score > 0, largest / score, 0.0) for name, score in scores.items()}


def modality_losses(
    outputs: Outputs, batch: Batch, task: str, prototypes: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return by modality the enhancement loss () and, cut from the graph, the mean of p(y | x) ().

    Only labelled samples that have the modality, and of whose class a prototype is known, count; both are 0 without.
    """
    losses, scores = {}, {}
    for modality in sorted(outputs.features):
        held = prototypes[key_of(modality, task)]
        target = batch.targets[task]
        counted = batch.labelled[task] & batch.present[modality] & known(held)[target]
        own = log_probabilities(outputs.features[modality], held).gather(1, target[:, None]).squeeze(1)
        own = torch.where(counted, own, 0.0)
        samples = counted.sum()
        losses[modality] = -own.sum() / samples.clamp(min=1)
        right = torch.where(counted, own.detach().exp(), 0.0).sum() / samples.clamp(min=1)
        scores[modality] = torch.where(samples > 0, right.clamp(min=SMALLEST), 0.0)
    return losses, scores


def weights(behind: Mapping[str, Tensor], which: Which, coefficient: Coefficient) -> dict[str, Tensor]:
    """Return how much each modality's loss () counts: 1 or 0, with ``clip`` anything between.

    ``behind`` () is how far each is behind the best, 0 where it is not compared. Of equally weak ones the first counts,
    and none where all are equal.
    """
    names = list(behind)
    if which == "all" or len(names) == 1:
        return {name: torch.ones_like(value) for name, value in behind.items()}
    values = torch.stack([behind[name] for name in names])
    farthest = values.argmax(0)
    lead = values.amax(0) - 1
    size = torch.where(lead > 0, 1.0, 0.0) if coefficient == "const" else lead.clamp(0, 1)
    return {name: torch.where(farthest == place, size, 0.0) for place, name in enumerate(names)}
