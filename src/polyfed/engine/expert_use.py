"""How much a client uses each path of a mixture of experts, or each task's adapter: mean weights over samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from polyfed.data.samples import Batch
from polyfed.model.architecture import Mixed, Mixing, latent_parts

Use = Mapping[str, Mapping[str, float]]
"""Mean weight by task and by the key of the path; those of a task sum to 1."""


@dataclass
class ExpertUse:
    """Sums of weights over samples with the task's label and some modality; nothing of models that mix no paths.

    ``of`` tells what is mixed, experts or adapters of tasks.
    """

    sums: dict[str, dict[str, float]] = field(default_factory=dict)
    of: Mixed = "experts"

    def add(self, mixing: Mapping[str, Mixing], batch: Batch) -> None:
        """Take in the weights of a batch."""
        for task, (keys, weights, self.of) in mixing.items():
            here = batch.labelled[task]
            rows = weights.double().expand(len(here), -1)[here].sum(0).tolist()
            held = self.sums.setdefault(task, dict.fromkeys(keys, 0.0))
            for key, value in zip(keys, rows, strict=True):
                held[key] += value

    def means(self) -> dict[str, dict[str, float]]:
        """Return the mean weights; samples without any modality have none and count for nothing."""
        totals = {task: sum(held.values()) for task, held in self.sums.items()}
        return {
            task: {key: value / totals[task] for key, value in held.items()}
            for task, held in self.sums.items()
            if totals[task] > 0
        }


def use_record(round_number: int, client: int, use: Use, of: Mixed = "experts") -> dict[str, Any]:
    """Return the line for the records: weights by task, modality, input scope and output scope.

    Of adapters: weights by task and by the task whose adapter it is.
    """
    if of == "adapters":
        held_of = {task: dict(held) for task, held in use.items()}
        return {"kind": "router_use", "round": round_number, "client": client, "weights": held_of}
    weights: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for task, held in use.items():
        for key, value in held.items():
            modality, input_scope, output_scope = latent_parts(key)
            by_input = weights.setdefault(task, {}).setdefault(modality, {})
            by_input.setdefault(input_scope, {})[output_scope] = value
    return {"kind": "expert_use", "round": round_number, "client": client, "weights": weights}
