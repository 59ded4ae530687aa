"""Where a federation's clients come from: row numbers, turned into samples when a client is asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from polyfed.data.samples import Samples
from polyfed.data.schema import Modality, Task
from polyfed.scenario.federation import Card, Client, Federation, Split
from polyfed.scenario.holdings import Names, Skew
from polyfed.scenario.parts import BoolArray, IntArray, Parts
from polyfed.scenario.shared_validation import SharedRows


@dataclass(frozen=True)
class Rows:
    """The samples of all clients in one split, client after client, so that a client's are a slice.

    Client k has ``samples`` from ``offsets[k]`` up to ``offsets[k + 1]``.
    """

    samples: Samples
    offsets: IntArray
    _kinds: dict[tuple[Names, Names], Samples] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def of(pool: Samples, parts: Parts) -> Rows:
        """Take each client's part of a pool."""
        return Rows(pool.take(torch.from_numpy(parts.positions)), parts.offsets)

    def size(self, client: int) -> int:
        """Count a client's samples."""
        return self.offsets.item(client + 1) - self.offsets.item(client)

    def held_by(self, card: Card) -> Samples:
        """Return a client's samples with its modalities and tasks."""
        kind = (card.modalities, card.tasks)
        samples = self._kinds.get(kind)
        if samples is None:
            samples = self._kinds[kind] = self.samples.only(*kind)
        return samples.span(self.offsets.item(card.id), self.offsets.item(card.id + 1)).settled()


@dataclass(frozen=True)
class Thinning:
    """Takes modalities away from single samples that clients keep for training and validation.

    ``validating`` (samples,) tells which of the kept samples, client after client, are for validation.
    """

    skew: Skew
    validating: BoolArray

    def of(self, card: Card, split: Split, start: int, count: int) -> dict[str, Tensor]:
        """Return the masks of a client's samples of one split; the client keeps ``count`` from ``start`` on."""
        chosen = self.validating[start : start + count] == (split == "validation")
        masks = self.skew.masks(card.id, card.modalities, count)
        return {name: torch.from_numpy(mask[chosen]) for name, mask in masks.items()}


@dataclass(frozen=True)
class Store:
    """Samples of all clients by split. A thinning does not concern test samples: a client is tested on all it holds.

    Nor does it concern ``shared_validation``, which stands for the clients' own validation samples.
    """

    splits: Mapping[Split, Rows]
    thinning: Thinning | None = None
    shared_validation: SharedRows | None = None

    def load(self, card: Card) -> Client:
        """Return a client, whose samples are made when they are asked for."""
        return Client(card, self.samples)

    def samples(self, card: Card, split: Split) -> Samples:
        """Make a client's samples of one split."""
        if split == "validation" and self.shared_validation is not None:
            return self.shared_validation.held_by(card)
        found = self.splits[split].held_by(card)
        if self.thinning is None or split == "test":
            return found
        kept = (self.splits["train"], self.splits["validation"])
        start = sum(rows.offsets.item(card.id) for rows in kept)
        return thinned(found, self.thinning.of(card, split, start, sum(rows.size(card.id) for rows in kept)))


def thinned(samples: Samples, masks: Mapping[str, Tensor]) -> Samples:
    """Take modalities away where the masks (samples,) are false; a sample left with none keeps all it has.

    That happens only where the data itself lacks the modality which the masks leave everywhere.
    """
    left = torch.stack([mask & samples.present[name] for name, mask in masks.items()]).any(0)
    return samples.masked({name: mask | ~left for name, mask in masks.items()})


def described(modality: Modality) -> dict[str, Any]:
    """Return a modality as plain values, with its family only where that is not its own name."""
    values = asdict(modality)
    if modality.family == modality.name:
        del values["family"]
    return values


def asked(task: Task) -> dict[str, Any]:
    """Return a task as plain values, with what only some tasks have only where it is not the usual."""
    values = asdict(task)
    usual = ("form", "image"), ("metric", ""), ("reduction", "token_mean")
    return {key: value for key, value in values.items() if (key, value) not in usual}


def fingerprint(federation: Federation) -> str:
    """Return a SHA-256 over who holds what: rows, masks, targets, modalities and tasks of every client.

    Equal for equal scenarios over equal data, whatever the order of building; generation targets, which can be large,
    are left out.
    """
    digest = hashlib.sha256()
    schema = [described(modality) for modality in federation.modalities.values()]
    schema += [asked(task) for task in federation.tasks.values()]
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
