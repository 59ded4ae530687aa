"""Run an experiment, in memory or in a run folder that survives being killed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyfed.engine.checkpoint import write_atomically
from polyfed.engine.loop import Outcome
from polyfed.engine.records import Observer
from polyfed.errors import UserError, writing
from polyfed.experiment import config
from polyfed.experiment.config import Experiment
from polyfed.experiment.summary import Summary, rows, summarise
from polyfed.experiment.world import World, build_world
from polyfed.method.protocol import TRAINED
from polyfed.report.page import write_report

# In the order in which a run is taken away, so that what a kill leaves of it can be resumed or overwritten: the summary
# first, lest half a run look finished, and the experiment last, by which a folder is known to hold a run.
OURS = (
    "summary.json",
    "report.html",
    "pictures.safetensors",
    "answers.safetensors",
    "checkpoints",
    "records.jsonl",
    "baseline",
    "experiment.yaml",
)
LOCK = ".lock"


@dataclass(frozen=True)
class Run:
    """A finished run. ``world`` and ``outcome`` are None if it was finished before and only read."""

    summary: Summary
    folder: Path | None = None
    world: World | None = None
    outcome: Outcome | None = None

    def rows(self) -> list[dict[str, Any]]:
        """Return the final test metrics as a table: ``pandas.DataFrame(run.rows())``."""
        return rows(self.summary)

    def parameters(self, client: int) -> dict[str, Tensor]:
        """Return the parameters of one client's model at the end."""
        if self.world is None or self.outcome is None:
            raise UserError("this run was read from its folder; run it in this process to get at its parameters")
        card = self.world.federation.cards[client]
        held = self.outcome.personal.get(client, {})
        if held.get(TRAINED):
            return dict(held[TRAINED])
        return {**self.world.method.deploy(self.outcome.state, card), **held.get("parameters", {})}


def run(
    experiment: Experiment | str | Path | None = None,
    out: Path | str | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    observers: Sequence[Observer] = (),
) -> Run:
    """Train an experiment (a file, or None for the embedded one) and return its results.

    With ``out`` everything is kept in that folder: the resolved experiment, records, checkpoints, summary and report.
    A folder that holds a run already needs ``resume`` (go on where it stopped) or ``overwrite`` (start anew).
    Raises ``UserError`` for a mistake in the input.
    """
    chosen = experiment if isinstance(experiment, Experiment) else config.load(experiment)
    with threads(chosen.engine.threads):
        if out is None:
            return _in_memory(chosen, observers)
        with claimed(Path(out), resume=resume, overwrite=overwrite) as folder:
            return _in_folder(chosen, folder, resume, observers, overwrite=overwrite)


def _in_memory(experiment: Experiment, observers: Sequence[Observer]) -> Run:
    reference = _reference(experiment)
    baseline = None if reference is None else _in_memory(reference, _marked(observers)).summary
    world = build_world(experiment)
    outcome = world.loop(observers=observers).run()
    return Run(summarise(world, outcome, baseline), None, world, outcome)


def _in_folder(
    experiment: Experiment, folder: Path, resume: bool, observers: Sequence[Observer], *, overwrite: bool = False
) -> Run:
    reference = _reference(experiment)
    if resume:
        same_experiment(experiment, folder)
        if reference is not None:
            same_experiment(reference, folder / "baseline")
        finished = read_summary(folder)
        if finished is not None and is_done(finished, experiment):
            if not (folder / "report.html").exists():  # killed between the summary and the report
                write_report(folder)
            return Run(finished, folder)
    world = build_world(experiment)
    if overwrite:  # only now: a mistake in the experiment must not cost the run that is there
        _clear(folder)
    write_atomically(folder / "experiment.yaml", experiment.yaml().encode())
    baseline = None
    if reference is not None:
        with writing(folder):
            (folder / "baseline").mkdir(exist_ok=True)
        baseline = _in_folder(reference, folder / "baseline", resume, _marked(observers)).summary
    outcome = world.loop(folder, observers).run(resume=resume)
    summary = summarise(world, outcome, baseline)
    with writing(folder):  # a report of fewer rounds must not outlive a kill that comes before the new one
        (folder / "report.html").unlink(missing_ok=True)
    write_atomically(folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False).encode())
    write_report(folder)
    return Run(summary, folder, world, outcome)


SAME = ("seed", "data", "scenario", "model", "method", "select", "train", "engine")
FREE = frozenset({"checkpoint_every", "workers"})  # of the engine: they leave no trace in the results


