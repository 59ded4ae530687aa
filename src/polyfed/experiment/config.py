"""An experiment: one YAML file read into typed sections.

The schema is put together from the registries, so whatever is registered (also by the user) can be named, its options
are checked when the file is loaded, and ``polyfed schema`` describes it.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, Literal, Union

import torch
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model, model_validator

import polyfed
from polyfed import strict_yaml
from polyfed.data.catalog import DATASETS
from polyfed.data.several import SEVERAL, PartName
from polyfed.errors import UserError
from polyfed.experiment import plugins
from polyfed.explain import explain
from polyfed.method.catalog import METHODS
from polyfed.method.protocol import Recipe, Schedule
from polyfed.method.selections import SELECTORS
from polyfed.model.catalog import MODELS
from polyfed.registry import Chosen, Options, Registry
from polyfed.scenario.catalog import MODALITY_SETS, PARTITIONS, TASK_SETS
from polyfed.scenario.groups import Group, multiplied

VERSION = 1
LARGEST = 1e30  # of the factors that training multiplies by: float32 ends at 3.4e38
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


class TrainSection(Options):
    """How clients train: the recipe of every local fit."""

    optimizer: Annotated[Literal["sgd", "adam", "adamw"], Field(description="local optimiser")] = "sgd"
    lr: Annotated[float, Field(gt=0, le=LARGEST, description="local learning rate")] = 0.05
    momentum: Annotated[float, Field(ge=0, lt=1, description="heavy-ball momentum (sgd)")] = 0.0
    weight_decay: Annotated[float, Field(ge=0, le=LARGEST, description="weight decay")] = 0.0
    epochs: Annotated[int, Field(ge=1, description="local epochs per round")] = 1
    batch_size: Annotated[int, Field(ge=1, description="mini-batch size")] = 32
    clip_norm: Annotated[float | None, Field(gt=0, description="largest gradient norm; null for no limit")] = None
    schedule: Annotated[
        Schedule, Field(description="how the learning rate falls to 0 over the steps of a client's round")
    ] = "constant"
    warmup: Annotated[
        Share, Field(description="share of these steps in which the learning rate first rises evenly to lr")
    ] = 0.0
    least_epochs: Annotated[
        int | None, Field(ge=1, description="each client draws its epochs anew every round, from this to epochs")
    ] = None

    @model_validator(mode="after")
    def _momentum_needs_sgd(self) -> TrainSection:
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum {self.momentum} is used by sgd only; with {self.optimizer} set it to 0")
        return self

    @model_validator(mode="after")
    def _least_epochs_are_fewer(self) -> TrainSection:
        if self.least_epochs is not None and self.least_epochs > self.epochs:
            raise ValueError(f"least_epochs is {self.least_epochs}, above epochs, which is {self.epochs}")
        return self


def _switch(value: object) -> object:
    """Return the word that YAML took for a truth value."""
    return ("off", "on")[value] if isinstance(value, bool) else value


class EngineSection(Options):
    """What executes the experiment, how closely it is watched and when it stops early."""

    device: Annotated[Literal["auto", "cpu", "cuda"], Field(description="auto uses a GPU when there is one")] = "auto"
    threads: Annotated[int, Field(ge=1, le=1024, description="torch threads; small models are fastest with one")] = 1
    workers: Annotated[
        Literal["auto"] | Annotated[int, Field(ge=1, le=1024)],
        Field(description="processes that train; auto: one per core where that pays, see docs/performance.md"),
    ] = "auto"
    batching: Annotated[
        Literal["auto", "on", "off"],
        BeforeValidator(_switch),
        Field(description="train clients of one model stacked; auto: where the model and the device make it faster"),
    ] = "auto"
    batching_memory: Annotated[int, Field(ge=1, description="mebibytes that stacked clients may take")] = 512
    precision: Annotated[
        Literal["float32", "bfloat16"], Field(description="bfloat16: mixed precision on float32 parameters")
    ] = "float32"
    diagnostics: Annotated[
        bool,
        Field(
            description="record how far clients' labels and models are from the others', whether their updates agree, "
            "and which experts they use"
        ),
    ] = False
    evaluate_every: Annotated[int, Field(ge=1, description="rounds between evaluations")] = 1
    server_test: Annotated[
        bool, Field(description="also evaluate the global model on all clients' test samples with all modalities")
    ] = False
    unimodal: Annotated[
        bool, Field(description="also evaluate what the global model tells from each modality alone")
    ] = False
    checkpoint_every: Annotated[int, Field(ge=1, description="rounds between checkpoints")] = 1
    quorum: Annotated[float, Field(gt=0, le=1, description="share of sound replies a round needs")] = 0.5
    largest_growth: Annotated[
        float, Field(gt=1, description="a reply is refused if a component's norm grew more than this factor")
    ] = 100.0
    target: Annotated[float | None, Field(description="stop when the validation score reaches this")] = None
    patience: Annotated[
        int | None, Field(ge=1, description="stop after so many evaluations without a better validation score")
    ] = None

    @model_validator(mode="after")
    def _workers_have_one_thread(self) -> EngineSection:
        if self.threads > 1 and self.workers != "auto" and self.workers > 1:
            raise ValueError(
                f"workers is {self.workers} and threads is {self.threads}, but workers have one thread; "
                "set threads to 1"
            )
        return self


class _Defaulted(Options):
    model_config = ConfigDict(validate_default=True)


class _Scenario(_Defaulted):
    @model_validator(mode="before")
    @classmethod
    def _groups_or_skews(cls, values: Any) -> Any:
        """Refuse groups beside what they say themselves; with them, there is no number of clients to be given."""
        if not isinstance(values, Mapping) or values.get("groups") is None:
            return values
        for key in ("clients", "modalities", "tasks"):
            if values.get(key) not in (None, {"name": "all"}, {"name": "all", "only": None}):
                raise ValueError(f"{key} and groups are both given, but groups say what {key} there are; leave one out")
        return {**values, "clients": None}


@dataclass(frozen=True)
class ScenarioSection:
    """Who holds what."""

    clients: int | None
    groups: tuple[Group, ...] | None
    partition: Chosen
    modalities: Chosen
    tasks: Chosen
    keep: tuple[str, ...] | None
    validation: float
    validation_source: Literal["client", "shared"]
    test: float


@dataclass(frozen=True)
class Experiment:
    """A checked experiment. ``resolved`` is the whole of it as plain values, defaults included."""

    name: str
    seed: int
    rounds: int
    data: Chosen
    data_root: str | None
    data_tasks: tuple[str, ...] | None
    scenario: ScenarioSection
    model: Chosen
    method: Chosen
    select: Chosen
    train: Recipe
    engine: EngineSection
    baseline: Literal["local"] | None
    resolved: Mapping[str, Any]

    def with_(self, changes: Mapping[str, object]) -> Experiment:
        """Return the experiment with some keys changed, such as ``{"method.name": "fedprox"}``."""
        return parse(changed(self.resolved, changes))

    def yaml(self) -> str:
        """Return the resolved experiment as YAML, with the versions that resolved it."""
        versions = {
            "polyfed": polyfed.__version__,
            "torch": str(torch.__version__),  # a subclass of str, which YAML would not write
            "python": platform.python_version(),
        }
        text: str = yaml.safe_dump({**self.resolved, "resolved_with": versions}, sort_keys=False, allow_unicode=True)
        return text


# ---------------------------------------------------------------------------------------------- schema


def _choice(registry: Registry[Any], **extra: Any) -> Any:
    """Return the type of a section that names one of a registry: a union told apart by its ``name``."""
    return _one_of([registry.options(name) for name in registry.names()], **extra)


def _one_of(models: Sequence[type[Options]], **extra: Any) -> Any:
    """Return the union of options models, with further keys in each."""
    if extra:
        models = [create_model(f"{model.__name__}_section", __base__=model, **extra) for model in models]
    if len(models) == 1:
        return models[0]
    return Annotated[Union[tuple(models)], Field(discriminator="name")]  # noqa: UP007 - the members are known at run time only


def _data(**extra: Any) -> Any:
    """Return the type of the section ``data``; the parts of ``several`` are checked as datasets of their own."""
    single = [DATASETS.options(name) for name in DATASETS.names() if name != SEVERAL]
    several = DATASETS.options(SEVERAL)
    parts, meaning = GenericAlias(dict, (PartName, _one_of(single))), several.model_fields["parts"].description
    fields: dict[str, Any] = {"parts": (parts, Field(min_length=1, description=meaning))}
    return _one_of([*single, create_model(several.__name__, __base__=several, **fields)], **extra)


def schema() -> type[BaseModel]:
    """Return the pydantic model of an experiment file, with everything registered up to now."""
    root = Annotated[str | None, Field(description="folder of downloaded sets; default: the variable POLYFED_DATA")]
    tasks = Annotated[list[str] | None, Field(description="tasks to use; default: all but generation tasks")]
    scenario_fields: dict[str, Any] = {
        "clients": (
            Annotated[int | None, Field(ge=1, description="number of clients; null: one per group of the field")],
            10,
        ),
        "groups": (
            Annotated[
                list[Group] | None,
                Field(min_length=1, description="instead of clients, modalities and tasks: so many clients of a kind"),
            ],
            None,
        ),
        "rho": (
            Annotated[
                float | None,
                Field(ge=0, le=1, description="what groups with `times` are multiplied by, or by what is left of 1"),
            ],
            None,
        ),
        "partition": (_choice(PARTITIONS), {"name": "iid"}),
        "modalities": (_choice(MODALITY_SETS), {"name": "all"}),
        "tasks": (_choice(TASK_SETS), {"name": "all"}),
        "keep": (
            Annotated[
                list[str] | None,
                Field(min_length=1, description="leave clients only these modalities; null: all they hold"),
            ],
            None,
        ),
        "validation": (Annotated[Share, Field(description="share of a client's samples kept for validation")], 0.1),
        "validation_source": (
            Annotated[
                Literal["client", "shared"],
                Field(description="each client validates on samples of its own, or all on the same shared ones"),
            ],
            "client",
        ),
        "test": (Annotated[Share, Field(description="share kept for testing where a set has no test split")], 0.2),
    }
    scenario = create_model("Scenario", __base__=_Scenario, **scenario_fields)
    fields: dict[str, Any] = {
        "version": (Annotated[Literal[1], Field(description="version of this format")], VERSION),
        "name": (Annotated[str, Field(min_length=1, max_length=200, description="shown in reports")], "experiment"),
        "seed": (Annotated[int, Field(ge=0, description="seed of everything random")], 0),
        "rounds": (Annotated[Count, Field(description="communication rounds")], 20),
        "plugins": (Annotated[list[str], Field(description="Python files or modules that register own parts")], []),
        "data": (_data(root=(root, None), tasks=(tasks, None)), {"name": "avdigits"}),
        "scenario": (scenario, {}),
        "model": (_choice(MODELS), {"name": "modular"}),
        "method": (_choice(METHODS), {"name": "fedavg"}),
        "select": (_choice(SELECTORS), {"name": "all"}),
        "train": (TrainSection, {}),
        "engine": (EngineSection, {}),
        "baseline": (
            Annotated[Literal["local"] | None, Field(description="also train this method and report the gain over it")],
            None,
        ),
        "resolved_with": (Annotated[dict[str, str] | None, Field(description="versions; written by polyfed")], None),
    }
    # Defaults are checked like given values, so that they become the typed sections they stand for.
    return create_model("Experiment", __base__=_Defaulted, **fields)


# ---------------------------------------------------------------------------------------------- reading


def default_experiment() -> Experiment:
    """Return the experiment that ``polyfed run`` runs when it is given none."""
    return load(Path(__file__).with_name("default.yaml"))


def load(path: Path | str | None = None, changes: Mapping[str, object] | None = None) -> Experiment:
    """Read an experiment file (default: the embedded one) and apply changes such as ``{"method.name": "fedprox"}``.

    Raises ``UserError`` naming the key, the value and the choices for everything that is wrong with it.
    """
    file = Path(__file__).with_name("default.yaml") if path is None else Path(path)
    raw = read_yaml(file)
    source = str(file) if path is not None else "the embedded experiment"
    raw["plugins"] = plugins.located(raw.get("plugins"), file.parent, source)
    return parse(changed(raw, changes or {}), source=source)


def parse(raw: Mapping[str, Any], *, source: str = "experiment") -> Experiment:
    """Check raw values and make an experiment of them."""
    named = plugins.located(raw.get("plugins"), Path.cwd(), source)
    for plugin in named:
        plugins.load(plugin)
    model = schema()
    filled = _with_names({**raw, "plugins": named})
    try:
        checked = model.model_validate(filled)
    except ValidationError as error:
        raise UserError(explain(error, model, source)) from None
    values = checked.model_dump(mode="json", exclude={"resolved_with"})
    return _experiment(values, source)


def _experiment(values: dict[str, Any], source: str) -> Experiment:
    scenario = values["scenario"]
    data = dict(values["data"])
    root, tasks = data.pop("root"), data.pop("tasks")
    groups = None if scenario["groups"] is None else tuple(Group(**group) for group in scenario["groups"])
    try:
        groups = multiplied(groups, scenario["rho"])
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    per_round = values["select"].get("clients")
    total, place = scenario["clients"], "scenario.clients is"
    if groups is not None:
        total, place = sum(group.clients for group in groups), "the clients of scenario.groups are"
    if per_round is not None and total is not None and per_round > total:
        raise UserError(
            f"{source}: select.clients is {per_round}, but {place} {total}; "
            "choose at most as many clients per round as there are"
        )
    return Experiment(
        name=values["name"],
        seed=values["seed"],
        rounds=values["rounds"],
        data=_chosen(data),
        data_root=root,
        data_tasks=None if tasks is None else tuple(tasks),
        scenario=ScenarioSection(
            scenario["clients"],
            groups,
            _chosen(scenario["partition"]),
            _chosen(scenario["modalities"]),
            _chosen(scenario["tasks"]),
            None if scenario["keep"] is None else tuple(scenario["keep"]),
            scenario["validation"],
            scenario["validation_source"],
            scenario["test"],
        ),
        model=_chosen(values["model"]),
        method=_chosen(values["method"]),
        select=_chosen(values["select"]),
        train=Recipe(**values["train"]),
        engine=EngineSection(**values["engine"]),
        baseline=values["baseline"],
        resolved=values,
    )


def _chosen(section: Mapping[str, Any]) -> Chosen:
    return Chosen(section["name"], {key: value for key, value in section.items() if key != "name"})


SECTIONS: Mapping[str, Registry[Any]] = {
    "data": DATASETS,
    "model": MODELS,
    "method": METHODS,
    "select": SELECTORS,
    "scenario.partition": PARTITIONS,
    "scenario.modalities": MODALITY_SETS,
    "scenario.tasks": TASK_SETS,
}


def _with_names(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the name of a section that sets options of the default choice only (``model: {width: 32}``)."""
    defaults = {"data": "avdigits", "model": "modular", "method": "fedavg", "select": "all"}
    filled = dict(raw)
    for key, name in defaults.items():
        section = filled.get(key)
        if isinstance(section, Mapping) and "name" not in section:
            filled[key] = {"name": name, **section}
    return filled


