"""Client blending, the server half of FedHGB: clients weighted by what they gained for how much they overfitted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from polyfed.method.blending import Change, Safeguards, mixed, raw_weights, shares
from polyfed.method.combine import Mean, MeanOverHolders, Weigh
from polyfed.method.head_blending import GAIN, OVERFITTING
from polyfed.method.protocol import Clock, Note, Reducer, Reply
from polyfed.model.architecture import Tensors
from polyfed.scenario.federation import ClientId


class BlendedMean:
    """Means with the weights p_k of client blending; replies are kept until all have come.

    A client that does not report is given the mean of the others' raw weights; with no report at all, or none that
    helps, weights are by examples. So they are, too, for a component whose holders' weights do not add up to more than
    zero; diluted, such a component stays as it is, also where clients of negative weight (``allow``) would push it.
    """

    def __init__(self, weigh: Weigh, rules: Safeguards, mix: float) -> None:
        self._weigh, self._rules, self._mix = weigh, rules, mix
        self._replies: dict[ClientId, Reply] = {}

    @property
    def counted(self) -> tuple[ClientId, ...]:
        """Clients whose replies were added."""
        return tuple(self._replies)

    def add(self, client: ClientId, reply: Reply) -> None:
        """Keep one reply."""
        self._replies[client] = reply

    def finish(self) -> Mean:
        """Return the means, and note the weights."""
        examples = {client: self._weigh(client, reply) for client, reply in self._replies.items()}
        reports = {
            client: Change(reply.numbers[GAIN], reply.numbers[OVERFITTING])
            for client, reply in self._replies.items()
            if GAIN in reply.numbers and OVERFITTING in reply.numbers
        }
        weights = client_weights(examples, reports, self._rules, self._mix)
        mean = self._mean(weights)
        values, counts = dict(mean.values), dict(mean.weights)
        if any(name not in values for name in self._held(examples)):
            by_examples = self._positive(examples)
            values = {**by_examples.values, **values}
            counts = {**dict.fromkeys(values, 0.0), **counts}
        return Mean(values, counts, mean.total, noted(weights, reports))

    def _held(self, weights: Mapping[ClientId, float]) -> Iterator[str]:
        """Yield the names of what the clients of positive weight hold."""
        for client, reply in self._replies.items():
            if weights[client] > 0:
                yield from reply.tensors.get("parameters", {})

    def _mean(self, weights: Mapping[ClientId, float]) -> Mean:
        """Average; clients of negative weight, which the printed formula knows, push away from where they are."""
        mean = self._positive(weights)
        if all(weight >= 0 for weight in weights.values()):
            return mean
        away = self._positive({client: -weight for client, weight in weights.items()})
        values, counts = {}, {}
        for name, value in mean.values.items():
            less = away.weights.get(name, 0.0)
            count = mean.weights[name] - less
            if count > 0:
                values[name] = torch.lerp(value, away.values[name], -less / count) if less else value
                counts[name] = count
        return Mean(values, counts, mean.total - away.total)

    def _positive(self, weights: Mapping[ClientId, float]) -> Mean:
        """Average over the clients of positive weight."""
        reducer = MeanOverHolders(lambda client, reply: weights[client])
        for client, reply in self._replies.items():
            reducer.add(client, reply)
        return reducer.finish()


def client_weights(
    examples: Mapping[ClientId, float], reports: Mapping[ClientId, Change], rules: Safeguards, mix: float
) -> dict[ClientId, float]:
    """Return the weights p_k, adding up to 1; where the reports say nothing, the examples as they are."""
    taking_part = [client for client, count in examples.items() if count > 0]
    raw = raw_weights({client: reports[client] for client in taking_part if client in reports}, rules)
    found = shares(raw, taking_part)
    if found is None:
        return dict(examples)
    total = sum(examples.values())
    by_examples = {client: examples[client] / total for client in taking_part}
    return {**dict.fromkeys(examples, 0.0), **mixed(found, by_examples, mix)}


def noted(weights: Mapping[ClientId, float], reports: Mapping[ClientId, Change]) -> Note:
    """Note every client's weight and report, and the effective number of clients 1 / Σ p²."""
    total = sum(weights.values())
    clients: dict[ClientId, dict[str, float]] = {
        client: {"weight": weight / total if total else 0.0} for client, weight in weights.items()
    }
    for client, (gain, overfitting) in reports.items():
        clients[client] |= {GAIN: gain, OVERFITTING: overfitting}
    squares = sum(held["weight"] ** 2 for held in clients.values())
    return Note({"effective_clients": 1 / squares} if squares else {}, clients)


@dataclass(frozen=True)
class ByBlending:
    """Client blending as a combine rule."""

    rules: Safeguards
    mix: float

    def __call__(self, weigh: Weigh, current: Tensors, clock: Clock) -> Reducer[Mean]:
        """Make the reducer of a round."""
        return BlendedMean(weigh, self.rules, self.mix)
