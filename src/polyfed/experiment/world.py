"""From an experiment to the things it names: dataset, federation, model, method, engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from polyfed.data.catalog import DATASETS
from polyfed.data.dataset import Dataset
from polyfed.data.schema import Task
from polyfed.data.source import data_root
from polyfed.engine.batching import Rule
from polyfed.engine.loop import Loop, Plan, with_components
from polyfed.engine.records import Observer
from polyfed.engine.simulator import Deliver, Screening, untouched
from polyfed.errors import UserError, unknown
from polyfed.experiment.config import Experiment
from polyfed.method.averaging import Context
from polyfed.method.catalog import ADAPTERS, METHODS, POOLED, UNIMODAL_HEADS, VALIDATING
from polyfed.method.protocol import Method
from polyfed.method.selections import SELECTORS
from polyfed.model.architecture import Architecture
from polyfed.model.catalog import MODELS
from polyfed.model.size import feature_widths
from polyfed.registry import Chosen
from polyfed.scenario.build import build
from polyfed.scenario.federation import Federation
from polyfed.scenario.store import fingerprint


@dataclass(frozen=True)
class World:
    """What an experiment describes, built. ``federation`` has component names on its cards."""

    experiment: Experiment
    federation: Federation
    architecture: Architecture
    method: Method[Any]

    def loop(
        self,
        folder: Path | None = None,
        observers: Sequence[Observer] = (),
        deliver: Deliver = untouched,
    ) -> Loop:
        """Return the training loop; ``folder`` None keeps everything in memory."""
        engine = self.experiment.engine
        plan = Plan(
            rounds=self.experiment.rounds,
            seed=self.experiment.seed,
            evaluate_every=engine.evaluate_every,
            checkpoint_every=engine.checkpoint_every,
            target=engine.target,
            patience=engine.patience,
            screening=Screening(engine.quorum, engine.largest_growth),
            rule=Rule(engine.batching, engine.batching_memory * 2**20),
            precision=engine.precision,
            workers=None if engine.workers == "auto" else engine.workers,
            server_test=engine.server_test,
            unimodal=engine.unimodal,
            diagnostics=engine.diagnostics,
        )
        return Loop(
            self.method,
            self.federation,
            self.architecture,
            plan,
            folder=folder,
            identity=identity(self.experiment, self.federation) if folder else None,
            observers=observers,
            device=device_of(engine.device),
            deliver=deliver,
        )


def build_world(experiment: Experiment) -> World:
    """Build everything an experiment names. Raises UserError for whatever is wrong with it."""
    device_of(experiment.engine.device)
    check_validation(experiment)
    scenario = experiment.scenario
    federation = build(
        dataset_of(experiment),
        clients=scenario.groups or scenario.clients,
        partition=scenario.partition,
        modalities=scenario.modalities,
        tasks=scenario.tasks,
        validation=scenario.validation,
        test=scenario.test,
        only_tasks=experiment.data_tasks,
        seed=experiment.seed,
        validation_source=scenario.validation_source,
    )
    everything = federation.modalities
    if scenario.keep is not None:
        federation = kept(federation, scenario.keep)
    check_unimodal(experiment, federation.tasks)
    dropped = everything.keys() - federation.modalities.keys()
    participation = 1.0
    if experiment.method.name in POOLED:
        participation = participation_of(experiment.select, len(federation.cards))
        federation = federation.pooled()
    architecture: Architecture = MODELS.build(
        experiment.model.name, model_options(experiment, dropped), federation.modalities, federation.tasks
    )
    select = experiment.select if federation.members is None else Chosen("all")
    check_cohort(select, len(federation.cards))
    context = Context(
        experiment.train,
        architecture.components,
        SELECTORS.build(select.name, select.options),
        federation.tasks,
        participation,
        partial(feature_widths, architecture),
        experiment.seed,
    )
    method: Method[Any] = METHODS.build(experiment.method.name, experiment.method.options, context)
    check_method(experiment.method.name, method)
    return World(experiment, with_components(federation, architecture), architecture, method)


def kept(federation: Federation, modalities: Sequence[str]) -> Federation:
    """Leave clients only some modalities. Raises UserError for one that the federation does not have."""
    for name in modalities:
        if name not in federation.modalities:
            raise unknown("modality", name, federation.modalities, place="scenario.keep")
    return federation.keeping(modalities)


def participation_of(select: Chosen, clients: int) -> float:
    """Return the share of clients that a selection asks per round."""
    wanted = select.options.get("clients")
    return min(1.0, wanted / clients) if isinstance(wanted, int) else 1.0


def check_validation(experiment: Experiment) -> None:
    """Refuse a method that judges by validation samples where nobody has any."""
    judges = experiment.method.name in VALIDATING and experiment.method.options.get("level") != "none"
    if judges and not experiment.scenario.validation:
        raise UserError(
            f"scenario.validation is 0, but the method {experiment.method.name!r} weights heads and clients by their "
            "validation samples; keep a share for that, such as 0.1"
        )


def check_unimodal(experiment: Experiment, tasks: Mapping[str, Task]) -> None:
    """Refuse to judge single modalities where there is nothing to judge them by."""
    if experiment.engine.unimodal and not any(task.kind == "classification" for task in tasks.values()):
        raise UserError(
            "engine.unimodal: judges classes told from one modality alone, but none of the tasks "
            f"{', '.join(tasks)} is a classification; set it to false"
        )


def model_options(experiment: Experiment, dropped: Collection[str]) -> dict[str, object]:
    """Return the model's options; ``unimodal_heads``, where it is left open, is as the method needs it.

    Encoders of modalities that nobody keeps are left out, so that a scenario can be narrowed by one key.
    """
    options = dict(experiment.model.options)
    encoders = options.get("encoders")
    if isinstance(encoders, Mapping):
        options["encoders"] = {name: choice for name, choice in encoders.items() if name not in dropped}
    needed = experiment.method.name in UNIMODAL_HEADS
    if needed and options.get("unimodal_heads") is False:
        raise UserError(
            f"model.unimodal_heads: false, but the method {experiment.method.name!r} trains heads on single "
            "modalities; set it to true or null"
        )
    if "unimodal_heads" in options and options["unimodal_heads"] is None:
        options["unimodal_heads"] = needed
    if "adapters" in options and options["adapters"] is None:
        options["adapters"] = ADAPTERS.get(experiment.method.name, "one")
    return options


def check_method(name: str, method: object) -> None:
    """Refuse a method, mostly a user's own, that lacks a part of the protocol."""
    missing = [part for part in ("steps", "begin", "enrol", "round", "deploy") if not hasattr(method, part)]
    if missing:
        raise UserError(
            f"method {name!r}: {type(method).__name__} lacks {', '.join(missing)}; a method has steps, begin, enrol, "
            "round and deploy (polyfed.method.protocol.Method)"
        )


