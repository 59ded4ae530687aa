"""Clients with random labels lose their weight: a softmax regression on Gaussian classes, by the weights alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from polyfed.method.blending import (
    Change,
    Losses,
    Safeguards,
)
from polyfed.method.client_blending import client_weights

Array = NDArray[np.float64]
CLASSES, DIMENSIONS, CLIENTS, NOISY = 10, 40, 20, 5
FLOORS = (0.0, 0.1, 0.5, 1.0)


def toy_client(generator: np.random.Generator, means: Array, noisy: bool) -> tuple[Array, NDArray[np.int64], int]:
    """Gaussian classes with Dirichlet(0.3) labels, random ones if noisy, and how many of the samples are held out."""
    count = int(generator.integers(30, 200))
    labels = generator.choice(CLASSES, count, p=generator.dirichlet([0.3] * CLASSES))
    values = np.hstack([means[labels] + generator.normal(size=(count, DIMENSIONS)), np.ones((count, 1))])
    return values, generator.integers(0, CLASSES, count) if noisy else labels, round(0.2 * count)


def predicted(values: Array, models: Array) -> Array:
    """(samples, inputs), (models, inputs, classes) -> probabilities (models, samples, classes)."""
    logits = values @ models
    scaled = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(scaled / scaled.sum(-1, keepdims=True))


def mean_losses(values: Array, labels: NDArray[np.int64], models: Array) -> Array:
    """Cross-entropy of each model."""
    return np.asarray(-np.log(predicted(values, models)[:, np.arange(len(labels)), labels] + 1e-300).mean(-1))


def descended(values: Array, labels: NDArray[np.int64], models: Array, generator: np.random.Generator) -> Array:
    """Three epochs of SGD, batch 20, learning rate 0.1, of all models at once."""
    models = models.copy()
    for _ in range(3):
        order = generator.permutation(len(labels))
        for start in range(0, len(order), 20):
            rows = order[start : start + 20]
            slopes = predicted(values[rows], models) - np.eye(CLASSES)[labels[rows]]
            models -= 0.1 / len(rows) * (values[rows].T @ slopes)
    return models


def toy(seed: int, noisy: int, rounds: int = 40) -> dict[str, tuple[float, float, float]]:
    """Return accuracy, effective clients and weight on the noisy clients of FedAvg and of every floor."""
    generator = np.random.default_rng(seed)
    means = 0.6 * generator.normal(size=(CLASSES, DIMENSIONS))
    clients = [toy_client(generator, means, client < noisy) for client in range(CLIENTS)]
    examples = {client: float(len(labels) - held) for client, (_, labels, held) in enumerate(clients)}
    names = ["fedavg", *map(str, FLOORS)]
    models = np.zeros((len(names), DIMENSIONS + 1, CLASSES))
    effective, on_noisy = np.zeros(len(names)), np.zeros(len(names))
    for _ in range(rounds):
        changes: list[dict[int, Change]] = [{} for _ in names]
        trained = []
        for client, (values, labels, held) in enumerate(clients):
            parts = (values[held:], labels[held:]), (values[:held], labels[:held])
            local = descended(*parts[0], models, generator)
            losses = [[mean_losses(*part, at) for part in parts] for at in (models, local)]
            for place in range(len(names)):
                before, after = (Losses(*(float(loss[place]) for loss in pair)) for pair in losses)
                changes[place][client] = Change.between(before, after)
            trained.append(local)
        found = [
            examples if name == "fedavg" else client_weights(examples, changes[place], Safeguards(float(name)), 0.0)
            for place, name in enumerate(names)
        ]
        weights = np.array([[held[client] for client in range(CLIENTS)] for held in found])
        weights /= weights.sum(1, keepdims=True)
        models = np.einsum("mk,kmic->mic", weights, np.stack(trained))
        effective += 1 / (weights**2).sum(1) / rounds
        on_noisy += weights[:, :noisy].sum(1) / rounds
    labels = generator.integers(0, CLASSES, 2000)
    values = np.hstack([means[labels] + generator.normal(size=(2000, DIMENSIONS)), np.ones((2000, 1))])
    accuracy = (predicted(values, models).argmax(-1) == labels).mean(-1)
    return dict(zip(names, zip(accuracy.tolist(), effective.tolist(), on_noisy.tolist(), strict=True), strict=True))


def test_clients_with_random_labels_lose_weight_and_a_higher_floor_spreads_it() -> None:
    found = toy(0, NOISY)
    _, clients, on_noisy = found["fedavg"]
    assert found["0.5"][2] < 0.5 * on_noisy
    spread = [found[str(floor)][1] for floor in FLOORS]
    assert 1 <= spread[0] < spread[1] < spread[2] < spread[3] < clients
