"""Run several methods with several seeds on the same experiment, and put the results side by side."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyfed.engine.checkpoint import write_atomically
from polyfed.engine.records import Observer
from polyfed.errors import UserError
from polyfed.experiment import config
from polyfed.experiment.config import Experiment
from polyfed.experiment.running import Run, run, same_experiment
from polyfed.experiment.world import build_world
from polyfed.report.comparison import write_comparison
from polyfed.report.records import load_run
from polyfed.report.tables import ComparisonTable, comparison_table


@dataclass(frozen=True)
class Contender:
    """A method to compare, with the options it was given: ``fedprox[mu=0.1]``."""

    label: str
    changes: Mapping[str, object]

    @property
    def folder(self) -> str:
        """Name of its folder: the label with everything but letters, digits and ``.=_-`` replaced."""
        return re.sub(r"[^A-Za-z0-9.=_-]+", "-", self.label).strip("-.")


@dataclass(frozen=True, eq=False)
class Planned:
    """One run of a comparison."""

    contender: Contender
    seed: int
    experiment: Experiment
    folder: Path


@dataclass(frozen=True)
class Failure:
    """A run of a comparison that did not end well."""

    planned: Planned
    error: Exception


@dataclass(frozen=True)
class Comparison:
    """The results of a comparison. ``table`` is None if no run succeeded."""

    folder: Path
    runs: Mapping[Planned, Run]
    failures: tuple[Failure, ...]
    table: ComparisonTable | None

    def rows(self) -> list[dict[str, Any]]:
        """Return the final test metrics of all runs as one table: ``pandas.DataFrame(comparison.rows())``."""
        return [
            {**row, "method": planned.contender.label} for planned, done in self.runs.items() for row in done.rows()
        ]


def compare(
    experiment: Experiment | str | Path | None,
    methods: Sequence[str],
    seeds: Sequence[int] = (0,),
    *,
    out: Path | str,
    observers: Sequence[Observer] = (),
) -> Comparison:
    """Train an experiment with each method and seed, in ``out/METHOD/seed-K``, and compare the results.

    A method is a name or a name with options, ``"fedprox[mu=0.1]"``. Runs that are in the folder already are not
    repeated, broken ones go on where they stopped. The experiment's own baseline is not trained; name ``local`` among
    the methods instead. A run that fails does not stop the others (see ``failures``). Observers get the records of
    all runs, with ``method`` and ``seed`` added, and one of kind ``run`` when a run starts, is finished or failed.

    Raises ``UserError`` for a mistake in the input, before anything is trained.
    """
    base = experiment if isinstance(experiment, Experiment) else config.load(experiment)
    folder = Path(out)
    planned = plan(base, methods, seeds, folder)
    check(planned)
    runs: dict[Planned, Run] = {}
    failures: list[Failure] = []
    for one in planned:
        marked = _marked(one, observers)
        marked({"kind": "run", "state": "started", "rounds": one.experiment.rounds})
        try:
            runs[one] = run(one.experiment, one.folder, resume=True, observers=[marked])
        except Exception as error:  # one method's failure must not cost the results of the others
            failures.append(Failure(one, error))
        marked({"kind": "run", "state": "finished" if one in runs else "failed"})
    return Comparison(folder, runs, tuple(failures), _written(folder, list(runs)))


def plan(base: Experiment, methods: Sequence[str], seeds: Sequence[int], out: Path) -> list[Planned]:
    """Return the runs of a comparison: all methods with the first seed, then with the next."""
    if not methods or not seeds:
        raise UserError("a comparison needs at least one method and one seed")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds {', '.join(map(str, seeds))}: each seed can be used only once")
    contenders = [read_method(text) for text in methods]
    resolved = [_resolved(base, contender) for contender in contenders]
    _refuse_twins(contenders, resolved)
    return [
        Planned(contender, seed, experiment.with_({"seed": seed}), out / contender.folder / f"seed-{seed}")
        for seed in seeds
        for contender, experiment in zip(contenders, resolved, strict=True)
    ]


def _resolved(base: Experiment, contender: Contender) -> Experiment:
    changes = {**contender.changes, "baseline": None}
    if contender.changes["method.name"] == "local":
        changes["select.name"] = "all"  # a client that trains alone waits for nobody to choose it
    return config.parse(config.changed(base.resolved, changes), source=f"method {contender.label}")


def _refuse_twins(contenders: Sequence[Contender], experiments: Sequence[Experiment]) -> None:
    for number, one in enumerate(contenders):
        for other, experiment in zip(contenders[:number], experiments[:number], strict=True):
            same = experiment.resolved["method"] == experiments[number].resolved["method"]
            if same or other.folder.lower() == one.folder.lower():  # some file systems do not tell case apart
                raise UserError(f"methods {other.label!r} and {one.label!r} are the same; name only one of them")


def check(planned: Sequence[Planned]) -> None:
    """Find mistakes before hours are spent: methods that do not fit, folders that hold something else."""
    first = planned[0].seed
    for one in planned:
        if one.seed == first:
            build_world(one.experiment)
        same_experiment(one.experiment, one.folder)


def _marked(planned: Planned, observers: Sequence[Observer]) -> Observer:
    def marked(record: Mapping[str, Any]) -> None:
        for observer in observers:
            observer({**record, "method": planned.contender.label, "seed": planned.seed})

    return marked


def _written(folder: Path, done: Sequence[Planned]) -> ComparisonTable | None:
    """Write the comparison as JSON, CSV, Markdown and a page."""
    if not done:
        return None
    table = comparison_table([load_run(one.folder) for one in done])
    for ending, text in (("json", table.to_json()), ("csv", table.to_csv()), ("md", table.to_markdown())):
        write_atomically(folder / f"comparison.{ending}", text.encode())
    write_comparison([one.folder for one in done], folder / "comparison.html")
    return table


# --------------------------------------------------------------------------------------- methods with options


def read_methods(text: str) -> list[str]:
    """Cut ``local,fedprox[mu=0.1,...],fedavg`` at the commas outside brackets."""
    return [part for part in _cut(text, place="--methods") if part]


def read_method(text: str) -> Contender:
    """Read ``name`` or ``name[option=value,...]``; values are YAML, as with ``--set``."""
    matched = re.fullmatch(r"([^\[\]]+?)\s*(?:\[(.*)\])?", text.strip())
    if matched is None:
        raise UserError(f"method {text!r}: write it as name or name[option=value,...], for instance fedprox[mu=0.1]")
    name, options = matched[1], matched[2]
    settings = [part for part in _cut(options or "", place=f"method {text!r}") if part]
    changes = dict(_option(part, text) for part in settings)
    label = f"{name}[{','.join(settings)}]" if settings else name
    return Contender(label, {"method.name": name, **{f"method.{key}": value for key, value in changes.items()}})


def _option(part: str, method: str) -> tuple[str, object]:
    if "=" not in part:
        raise UserError(f"method {method!r}: option {part!r} has no value; write it as {part}=value")
    return config.read_setting(part)


def _cut(text: str, *, place: str) -> list[str]:
    """Cut at commas that are outside brackets and braces."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if depth < 0:
            break
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    if depth != 0:
        raise UserError(f"{place}: the brackets in {text!r} do not match")
    return [part.strip() for part in parts]


def read_seeds(text: str) -> list[int]:
    """Read ``0,1,2`` or ``0-4``."""
    seeds: list[int] = []
    for part in text.split(","):
        matched = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if matched is None:
            raise UserError(f"--seeds {text!r}: write whole numbers such as 0,1,2 or a range such as 0-4")
        low, high = int(matched[1]), int(matched[2] or matched[1])
        if not low <= high < low + MOST_SEEDS:
            raise UserError(f"--seeds {text!r}: {part.strip()} is no range of 1 to {MOST_SEEDS} seeds")
        seeds.extend(range(low, high + 1))
    return seeds


MOST_SEEDS = 1000