def check_cohort(select: Chosen, clients: int) -> None:
    """Refuse to ask more clients per round than there are."""
    wanted = select.options.get("clients")
    if isinstance(wanted, int) and wanted > clients:
        raise UserError(f"select.clients: {wanted} clients per round, but the federation has {clients}")


def dataset_of(experiment: Experiment) -> Dataset:
    """Load the experiment's dataset; the last one used stays in memory for the next run."""
    options = json.dumps(dict(experiment.data.options), sort_keys=True)
    return _dataset(experiment.data.name, options, experiment.data_root)


@lru_cache(maxsize=1)
def _dataset(name: str, options: str, root: str | None) -> Dataset:
    dataset: Dataset = DATASETS.build(name, json.loads(options), data_root(root))
    return dataset


def identity(experiment: Experiment, federation: Federation) -> dict[str, str]:
    """Return what makes a run this run: a checkpoint that differs in any of it belongs to another."""
    parts = {key: experiment.resolved[key] for key in ("seed", "scenario", "model", "method", "select", "train")}
    parts["scenario"] = as_before(parts["scenario"])
    digests = {key: _digest(value) for key, value in parts.items()}
    files = [Path(plugin) for plugin in experiment.resolved["plugins"] if plugin.endswith(".py")]
    digests["plugins"] = _digest([hashlib.sha256(file.read_bytes()).hexdigest() for file in files])
    digests["device"] = device_of(experiment.engine.device).type  # `auto` may mean another one on another machine
    return {**digests, "data": fingerprint(federation.members or federation)}


def as_before(scenario: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section without keys that say nothing, as checkpoints have it that are older than these keys."""
    known = {key: value for key, value in scenario.items() if key not in ("groups", "rho") or value is not None}
    if "groups" in known and "rho" not in known:
        known["groups"] = [{key: value for key, value in group.items() if key != "times"} for group in known["groups"]]
    return known


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def device_of(name: str) -> torch.device:
    """Return the device of that name; ``auto`` is a GPU when there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("engine.device: 'cuda', but torch finds no GPU here; choose auto or cpu")
    return torch.device(name)
