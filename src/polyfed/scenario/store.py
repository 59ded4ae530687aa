"""Where a federation's clients come from: row numbers, turned into samples when a client is asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from polyfed.data.samples import Samples
from polyfed.scenario.federation import Card, Client, ClientId, Federation
from polyfed.scenario.holdings import Skew
from polyfed.scenario.parts import BoolArray, Parts


@dataclass(frozen=True)
class Store:
    """Samples of all clients: ``kept`` for training and validation (``validating`` says which), ``tested`` for testing.

    ``kept`` are positions in ``pool``, ``tested`` in ``test_pool``. The sample skew applies to what is kept only: a
    client is tested on all modalities it holds.
    """

    cards: Mapping[ClientId, Card]
    pool: Samples
    kept: Parts
    validating: BoolArray
    test_pool: Samples
    tested: Parts
    skew: Skew | None

    def load(self, client: ClientId) -> Client:
        """Make a client's samples."""
        card = self.cards[client]
        kept = chosen(self.pool, self.kept, card)
        if self.skew is not None:
            masks = self.skew.masks(client, card.modalities, len(kept))
            kept = thinned(kept, {name: torch.from_numpy(mask) for name, mask in masks.items()})
        validating = torch.from_numpy(self.validating[self.kept.span(client)])
        train, validation = (kept.take(torch.nonzero(flags).flatten()) for flags in (~validating, validating))
        return Client(card, train, validation, chosen(self.test_pool, self.tested, card))


def chosen(pool: Samples, parts: Parts, card: Card) -> Samples:
    """Return a client's samples with its modalities and tasks."""
    return pool.only(card.modalities, card.tasks).take(torch.from_numpy(parts.of(card.id)))


def thinned(samples: Samples, masks: Mapping[str, Tensor]) -> Samples:
    """Take modalities away where the masks (samples,) are false; a sample left with none keeps all it has.

    That happens only where the data itself lacks the modality which the masks leave everywhere.
    """
    left = torch.stack([mask & samples.present[name] for name, mask in masks.items()]).any(0)
    return samples.masked({name: mask | ~left for name, mask in masks.items()})


def fingerprint(federation: Federation) -> str:
    """Return a SHA-256 over who holds what: rows, masks, targets, modalities and tasks of every client.

    Equal for equal scenarios over equal data, whatever the order of building; generation targets, which can be large,
    are left out.
    """
    digest = hashlib.sha256()
    schema = [asdict(modality) for modality in federation.modalities.values()]
    schema += [asdict(task) for task in federation.tasks.values()]
    digest.update(json.dumps(schema, sort_keys=True).encode())
    light = {name for name, task in federation.tasks.items() if task.kind != "generation"}
    for client in federation.clients():
        card = client.card
        digest.update(json.dumps([card.id, card.modalities, card.tasks]).encode())
        for samples in (client.train, client.validation, client.test):
            digest.update(len(samples).to_bytes(8, "little"))
            digest.update(samples.rows.numpy().tobytes())
            for name in samples.modalities:
                digest.update(samples.present[name].numpy().tobytes())
            for task in samples.tasks:
                digest.update(samples.labelled[task].numpy().tobytes())
                if task in light:
                    digest.update(samples.target(task).contiguous().numpy().tobytes())
    return digest.hexdigest()
