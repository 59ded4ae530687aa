"""Modality blending, the local half of FedHGB: a client weights the losses of its heads."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from polyfed.data.samples import Samples
from polyfed.method.blending import BLEND, FUSED, Blended, Change, Losses, Safeguards, head_weights
from polyfed.method.head_probe import MEMORY, Probe, between, counted, heads_of, remember
from polyfed.method.protocol import NOTES, Fit, Gradient, Groups, Request, fit, gradient
from polyfed.method.training import Trained, Training
from polyfed.model.architecture import Tensors, component_of

GAIN, OVERFITTING = "gain", "overfitting"
"""Of a reply and of notes: G and O."""

LOCAL = "local"
"""The personal group of the last local model, kept for ``merge``."""

FEWEST = 8
"""Held-out samples below which a client does not report."""

Window = Literal["last_local", "local_to_global", "probe", "gradient"]
Steps = Generator[Request, Any, Any]


@dataclass(frozen=True)
class Blending:
    """The local training of FedHGB: measure the heads, weight their losses, train, measure again.

    ``modalities``: whether heads are weighted by blending, else equally (or, with ``only_fused``, just the fused head
    trains). ``reports``: whether G and O go to the server, of the blended loss or of the fused head's.
    ``window`` tells between which checkpoints G and O of the heads are taken:

    * ``last_local``: over the client's last local training, each divided by the weight its head then trained with;
    * ``local_to_global``: from the client's last local model to the one just received;
    * ``probe``: over ``probe_epochs`` of training each head alone from the received model (Wang et al., Algorithm 1);
    * ``gradient``: inner products of held-out and training gradients at the received model, over ``gradient_batches``.

    In the first two the first participation has equal weights. ``merge`` starts from r · local + (1 − r) · received,
    part by part, r the overfitting-to-generalisation ratio from the local to the received model, at most 1: of a
    modality's head for its encoder and that head, of the fused head for the rest.
    """

    modalities: bool = True
    only_fused: bool = False
    reports: bool = True
    report_loss: Literal["blended", "fused"] = "blended"
    window: Window = "last_local"
    weight_sum: float = 1.0
    weight_mix: float = 0.1
    safeguards: Safeguards = field(default_factory=Safeguards)
    training_probe: int = 256
    probe_epochs: int = 1
    gradient_batches: int = 8
    merge: bool = False

    def __call__(self, training: Training) -> Generator[Request, Any, Trained]:
        """Train one client."""
        heads = heads_of(training)
        probe = Probe.of(training, heads, self.training_probe)
        start: Tensors = training.start
        before = received = yield from probe.losses(start)
        if self.merge and LOCAL in training.personal:
            start = self._merged(training, between(probe.remembered(Losses), received))
            before = yield from probe.losses(start)
        changes = yield from self._changes(training, probe, start, before, received)
        weights = self._weights(heads, changes)
        used = tuple(head for head in heads if weights[head])
        blend = {head: torch.tensor(weights[head], dtype=torch.float32) for head in used}
        request = Fit(Blended(used), start, training.data, training.recipe, training.active, None, {BLEND: blend})
        fitted = yield from fit(request)
        after = yield from probe.losses(fitted.parameters)
        found = between(before, after)
        numbers = {**fitted.numbers, "steps": float(fitted.steps), **self._report(found, weights, probe)}
        personal = {
            NOTES: notes(weights, found, after),
            **self._memory(training, found, weights, after, fitted.parameters),
        }
        return Trained(fitted.parameters, numbers, personal)

    # ------------------------------------------------------------------------------------------ weights of heads

    def _weights(self, heads: Sequence[str], changes: Mapping[str, Change]) -> dict[str, float]:
        if self.only_fused:
            return {head: float(head == FUSED) for head in heads}
        if not self.modalities:
            return dict.fromkeys(heads, self.weight_sum / len(heads))
        found = head_weights(list(heads), changes, self.safeguards, self.weight_mix)
        return {head: self.weight_sum * weight for head, weight in found.items()}

    def _changes(
        self,
        training: Training,
        probe: Probe,
        start: Tensors,
        before: Mapping[str, Losses],
        received: Mapping[str, Losses],
    ) -> Steps:
        """Return G and O of the heads that the window has something to say about."""
        if not self.modalities:
            return {}
        if self.window == "probe":
            return (yield from self._probed(training, probe, start, before))
        if self.window == "gradient":
            return (yield from self._from_gradients(training, probe, start))
        if self.window == "local_to_global":
            return between(probe.remembered(Losses), received)
        return probe.remembered(Change)

    def _probed(self, training: Training, probe: Probe, start: Tensors, before: Mapping[str, Losses]) -> Steps:
        recipe = replace(training.recipe, epochs=self.probe_epochs)
        found: dict[str, Change] = {}
        for head in before:
            extra = {BLEND: {head: torch.ones(())}}
            purpose = f"probe {head}"
            request = Fit(Blended((head,)), start, training.data, recipe, training.active, None, extra, purpose)
            fitted = yield from fit(request)
            after = yield from replace(probe, heads=(head,)).losses(fitted.parameters)
            if head in after:
                found[head] = Change.between(before[head], after[head])
        return found

    def _from_gradients(self, training: Training, probe: Probe, start: Tensors) -> Steps:
        generator = training.clock.generator("gradient batches", training.client.card.id)
        size = training.recipe.batch_size
        order = torch.randperm(len(training.data), generator=generator)[: self.gradient_batches * size]
        batches = [training.data.take(part) for part in torch.split(order, size)] if len(order) else []
        found: dict[str, Change] = {}
        for head in probe.heads:
            objective, extra = Blended((head,)), {BLEND: {head: torch.ones(())}}

            def slopes(data: Samples, objective: Blended = objective, extra: Groups = extra) -> Steps:
                return (yield from gradient(Gradient(objective, start, data, training.active, extra)))

            held_out = counted(probe.held_out, head)
            of_head = [part for part in (counted(batch, head) for batch in batches) if len(part)]
            if not (len(held_out) and of_head):
                continue
            slope = yield from slopes(held_out)
            of_batches = []
            for part in of_head:
                of_batches += [(yield from slopes(part))]
            found[head] = gradient_change(slope, of_batches)
        return found

    # ------------------------------------------------------------------------------------------ reports and memory

    def _report(self, found: Mapping[str, Change], weights: Mapping[str, float], probe: Probe) -> dict[str, float]:
        """Return G and O of the client; nothing where there is too little to tell them from."""
        if not self.reports or len(probe.held_out) < FEWEST:
            return {}
        if self.report_loss == "fused":
            return {GAIN: found[FUSED].gain, OVERFITTING: found[FUSED].overfitting} if FUSED in found else {}
        total = sum(weights[head] for head in found)
        if not total > 0:
            return {}
        gain = sum(weights[head] * change.gain for head, change in found.items()) / total
        overfitting = sum(weights[head] * change.overfitting for head, change in found.items()) / total
        return {GAIN: gain, OVERFITTING: overfitting}

    def _memory(
        self,
        training: Training,
        found: Mapping[str, Change],
        weights: Mapping[str, float],
        after: Mapping[str, Losses],
        parameters: Tensors,
    ) -> dict[str, Tensors]:
        """Return the personal groups that the next participation looks at."""
        held: dict[str, Tensor] = {}
        if self.modalities and self.window == "last_local":
            held = dict(training.personal.get(MEMORY, {}))
            for head, (gain, overfitting) in found.items():
                if weights[head]:
                    held |= remember(head, Change(gain / weights[head], overfitting / weights[head]))
        if self.merge or (self.modalities and self.window == "local_to_global"):
            for head, losses in after.items():
                held |= remember(head, losses)
        memory: dict[str, Tensors] = {MEMORY: held} if held else {}
        return {**memory, LOCAL: dict(parameters)} if self.merge else memory

    def _merged(self, training: Training, changes: Mapping[str, Change]) -> Tensors:
        """Mix the client's last local model into the received parameters, by the changes from it to them."""
        local, card = training.personal[LOCAL], training.client.card
        merged = dict(training.start)
        for name in training.received:
            kind, _, rest = component_of(name, card.components).partition(".")
            head = rest.partition(".")[0] if kind in ("encoder", "unimodal") else FUSED
            if head in changes and name in local:
                merged[name] = torch.lerp(training.start[name], local[name], min(1.0, changes[head].ogr))
        return merged


