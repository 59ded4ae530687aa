"""The command line. Heavy libraries are imported inside the commands, so that help comes at once."""

from __future__ import annotations

import json
import os
import re
import shlex
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polyfed import __version__
from polyfed.command import data, pretrain
from polyfed.command.console import FAILURE, Commands, console, debugging, guarded, stoppable, tell
from polyfed.engine.allocator import keep_freed_memory
from polyfed.errors import UserError

if TYPE_CHECKING:
    from polyfed.experiment.config import Experiment

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Federated learning for clients that do not look alike: other modalities, other tasks, other models.",
    epilog="Start with: polyfed run",
)
app.add_typer(data.app, name="data")
app.add_typer(pretrain.app, name="pretrain")

ExperimentFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="EXPERIMENT.yaml", help="Experiment file; default: the one inside polyfed.", show_default=False
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as train.lr=0.05. May be repeated."),
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="auto|cpu|cuda", help="Where to compute; default: as the experiment says."),
]
Workers = Annotated[
    str | None,
    typer.Option("--workers", metavar="auto|N", help="Processes that train; default: as the experiment says."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


def main() -> None:
    """Run the command line."""
    keep_freed_memory()
    warnings.formatwarning = lambda message, *place: f"warning: {message}\n"
    app(prog_name="polyfed")


def examples(*lines: str) -> str:
    """Return the end of a help page; brackets are guarded from being read as markup."""
    return "\n\n".join(["Examples:", *(line.replace("[", "\\[") for line in lines)])


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"polyfed {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Hold the options that stand before the command."""


@app.command(
    "run",
    epilog=examples(
        "polyfed run",
        "polyfed run my.yaml --set method.name=fedprox --set method.mu=0.1 --out runs/prox",
        "polyfed run --resume --out runs/prox",
    ),
)
@guarded
def run_command(
    experiment: ExperimentFile = None,
    settings: Settings = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Run folder; default: runs/NAME-METHOD-seedSEED.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in the folder stopped.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start the run in the folder anew.")] = False,
    device: Device = None,
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Train an experiment and report the results.

    Without a file, the experiment inside polyfed is trained: written and
    spoken digits on twelve clients that hold images, sounds or both.

    Everything is kept in one folder: the experiment, records,
    checkpoints, summary.json and report.html. With --resume and --out but
    no file, the experiment is read from the folder.
    """
    chosen = _to_run(experiment, settings, device, workers, out if resume else None)
    folder = out or Path("runs") / f"{_as_file_name(chosen.name)}-{chosen.method.name}-seed{chosen.seed}"
    if not resume and not overwrite:
        _refuse_used(folder)
    from polyfed.command.progress import RunProgress
    from polyfed.experiment.running import run

    watch = RunProgress(console(stderr=True), chosen.method.name, chosen.baseline or "", chosen.rounds, quiet=quiet)
    with stoppable(lambda: _go_on(folder)), watch:
        run(chosen, folder, resume=resume, overwrite=overwrite, observers=[watch])
    if not quiet:
        from polyfed.command.results import show_run

        show_run(console(), folder)


def _go_on(folder: Path) -> str:
    """Say how to go on with a run that was stopped."""
    if not (folder / "experiment.yaml").is_file():
        return "nothing was trained yet"
    return f"go on with: polyfed run --resume --out {shlex.quote(str(folder))}"


def _load(
    path: Path | None, settings: list[str] | None, device: str | None = None, workers: str | None = None
) -> Experiment:
    from polyfed.experiment import config

    changes = dict(config.read_setting(text) for text in settings or [])
    if device is not None:
        changes["engine.device"] = device
    if workers is not None:
        changes["engine.workers"] = int(workers) if workers.isdecimal() else workers
    return config.load(path, changes)


def _to_run(
    path: Path | None, settings: list[str] | None, device: str | None, workers: str | None, resumed: Path | None
) -> Experiment:
    if path is None and resumed is not None:
        path = resumed / "experiment.yaml"
        if not path.is_file():
            raise UserError(f"{resumed} holds no run to go on with: it has no experiment.yaml")
    return _load(path, settings, device, workers)


def _as_file_name(text: str) -> str:
    """Return a name without anything a file system or a shell could stumble over."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")[:80] or "experiment"


def _refuse_used(folder: Path) -> None:
    """Say what can be done where a folder holds a run already."""
    if not (folder / "experiment.yaml").is_file():
        return
    finished = (folder / "summary.json").is_file()
    report = f" (see {folder / 'report.html'})" if (folder / "report.html").is_file() else ""
    raise UserError(
        f"{folder} holds {'a finished' if finished else 'an unfinished'} run already{report}. Add --overwrite to train "
        "it anew, --resume to go on with it, or --out DIR to use another folder"
    )


@app.command(
    "compare",
    epilog=examples(
        "polyfed compare --methods local,fedavg,multi-fedavg --seeds 0,1,2",
        "polyfed compare my.yaml --methods 'fedavg,fedprox[mu=0.1],fedprox[mu=1]' --out runs/prox",
    ),
)
@guarded
def compare_command(
    methods: Annotated[
        str, typer.Option("--methods", metavar="A,B,...", help="Methods; options in brackets: fedprox\\[mu=0.1].")
    ],
    experiment: ExperimentFile = None,
    seeds: Annotated[str, typer.Option("--seeds", metavar="0,1,...", help="Seeds: 0,1,2 or 0-4.")] = "0",
    settings: Settings = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of the comparison; default: runs/NAME-compare.")
    ] = None,
    device: Device = None,
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Train several methods with several seeds and put the results side by side.

    The runs lie in DIR/METHOD/seed-SEED. Finished runs are not repeated and
    broken ones go on where they stopped, so the same command can be given
    again after a stop, or with more methods and seeds.
    """
    chosen = _load(experiment, settings, device, workers)
    from polyfed.command import results
    from polyfed.command.progress import ComparisonProgress
    from polyfed.experiment.comparing import compare, read_methods, read_seeds

    folder = out or Path("runs") / f"{_as_file_name(chosen.name)}-compare"
    names, numbers = read_methods(methods), read_seeds(seeds)
    watch = ComparisonProgress(console(stderr=True), len(names) * len(numbers), chosen.rounds, quiet=quiet)
    with stoppable(lambda: "go on with the same command: finished runs are not repeated"), watch:
        comparison = compare(chosen, names, numbers, out=folder, observers=[watch])
    if not quiet:
        results.show_comparison(console(), comparison)
    for message in results.failures(comparison, traced=debugging()):
        tell(message)
    if comparison.failures:
        raise typer.Exit(FAILURE)


@app.command(
    "show",
    epilog=examples("polyfed show", "polyfed show my.yaml --set scenario.clients=100 --all", "polyfed show --json"),
)
@guarded
def show_command(
    experiment: ExperimentFile = None,
    settings: Settings = None,
    everyone: Annotated[bool, typer.Option("--all", help="Show every client, however many there are.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.")] = False,
) -> None:
    """Show who holds what: clients, modalities, tasks, examples, labels and models. Nothing is trained."""
    chosen = _load(experiment, settings)
    from polyfed.command import inventory
    from polyfed.experiment.world import build_world

    described = inventory.describe(build_world(chosen))
    if as_json:
        typer.echo(json.dumps(described, indent=1))
    else:
        inventory.show(console(), described, everyone=everyone)


@app.command("list", epilog=examples("polyfed list", "polyfed list methods", "polyfed list scenarios"))
@guarded
def list_command(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="KIND", help="methods, datasets, scenarios, models, encoders, fusions, heads or selections."
        ),
    ] = None,
) -> None:
    """List what an experiment can name, with options, their types and defaults."""
    from polyfed.command import listing

    if kind is None:
        listing.show_kinds(console())
    else:
        listing.show_kind(console(), kind)


@app.command("report", epilog=examples("polyfed report runs/a", "polyfed report runs/a runs/b --out a-and-b.html"))
@guarded
def report_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders of comparisons.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="The comparison's page; default: comparison.html in the folder that holds all runs.",
        ),
    ] = None,
) -> None:
    """Write report.html anew for each run; for several runs, also a page that compares them."""
    from polyfed.report.comparison import write_comparison
    from polyfed.report.page import write_report

    folders = [folder for path in runs for folder in _run_folders(path)]
    if out is not None and len(folders) < 2:
        raise UserError("--out is for the page that compares several runs; one run's report is written into its folder")
    for folder in folders:
        console().print(f"{write_report(folder)}", soft_wrap=True)
    if len(folders) > 1:
        place = out or (runs[0] if len(runs) == 1 else _common_parent(folders)) / "comparison.html"
        console().print(f"{write_comparison(folders, place)}", soft_wrap=True)


def _common_parent(folders: list[Path]) -> Path:
    """Return the folder that holds all runs, none of them its own; the current one where they share only the root."""
    here = Path.cwd()
    try:
        parent = Path(os.path.commonpath([folder.resolve().parent for folder in folders]))
    except ValueError:  # they lie on different drives
        return Path()
    if parent == Path(parent.anchor):
        return Path()
    return parent.relative_to(here) if parent.is_relative_to(here) else parent


def _run_folders(path: Path) -> list[Path]:
    """Return the runs a folder stands for: those of a comparison, else itself."""
    if (path / "experiment.yaml").is_file():
        return [path]
    return sorted(found.parent for found in path.glob("*/seed-*/summary.json")) or [path]


@app.command("schema", epilog=examples("polyfed schema > experiment.schema.json"))
@guarded
def schema_command() -> None:
    """Print the JSON Schema of experiment files, for editors and other programs."""
    from polyfed.experiment import config

    schema = config.schema().model_json_schema()
    typer.echo(json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=1))
