"""What the enhancement loss is for: on data with a strong and a weak modality it raises the weak one's accuracy.

Methods sheet of BMSFed, properties 19 and 20, on a toy like that of its section 8. That selection adds to what the loss
does is not asserted: it need not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from polyfed.data.columns import TensorColumn
from polyfed.data.samples import Table
from polyfed.data.schema import Modality, Task
from polyfed.engine.loop import Loop, Plan
from polyfed.method.averaging import Context
from polyfed.method.bmsfed import bmsfed
from polyfed.method.classic import fedavg
from polyfed.method.protocol import Method, Recipe
from polyfed.method.select import Selector, uniform
from polyfed.method.select_balanced import bms
from polyfed.model.modular import modular
from polyfed.model.size import feature_widths
from polyfed.rng import numpy_generator
from polyfed.scenario.federation import Card, Cards, Client, Federation

CLIENTS, PER_ROUND, CLASSES, DIMENSIONS = 20, 5, 10, 20
TRAIN, TEST = 2000, 1000
DISTANCE: Mapping[str, float] = {"strong": 0.75, "weak": 0.5}
"""Standard deviation of the class means, in each dimension, where that of the samples about them is 1."""


def federation_of(seed: int) -> Federation:
    """Gaussian classes, spread over clients by a Dirichlet distribution per class (alpha 3)."""
    random = numpy_generator("weak modality", seed)
    labels = random.integers(0, CLASSES, TRAIN + TEST)
    columns = {}
    for name, distance in DISTANCE.items():
        centres = distance * random.normal(size=(CLASSES, DIMENSIONS))
        values = centres[labels] + random.normal(size=(len(labels), DIMENSIONS))
        columns[name] = TensorColumn(torch.tensor(values, dtype=torch.float32))
    table = Table(columns, {"label": TensorColumn(torch.tensor(labels))})
    samples = table.everything()
    shares = random.dirichlet([3.0] * CLIENTS, CLASSES)
    owners = np.array([random.choice(CLIENTS, p=shares[label]) for label in labels[:TRAIN]])
    rows = [torch.tensor(np.flatnonzero(owners == client)) for client in range(CLIENTS)]
    empty, names = samples.span(0, 0), tuple(sorted(columns))

    def load(card: Card) -> Client:
        return Client.of(card, samples.take(rows[card.id]), empty, empty)

    cards = Cards([names] * CLIENTS, [("label",)] * CLIENTS, np.array([len(held) for held in rows]), {})
    modalities = {name: Modality(name, "vector", (DIMENSIONS,)) for name in names}
    tasks = {"label": Task("label", "classification", classes=CLASSES)}
    return Federation(modalities, tasks, cards, load, server_test=samples.span(TRAIN, TRAIN + TEST))


ARMS: Mapping[str, tuple[Callable[[Context], Method[Any]], Selector]] = {
    "fedavg": (fedavg, uniform(clients=PER_ROUND)),
    "enhancement": (bmsfed, uniform(clients=PER_ROUND)),
    "full": (bmsfed, bms(clients=PER_ROUND, threshold=1.2)),
}


@cache
def accuracies(arm: str, seed: int) -> dict[str, float]:
    """Train 15 rounds of 2 epochs; return nearest-prototype accuracies by modality, on the server's test samples."""
    federation = federation_of(seed)
    encoders = {name: {"name": "mlp", "hidden": [32]} for name in federation.modalities}
    model = modular(federation.modalities, federation.tasks, width=16, encoders=encoders)
    recipe = Recipe(lr=0.05, momentum=0.9, epochs=2, batch_size=32)
    build, select = ARMS[arm]
    context = Context(recipe, model.components, select, federation.tasks, widths=lambda: feature_widths(model))
    found: dict[str, float] = {}

    def noted(line: Mapping[str, Any]) -> None:
        if line["kind"] == "unimodal_evaluation":
            found.update({name: held["ncm_train"] for name, held in line["accuracy"]["label"].items()})

    plan = Plan(rounds=15, seed=seed, evaluate_every=15, unimodal=True, workers=1)
    Loop(build(context), federation, model, plan, observers=[noted]).run()
    return found


@pytest.mark.parametrize("arm", ["enhancement", "full"])
def test_the_weak_modality_is_raised_over_fedavg(arm: str) -> None:
    """In the mean over seeds, the same ones for both; and the strong modality is the strong one."""
    plain, raised = ([accuracies(name, seed) for seed in range(5)] for name in ("fedavg", arm))
    assert all(found["strong"] > found["weak"] + 0.1 for found in plain)
    gains = [found["weak"] - before["weak"] for found, before in zip(raised, plain, strict=True)]
    assert sum(gains) / len(gains) > 0.04, gains
