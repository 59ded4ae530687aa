"""What a client ought to report of a model: class prototypes and the ratio of its modalities, found step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from polyfed.engine.trainer import Trainer
from polyfed.method.balance import BALANCE, RATIOS
from polyfed.method.protocol import Embed, Reply
from polyfed.method.prototypes import class_means, class_sums, nearest
from polyfed.model.architecture import Tensors


@dataclass(frozen=True)
class Found:
    """Prototypes (classes, width) by modality, and accuracy of the first modality over that of the second."""

    means: dict[str, Tensor]
    ratio: float


def held_by(world: Any, client: int, parameters: Tensors) -> dict[str, Tensor]:
    """Return those of the parameters that belong to a client's model."""
    components = tuple(f"{name}." for name in world.federation.cards[client].components)
    return {name: value for name, value in parameters.items() if name.startswith(components)}


def found_with(world: Any, client: int, parameters: Tensors, task: str = "digit") -> Found:
    """Return what a client finds on its training samples, with both modalities, under these parameters."""
    card, data = world.federation.cards[client], world.federation.client(client).train
    request = Embed(held_by(world, client, parameters), data, frozenset(card.modalities))
    labels, classes = data.target(task), world.federation.tasks[task].classes
    means, accuracies = {}, []
    for name, values in sorted(Trainer(world.architecture).embed(card, request).items()):
        counted = data.labelled[task] & data.present[name]
        means[name] = class_means(*class_sums(values, labels, counted, classes))
        right = (nearest(values, means[name]) == labels) & counted
        accuracies.append((int(right.sum()) + 1) / (int(counted.sum()) + 1))
    first, second = accuracies if len(accuracies) == 2 else (1.0, 1.0)
    return Found(means, first / second)


def ratio_in(reply: Reply) -> float:
    """Return the one ratio of a reply."""
    return float(reply.tensors[BALANCE][RATIOS])