def gradient_change(held_out: Tensors, batches: Sequence[Tensors]) -> Change:
    """Return G = mean <v, g_b> and O = sqrt(mean <mean g − v, g_b>²): v held-out gradient, g_b those of batches."""

    def product(one: Tensors, other: Tensors) -> float:
        both = one.keys() & other.keys()
        return float(sum(torch.dot(one[name].flatten(), other[name].flatten()).double() for name in sorted(both)))

    with_batches = [product(held_out, batch) for batch in batches]
    names = sorted({name for batch in batches for name in batch})
    mean = {
        name: torch.stack([batch[name] for batch in batches if name in batch]).sum(0) / len(batches) for name in names
    }
    spread = [(product(mean, batch) - one) ** 2 for batch, one in zip(batches, with_batches, strict=True)]
    return Change(sum(with_batches) / len(batches), (sum(spread) / len(batches)) ** 0.5)


def notes(weights: Mapping[str, float], found: Mapping[str, Change], after: Mapping[str, Losses]) -> dict[str, Tensor]:
    """Return what a client writes down of its heads.

    Weights, G, O, |O / G| where that is finite, and, after training, the held-out loss and how far it is above that on
    training samples (the generalisation error).
    """
    written = {f"blend.{head}": weight for head, weight in weights.items()}
    for head, losses in after.items():
        written |= {f"held_out.{head}": losses.held_out, f"gap.{head}": losses.gap}
    for head, change in found.items():
        written |= {f"{GAIN}.{head}": change.gain, f"{OVERFITTING}.{head}": change.overfitting}
        if change.gain:
            written[f"ogr.{head}"] = change.ogr
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in written.items()}
