"""W4: clients that do not look alike. 200 clients in six groups on the embedded digits, 40 per round.

Groups: images, sounds or both, each with one task or two. Small convolutional encoders, Adam, two local epochs, as in
the experiment that ``polyfed run`` runs. The bare loop keeps one resident model per group and knows nothing else.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.engine import Execution, observer
from benchmarks.turns import Turns
from polyfed.data.samples import Batch
from polyfed.experiment import config
from polyfed.experiment.world import World, build_world
from polyfed.scenario.federation import Card, Client

MODALITY_SETS = (["image"], ["audio"], ["audio", "image"])
TASK_SETS = (["digit"], ["digit", "parity"])
CLIENTS, COHORT = 200, 40


def world(rounds: int, execution: Execution, clients: int = CLIENTS, cohort: int = COHORT) -> World:
    """Build the workload from an experiment, as the command line would."""
    experiment: dict[str, Any] = {
        "name": "W4",
        "rounds": rounds,
        "data": {"name": "avdigits"},
        "scenario": {
            "clients": clients,
            "modalities": {"name": "listed", "sets": [MODALITY_SETS[k % 3] for k in range(clients)]},
            "tasks": {"name": "listed", "sets": [TASK_SETS[k // 3 % 2] for k in range(clients)]},
            "validation": 0.0,
            "test": 0.0,
        },
        "model": {"name": "modular", "width": 32},
        "select": {"name": "random", "clients": cohort},
        "train": {"optimizer": "adam", "lr": 0.003, "epochs": 2, "batch_size": 16},
        "engine": execution.section(),
    }
    return build_world(config.parse(experiment))


def groups(built: World) -> Counter[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Count the clients of each pair of modality set and task set."""
    return Counter((card.modalities, card.tasks) for card in built.federation.cards.values())


def run(rounds: int, turns: Turns, execution: Execution) -> None:
    """Run rounds on the engine, in turns, with records in a folder."""
    with tempfile.TemporaryDirectory() as folder:
        world(rounds, execution).loop(Path(folder), observers=[observer(turns)]).run()


class BareGroups:
    """The bare loop of W4: FedAvg over the holders of each parameter, weighted by samples."""

    def __init__(self, built: World) -> None:
        self.federation = built.federation
        self.recipe = built.experiment.train
        self.state = {name: value.clone() for name, value in built.architecture.initial(0).items()}
        self.models = {
            card.components: built.architecture.assemble(card.components) for card in built.federation.cards.values()
        }
        self.data = {client.card.id: samples_of(client) for client in built.federation.clients()}
        self.generator = torch.Generator().manual_seed(0)

    def round(self, cohort: Iterable[int]) -> None:
        """Train each client of the cohort from the global parameters and average what they reach."""
        total = {name: torch.zeros_like(value) for name, value in self.state.items()}
        weights = dict.fromkeys(self.state, 0)
        for client in cohort:
            card = self.federation.cards[client]
            model = self.train(card, self.data[client])
            with torch.no_grad():
                for name, value in model.named_parameters():
                    total[name].add_(value, alpha=card.examples)
                    weights[name] += card.examples
        for name, weight in weights.items():
            if weight:
                self.state[name] = total[name] / weight

    def train(self, card: Card, batch: Batch) -> torch.nn.Module:
        """Copy the global parameters into the group's model and take the steps of one client."""
        model = self.models[card.components]
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in parameters.items():
                value.copy_(self.state[name])
        adam = torch.optim.Adam(parameters.values(), lr=self.recipe.lr)
        for _ in range(self.recipe.epochs):
            for rows in torch.split(torch.randperm(card.examples, generator=self.generator), self.recipe.batch_size):
                part = batch.each(itemgetter(rows))
                predictions = model(part).predictions
                loss = sum(
                    (cross_entropy(predictions[task], part.targets[task]) for task in card.tasks),
                    start=torch.zeros(()),
                )
                adam.zero_grad()
                torch.autograd.backward(loss)
                adam.step()
        return model


def samples_of(client: Client) -> Batch:
    """Return all training samples of a client as tensors."""
    batch: Batch = client.train.batch()
    return batch


def run_bare(rounds: int, turns: Turns) -> None:
    """Run rounds of the bare loop with random cohorts, in turns."""
    built = world(rounds, Execution())
    turns.begin()
    loop = BareGroups(built)
    for _ in range(rounds):
        drawn: Tensor = torch.randperm(CLIENTS, generator=loop.generator)[:COHORT]
        loop.round(drawn.tolist())
        turns.round_done()
