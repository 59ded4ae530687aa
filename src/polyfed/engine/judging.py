"""Evaluation after a round: whose models, with which parameters, and what is recorded of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from polyfed.engine.evaluate import Evaluation, evaluate_global
from polyfed.engine.expert_use import use_record
from polyfed.engine.records import Recorder
from polyfed.engine.screen import DIVERGED
from polyfed.engine.simulator import Simulator
from polyfed.engine.steps import Judge
from polyfed.engine.trainer import Trainer
from polyfed.engine.unimodal import evaluate_unimodal
from polyfed.errors import RunError
from polyfed.method.protocol import TRAINED, Divisible, Method, Part, check_apart
from polyfed.model.architecture import Tensors
from polyfed.scenario.federation import Card, ClientId, Federation

DEPLOYED = "deployed"


@dataclass(frozen=True)
class Judging:
    """Judges the models of ``judged``, the clients of ``federation`` or, where it is one pool, those it was made of.

    ``server_test``: the global model is evaluated, too; ``unimodal``: by each modality alone; ``uses``: what the models
    used of their experts is recorded.
    """

    method: Method[Any]
    federation: Federation
    judged: Federation
    trainer: Trainer
    server_test: bool
    unimodal: bool
    uses: bool

    def evaluate(self, state: Any, simulator: Simulator, number: int, recorder: Recorder) -> list[Evaluation]:
        """Judge and record all that is asked for, and return how the clients' models do.

        Raises RunError where a metric is NaN or infinite.
        """
        everyone = sorted(self.judged.cards)
        found = list(simulator.crew.evaluate(everyone, self.parameters_of(state, simulator)))
        check_finite(found, number)
        for evaluation in found:
            recorder.write(evaluation.record(number))
            if self.uses and evaluation.split == "test" and evaluation.use:
                recorder.write(use_record(number, evaluation.client, evaluation.use, evaluation.mixes))
        for model, clients, parameters_of in self._others(state, simulator):
            for evaluation in simulator.crew.evaluate(clients, parameters_of):
                recorder.write({**evaluation.record(number), "kind": "other_evaluation", "model": model})
        if self.server_test or self.unimodal:
            self._evaluate_global(state, simulator, number, recorder)
        return found

    def parameters_of(self, state: Any, simulator: Simulator, *, deployed_only: bool = False) -> Judge:
        """Return what finds the parameters of a judged client's model: as it trained it last, or as it is deployed."""

        def parameters_of(client: ClientId) -> tuple[Tensors, Tensors]:
            trained = self.federation.cards[self._trainer_of(client)]
            held = simulator.personal_of(trained.id)
            if held.get(TRAINED) and not deployed_only:
                return {}, held[TRAINED]
            deployed, personal = self.method.deploy(state, trained), held.get("parameters", {})
            check_apart(deployed, personal, client=trained.id)
            return deployed, personal

        return parameters_of

    def _trainer_of(self, judged: ClientId) -> ClientId:
        return 0 if self.federation.members else judged

    def _others(self, state: Any, simulator: Simulator) -> Iterator[tuple[str, Sequence[ClientId], Judge]]:
        """Yield models that are judged beside those that clients go by: their name, clients and parameters.

        What the server deploys to clients that go by what they trained last, and the parts of divisible models.
        """
        everyone = sorted(self.judged.cards)
        trained = [client for client in everyone if simulator.personal_of(self._trainer_of(client)).get(TRAINED)]
        if trained:
            yield DEPLOYED, trained, self.parameters_of(state, simulator, deployed_only=True)
        whole = self.parameters_of(state, simulator)
        for name, part in self.method.parts.items() if isinstance(self.method, Divisible) else ():
            yield name, everyone, part_of(whole, part)

    def _evaluate_global(self, state: Any, simulator: Simulator, number: int, recorder: Recorder) -> None:
        def parameters_of(card: Card) -> Tensors:
            deployed = self.method.deploy(state, card)
            if self.federation.members:
                return {**deployed, **simulator.personal_of(0).get("parameters", {})}
            # A newcomer's model: what clients keep to themselves has its first values.
            first = self.method.enrol(simulator.initial, card).get("parameters", {}) if deployed else {}
            return {**first, **deployed}

        found = evaluate_global(self.judged, self.trainer, parameters_of) if self.server_test else None
        if found is not None:
            check_finite([found], number)
            record = {**found.record(number), "kind": "server_evaluation"}
            recorder.write({key: value for key, value in record.items() if key not in ("client", "split")})
        alone = evaluate_unimodal(self.judged, self.trainer, parameters_of) if self.unimodal else None
        if alone is not None:
            recorder.write(alone.record(number))


def part_of(whole: Judge, part: Part) -> Judge:
    """Return what finds the parameters of a part of each client's model."""

    def parameters_of(client: ClientId) -> tuple[Tensors, Tensors]:
        deployed, personal = whole(client)
        return {}, part({**deployed, **personal})

    return parameters_of


def check_finite(evaluations: Sequence[Evaluation], round_number: int) -> None:
    """Raise RunError naming the first client, task and metric that is NaN or infinite: the model is of no use."""
    for one in evaluations:
        for task, metrics in one.metrics.items():
            for metric, value in metrics.items():
                if not math.isfinite(value):
                    raise RunError(
                        f"round {round_number}: client {one.client}, task {task!r}: {metric} of its {one.split} "
                        f"samples is {value}{DIVERGED}"
                    )