def changed(raw: Mapping[str, Any], changes: Mapping[str, object]) -> dict[str, Any]:
    """Return raw values with keys such as ``train.lr`` replaced.

    Naming another dataset, method, ... drops the options that belonged to the former one.
    """
    result: dict[str, Any] = _copied(raw)
    # Names first, so that options given beside a new name are kept whatever the order.
    for path in sorted(changes, key=lambda path: not path.endswith(".name")):
        *parents, key = path.split(".")
        place = result
        for depth, parent in enumerate(parents):
            if not isinstance(place.setdefault(parent, {}), dict):
                raise _no_section(path, ".".join(parents[: depth + 1]), place[parent])
            place = place[parent]
        section = ".".join(parents)
        if key == "name" and section in SECTIONS and place.get("name") != changes[path]:
            kept = {"root"} if section == "data" else set()
            for other in set(place) - kept:
                del place[other]
        place[key] = _copied(changes[path])
    return result


def _no_section(path: str, place: str, held: object) -> UserError:
    if isinstance(held, list):
        return UserError(
            f"--set {path}: {place} is a list, and a list can only be set whole: --set '{place}=[...]', or in the file"
        )
    return UserError(f"--set {path}: {place} is not a section")


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(held) for key, held in value.items()}
    return [_copied(held) for held in value] if isinstance(value, list) else value


def read_setting(text: str) -> tuple[str, object]:
    """Read one ``a.b=value`` of the command line; the value is YAML (0.1, true, [image, audio], ...)."""
    path, separator, value = text.partition("=")
    if not separator or not path or any(not part for part in path.split(".")):
        raise UserError(f"--set {text!r}: write it as key=value, for instance --set train.lr=0.1")
    return path, strict_yaml.parse(value, f"--set {text!r}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a table."""
    raw = strict_yaml.read(path)
    if raw is None:
        raise UserError(f"{path}: is empty; write at least one key and its value, such as rounds: 20")
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected keys and values, found a {type(raw).__name__}")
    return raw
