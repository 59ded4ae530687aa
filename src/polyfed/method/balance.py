"""How far a client's modalities are ahead of one another, told from class prototypes of its own samples.

Source: Fan et al., "Overcome Modal Bias in Multi-modal Federated Learning via Balanced Modality Selection" (BMSFed),
ECCV 2024, and the authors' code, which takes the ratio of nearest-prototype accuracies.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from polyfed.data.schema import Task
from polyfed.errors import UserError
from polyfed.method.companion import INACTIVE
from polyfed.method.protocol import Embed, Expected, Expects, Groups, Request, embed
from polyfed.method.prototypes import class_means, class_sums, nearest
from polyfed.method.training import Local, Trained, Training
from polyfed.model.architecture import Tensors
from polyfed.scenario.federation import Card, Roster

BALANCE, RATIOS = "balance", "ratios"
"""The group and the tensor of a reply that hold a client's ratios."""

LARGEST = 1e6
"""The largest ratio that is believed where nothing is known of the client's samples."""


@dataclass(frozen=True)
class Portrait:
    """A client's own class prototypes under one model.

    ``means[f"{modality}.{task}"]`` (classes, width), rows of zeros where it has no sample; ``counts[task]`` (classes,)
    float32 are its labelled samples by class; ``accuracies`` the shares, by modality, of its samples whose nearest
    prototype is that of their class, as (right + 1) / (samples + 1).
    """

    means: dict[str, Tensor]
    counts: dict[str, Tensor]
    accuracies: dict[str, float]

    @property
    def ratios(self) -> Tensor:
        """Accuracy of the first modality over that of each other one, in alphabetical order: (modalities − 1,)."""
        first, *others = (self.accuracies[name] for name in sorted(self.accuracies))
        return torch.tensor([first / other for other in others], dtype=torch.float32)


def portrait(
    training: Training, tasks: Mapping[str, Task], parameters: Tensors, modalities: Collection[str] | None = None
) -> Generator[Request, Any, Portrait]:
    """Embed all of a client's training samples and find prototypes and accuracies of its modalities (default: all)."""
    card, data = training.client.card, training.client.train
    features = yield from embed(Embed(parameters, data, frozenset(modalities or card.modalities)))
    means: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    right, seen = dict.fromkeys(features, 0), dict.fromkeys(features, 0)
    for task in classified(card, tasks):
        labels, labelled, classes = data.target(task), data.labelled[task], tasks[task].classes
        counts[task] = class_sums(labels[:, None].float(), labels, labelled, classes)[1].float()
        for modality, values in features.items():
            counted = labelled & data.present[modality]
            means[key_of(modality, task)] = class_means(*class_sums(values, labels, counted, classes))
            found = nearest(values, means[key_of(modality, task)])
            right[modality] += int(((found == labels) & counted).sum())
            seen[modality] += int(counted.sum())
    accuracies = {modality: (right[modality] + 1) / (seen[modality] + 1) for modality in features}
    return Portrait(means, counts, accuracies)


def key_of(modality: str, task: str) -> str:
    """Name the prototypes of a modality for a task."""
    return f"{modality}.{task}"


def classified(card: Card, tasks: Mapping[str, Task], place: str = "prototypes") -> list[str]:
    """Name the classification tasks of a client; raises UserError, naming the place, if there is none."""
    found = [task for task in card.tasks if tasks[task].kind == "classification"]
    if not found:
        raise UserError(
            f"{place}: modalities are compared by how they classify, but {card.name} has no classification task; its "
            f"tasks are {', '.join(card.tasks) or 'none'}. Give it one, or choose another method or selection"
        )
    return found


def kinds(roster: Roster) -> list[Card]:
    """Return a card of each kind of client: the first with these modalities and tasks."""
    found: dict[tuple[tuple[str, ...], tuple[str, ...]], Card] = {}
    for card in roster.values():
        found.setdefault((card.modalities, card.tasks), card)
    return list(found.values())


def check_classified(tasks: Mapping[str, Task], method: str) -> None:
    """Raise UserError if a federation has no classification task."""
    if not any(task.kind == "classification" for task in tasks.values()):
        raise UserError(f"{method}: class prototypes need a classification task; the tasks are {', '.join(tasks)}")


def whole_model(training: Training, trained: Tensors) -> dict[str, Tensor]:
    """Join what a client trained with the components that it was sent but did not train."""
    return {**training.groups.get(INACTIVE, {}), **trained}


@dataclass(frozen=True)
class Reporting:
    """Local training whose reply also holds the ratios between the modalities' accuracies, of the trained model.

    In a start-up pass they are those of the received model.
    """

    local: Local
    tasks: Mapping[str, Task]

    def __call__(self, training: Training) -> Generator[Request, Any, Trained]:
        """Train and report, unless the training reports the ratios itself."""
        before = None
        if training.starting and len(training.client.card.modalities) > 1:
            before = yield from portrait(training, self.tasks, whole_model(training, training.start))
        trained = yield from self.local(training)
        if BALANCE in trained.groups or len(training.client.card.modalities) < 2:
            return trained
        found = before or (yield from portrait(training, self.tasks, whole_model(training, trained.parameters)))
        return replace(trained, groups={**trained.groups, **balance_group(found)})


def balance_group(found: Portrait) -> Groups:
    """Return the group of a reply that tells a client's ratios; none where it owns one modality."""
    return {BALANCE: {RATIOS: found.ratios}} if len(found.accuracies) > 1 else {}


def expected_balance(card: Card) -> Expects:
    """Return what the reply of a client that reports its ratios holds."""
    others = len(card.modalities) - 1
    return {BALANCE: {RATIOS: Expected((others,), torch.float32)}} if others > 0 else {}


def largest_ratio(card: Card) -> float:
    """Return the largest ratio that a client with so many samples and tasks can find."""
    return card.examples * max(len(card.tasks), 1) + 1.0


def behind(ratios: Tensor, modalities: Sequence[str], largest: float = LARGEST) -> dict[str, float]:
    """Return by modality how far it is behind the client's best other one: 1 for a single modality.

    Ratios outside of 1 / ``largest`` to ``largest`` count as these.

    ``ratios`` are as in ``Portrait``. With two modalities these are the ratio of the first to the second, for the
    second, and its inverse, for the first.
    """
    names = sorted(modalities)
    if len(names) < 2:
        return dict.fromkeys(names, 1.0)
    relative = [1.0, *(1 / min(max(ratio, 1 / largest), largest) for ratio in ratios.tolist())]
    return {
        name: max(value for place, value in enumerate(relative) if place != own) / relative[own]
        for own, name in enumerate(names)
    }
