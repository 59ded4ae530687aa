"""Global class prototypes as a companion: clients report their own, the server sends their means.

Source: Fan et al., "Overcome Modal Bias in Multi-modal Federated Learning via Balanced Modality Selection" (BMSFed),
ECCV 2024, and the authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from polyfed.data.schema import Task
from polyfed.method.balance import classified, expected_balance, key_of, kinds
from polyfed.method.companion import Asked, Unaccompanied, Watching
from polyfed.method.enhancement import PROTOTYPES
from polyfed.method.protocol import Clock, Expected, Expects, Groups, Reducer, Reply
from polyfed.method.prototypes import known
from polyfed.model.architecture import Tensors
from polyfed.scenario.federation import Card, ClientId, Roster

COUNTS = "class_counts"
"""The group of a reply that holds the labelled samples by class, (classes,) by task."""


@dataclass(frozen=True)
class Classified(Unaccompanied):
    """Nothing travels beside the parameters, but clients must have a classification task."""

    tasks: Mapping[str, Task]

    def begin(self, initial: Tensors, roster: Roster) -> Groups:
        """Keep nothing; raises UserError for a client without a classification task."""
        for card in kinds(roster):
            classified(card, self.tasks)
        return {}


LARGEST = 1e6
"""The largest norm of first prototypes that is believed; later ones are held against those that were sent."""


@dataclass(frozen=True)
class Prototypes(Unaccompanied):
    """Keeps the global prototypes: of each class the mean of the reporting clients' own, weighted by their samples.

    A class of which nobody reported keeps its prototype. They are first gathered in a start-up pass of all clients.
    ``widths`` are those of the features. Clients' samples of a class count whole, also if some lack a modality.
    """

    tasks: Mapping[str, Task]
    widths: Mapping[str, int]

    @property
    def whole(self) -> bool:
        """Clients report prototypes of all their modalities, whatever they train."""
        return True

    def starts(self, clock: Clock) -> int | None:
        """Everybody reports prototypes of the first model."""
        return 0 if clock.round == 1 else None

    def begin(self, initial: Tensors, roster: Roster) -> Groups:
        """Nothing is known yet; raises UserError for a client without a classification task."""
        keys = {key: shape for card in kinds(roster) for key, shape in self._shapes(card).items()}
        return {PROTOTYPES: {key: torch.zeros(keys[key]) for key in sorted(keys)}}

    def _shapes(self, card: Card) -> dict[str, tuple[int, int]]:
        return {
            key_of(modality, task): (self.tasks[task].classes, self.widths[modality])
            for task in classified(card, self.tasks)
            for modality in card.modalities
        }

    def send(self, held: Groups, card: Card, active: frozenset[str]) -> Groups:
        """Send the prototypes of the client's modalities and tasks, once there are any."""
        return {PROTOTYPES: {key: held[PROTOTYPES][key] for key in self._shapes(card)}} if anything(held) else {}

    def expects(self, held: Groups, parameters: Tensors, card: Card, active: frozenset[str]) -> Expects:
        """Expect prototypes, samples by class, and the ratios between modalities."""
        largest = None if anything(held) else LARGEST
        means = {key: Expected(shape, torch.float32, largest) for key, shape in self._shapes(card).items()}
        counts = {task: Expected((self.tasks[task].classes,), torch.float32) for task in classified(card, self.tasks)}
        return {PROTOTYPES: means, COUNTS: counts, **expected_balance(card)}

    def watch(self, held: Groups, asked: Asked) -> Reducer[Groups]:
        """Average what is reported."""
        return ClassMeans(held[PROTOTYPES], asked.roster)


def anything(held: Groups) -> bool:
    """Whether any global prototype is known."""
    return any(bool(known(value).any()) for value in held[PROTOTYPES].values())


@dataclass
class ClassMeans(Watching):
    """Σ_k n_kc c_kc / Σ_k n_kc for each class, over the clients that know it."""

    before: Tensors
    roster: Roster
    sums: dict[str, Tensor] = field(default_factory=dict)
    samples: dict[str, Tensor] = field(default_factory=dict)

    def add(self, client: ClientId, reply: Reply) -> None:
        """Take one reply in; a client cannot count more samples than it is said to have."""
        self.clients.append(client)
        for key, means in reply.tensors[PROTOTYPES].items():
            counts = reply.tensors[COUNTS][key.split(".", 1)[1]].double().clamp(0, self.roster[client].examples)
            counts = torch.where(known(means), counts, 0.0)
            sums = means.double() * counts[:, None]
            self.sums[key] = self.sums[key] + sums if key in self.sums else sums
            self.samples[key] = self.samples[key] + counts if key in self.samples else counts

    def finish(self) -> Groups:
        """Return the global prototypes."""
        return {PROTOTYPES: {key: self._renewed(key, before) for key, before in self.before.items()}}

    def _renewed(self, key: str, before: Tensor) -> Tensor:
        if key not in self.sums:
            return before
        samples = self.samples[key][:, None]
        return torch.where(samples > 0, self.sums[key] / samples.clamp(min=1), before.double()).float()
