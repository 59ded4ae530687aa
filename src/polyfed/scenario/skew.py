"""How much clients differ: distances between their labels and everybody's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from polyfed.data.samples import Samples
from polyfed.scenario.federation import ClientId, Federation


def label_distances(federation: Federation) -> dict[ClientId, dict[str, dict[str, float]]]:
    """Return Σ_i |p^k_m(i) − p_m(i)| by client, classification task and modality, between 0 and 2.

    p^k_m are the class shares of the client's training samples that have modality m, p_m those of all clients' such
    samples (Chen and Li, INFOCOM 2022, bound of the local-global divergence).
    """
    counts = {client.card.id: class_counts(client.train, federation) for client in federation.clients()}
    everybody: dict[tuple[str, str], Tensor] = {}
    for held in counts.values():
        for key, count in held.items():
            everybody[key] = everybody[key] + count if key in everybody else count
    found: dict[ClientId, dict[str, dict[str, float]]] = {}
    for client, held in counts.items():
        for (task, modality), count in held.items():
            distance = (count / count.sum() - everybody[task, modality] / everybody[task, modality].sum()).abs().sum()
            found.setdefault(client, {}).setdefault(task, {})[modality] = float(distance)
    return found


def class_counts(samples: Samples, federation: Federation) -> Mapping[tuple[str, str], Tensor]:
    """Count the samples of each class, (classes,), by task and modality; those without any are left out."""
    found = {}
    for name in samples.tasks:
        task = federation.tasks[name]
        if task.kind != "classification" or not len(samples):
            continue
        labels = samples.target(name)
        for modality in samples.modalities:
            seen = samples.present[modality] & samples.labelled[name]
            count = torch.bincount(labels[seen], minlength=task.classes).double()
            if count.sum():
                found[name, modality] = count
    return found
