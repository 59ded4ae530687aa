"""summary.json: the result of a run (its keys are an interface, described in docs/run-folder.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import polyfed
from polyfed.engine.evaluate import SPLITS
from polyfed.engine.loop import Outcome
from polyfed.experiment.world import World
from polyfed.model.size import frozen_count, parameter_count
from polyfed.scenario.federation import Card, Federation

Summary = dict[str, Any]


def summarise(world: World, outcome: Outcome, baseline: Summary | None) -> Summary:
    """Return the summary of a finished run; ``baseline`` is the summary of the run it is compared with."""
    experiment, progress = world.experiment, outcome.progress
    judged = world.federation.members or world.federation
    final = metrics_by_client(progress.latest)
    best = metrics_by_client(progress.best)
    return {
        "polyfed": polyfed.__version__,
        "experiment": experiment.name,
        "method": experiment.method.name,
        "seed": experiment.seed,
        "rounds": progress.round,
        "wall_seconds": round(progress.seconds, 3),
        "bytes": dict(progress.bytes),
        "parameters": {**parameters(world), "steps": list(progress.models)},
        "tasks": by_task(judged, final),
        "clients": [described(card, final.get(card.id, {})) for card in judged.cards.values()],
        "refused": list(progress.refused),
        "digest": outcome.digest,
        "personal_digest": outcome.personal_digest,
        "stopped": progress.stopped,
        "best": {
            "round": progress.best_round,
            "split": SPLITS[0] if any_validation(judged) else SPLITS[1],
            "score": progress.best_score,
            "tasks": by_task(judged, best),
        },
        "baseline": None
        if baseline is None
        else {key: baseline[key] for key in ("method", "tasks", "clients", "wall_seconds", "digest")},
    }


def any_validation(federation: Federation) -> bool:
    """Whether any client keeps validation samples."""
    return any(len(client.validation) for client in federation.clients())


def metrics_by_client(records: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, dict[str, float]]]:
    """Return the metrics of evaluation records by client."""
    return {record["client"]: record["metrics"] for record in records}


def parameters(world: World) -> dict[str, Any]:
    """Count parameters: of the union of all components in use (server), of a client's model on average, of a base."""
    cards = list(world.federation.cards.values())
    union = sorted({component for card in cards for component in card.components})
    counts = parameter_count(world.architecture, union)
    return {
        "server": sum(counts.values()),
        "client_mean": fmean(sum(counts[component] for component in card.components) for card in cards),
        "frozen": frozen_count(world.architecture),
    }


def described(card: Card, metrics: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Return one client's entry."""
    return {
        "id": card.id,
        "name": card.name,
        "modalities": list(card.modalities),
        "tasks": list(card.tasks),
        "examples": card.examples,
        "metrics": metrics,
    }


def by_task(
    federation: Federation, metrics: Mapping[int, Mapping[str, Mapping[str, float]]]
) -> dict[str, dict[str, Any]]:
    """Return, by task and metric, mean and standard deviation over clients and the mean of each modality group."""
    found: dict[str, dict[str, Any]] = {}
    for task in federation.tasks:
        names = sorted({name for held in metrics.values() for name in held.get(task, {})})
        for name in names:
            values = {client: held[task][name] for client, held in metrics.items() if name in held.get(task, {})}
            found.setdefault(task, {})[name] = spread(federation, values)
    return found


def spread(federation: Federation, values: Mapping[int, float]) -> dict[str, Any]:
    """Return mean, standard deviation (0 for one client) and means by modality group."""
    groups: dict[str, list[float]] = {}
    for client, value in values.items():
        groups.setdefault(federation.cards[client].group, []).append(value)
    everyone: Sequence[float] = list(values.values())
    return {
        "mean": fmean(everyone),
        "std": stdev(everyone) if len(everyone) > 1 else 0.0,
        "by_modalities": {group: fmean(held) for group, held in sorted(groups.items())},
    }


def rows(summary: Summary) -> list[dict[str, Any]]:
    """Return a table: one row per client, task and metric (``pandas.DataFrame(rows)``)."""
    return [
        {
            "method": summary["method"],
            "seed": summary["seed"],
            "client": client["id"],
            "modalities": "+".join(client["modalities"]),
            "examples": client["examples"],
            "task": task,
            "metric": metric,
            "value": value,
        }
        for client in summary["clients"]
        for task, metrics in client["metrics"].items()
        for metric, value in metrics.items()
    ]