def same_experiment(experiment: Experiment, folder: Path) -> None:
    """Refuse to resume another experiment's folder, or to go back to fewer rounds than it has trained."""
    path = folder / "experiment.yaml"
    if not path.exists():
        return
    before, now = config.read_yaml(path), experiment.resolved
    for key in SAME:
        changes = list(differences(before.get(key), now[key], key))
        if changes:
            raise UserError(
                f"{folder} holds another experiment: {'; '.join(changes[:3])}. "
                "Go on with it as it was started, choose another folder, or start it anew (polyfed run --overwrite)"
            )
    trained = rounds_trained(folder)
    if trained > experiment.rounds:
        raise UserError(
            f"{folder} has trained {trained} rounds, and rounds is now {experiment.rounds}: rounds can be raised, "
            "not lowered. Choose another folder, or start it anew (polyfed run --overwrite)"
        )


def differences(before: object, now: object, path: str) -> Iterator[str]:
    """Tell which keys of a section have another value."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted({*before, *now} - FREE, key=str):
            yield from differences(before.get(key), now.get(key), f"{path}.{key}")
    elif before != now:
        yield f"{path} was {before!r} and is now {now!r}"


def rounds_trained(folder: Path) -> int:
    """Return the number of rounds that a folder's newest checkpoint is of, 0 if there is none."""
    names = [path.name.removeprefix("round-") for path in (folder / "checkpoints").glob("round-*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def is_done(summary: Summary, experiment: Experiment) -> bool:
    """Whether a summary is that of the whole experiment (its rounds may have been raised since)."""
    return summary.get("stopped") is not None or summary.get("rounds", 0) >= experiment.rounds


def read_summary(folder: Path) -> Summary | None:
    """Read a run's summary; None if the run has not finished."""
    path = folder / "summary.json"
    if not path.exists():
        return None
    try:
        summary = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(summary, dict) or not isinstance(summary.get("rounds"), int):
        raise UserError(f"{path} is not a summary polyfed wrote; start anew with --overwrite")
    return summary


def _reference(experiment: Experiment) -> Experiment | None:
    """Return the experiment a run is compared with, if there is one and it is another."""
    if experiment.baseline is None or experiment.method.name == experiment.baseline:
        return None
    return experiment.with_({"method.name": experiment.baseline, "select.name": "all", "baseline": None})


def _marked(observers: Sequence[Observer]) -> list[Observer]:
    """Tell observers of records that they come from the baseline."""

    def marked(observer: Observer) -> Observer:
        return lambda record: observer({**record, "baseline": True})

    return [marked(observer) for observer in observers]


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Use so many torch threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def claimed(folder: Path, *, resume: bool, overwrite: bool) -> Iterator[Path]:
    """Make a run folder ready and keep other runs out of it meanwhile; one that stays empty is removed again."""
    try:
        _check_folder(folder, resume=resume, overwrite=overwrite)
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{folder}: another polyfed process is running in this folder") from error
        _check_folder(folder, resume=resume, overwrite=overwrite)  # again: another may have just finished here
        _remove_drafts(folder)
        try:
            yield folder
        finally:
            if not _content(folder):
                (folder / LOCK).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    folder.rmdir()


def _check_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other")
    if not folder.exists() or not _content(folder):
        return
    if not (folder / "experiment.yaml").exists():
        raise UserError(f"{folder} is not empty and is no run folder; choose another --out")
    if not resume and not overwrite:
        state = "a finished run" if (folder / "summary.json").exists() else "an unfinished run"
        raise UserError(f"{folder} holds {state}; use --resume to go on with it or --overwrite to start anew")


def _content(folder: Path) -> list[Path]:
    """Return what is in a folder besides the lock and what a kill has left half-written or half-removed."""
    drafts = _drafts(folder)
    return [path for path in folder.iterdir() if path.name != LOCK and path not in drafts]


def _drafts(folder: Path) -> set[Path]:
    return set(folder.glob(".*.draft"))


def _remove_drafts(folder: Path) -> None:
    for path in _drafts(folder):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _clear(folder: Path) -> None:
    """Remove what polyfed wrote, and nothing else; each part vanishes at once, by its name."""
    for name in OURS:
        if (folder / name).exists():
            gone = folder / f".{name}.draft"
            (folder / name).replace(gone)
            _remove(gone)
