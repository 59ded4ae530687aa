"""The documents say what is: every key, command, link and code block is held against the program."""

from __future__ import annotations

import json
import re
import shlex
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

import polyfed
from polyfed.command.listing import KINDS
from polyfed.data.catalog import DATASETS
from polyfed.data.several import SEVERAL
from polyfed.engine.answers import FILE as ANSWERS
from polyfed.engine.expert_use import use_record
from polyfed.engine.notes import note_record
from polyfed.engine.pictures import FILE as PICTURES
from polyfed.experiment import config
from polyfed.experiment.running import LOCK, OURS, run
from polyfed.experiment.summary import summarise
from polyfed.experiment.world import build_world
from polyfed.method.catalog import METHODS
from polyfed.method.protocol import Note, Reply
from polyfed.registry import Registry
from polyfed.scenario.groups import Group
from tests.engine.test_experts_in_federations import of_experts
from tests.worlds import tiny, train

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]

# typer 0.20 uses what click 8.4 deprecates; the newer typer does not go together with the extra ``flower``.
OLD_TYPER = ".*will be removed in Click 9"
pytestmark = pytest.mark.filterwarnings(f"ignore:{OLD_TYPER}:DeprecationWarning")
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", OLD_TYPER, DeprecationWarning)
    from typer.main import get_command
    from typer.testing import CliRunner

    from polyfed.command.app import app


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, *languages: str) -> list[str]:
    """Return the fenced code blocks of these languages."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [code for language, code in found if language in languages]


def section(text: str, heading: str) -> str:
    """Return what stands between a heading (or a line that begins with it) and the next of its kind."""
    after = text.split(f"\n{heading}", 1)[1]
    return re.split(r"\n#+ |\n\*\*\w+\*\*: ", after, maxsplit=1)[0]


def first_cells(text: str) -> list[str]:
    """Return what stands in code style in the first cell of each row of a table."""
    return re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)


# ------------------------------------------------------------------------------------------------ experiment.md


def test_the_annotated_experiment_names_every_key() -> None:
    (text,) = blocks(page("docs/experiment.md"), "yaml")
    raw = yaml.safe_load(text)
    config.parse(raw)
    keys = list(keys_of(config.schema(), raw))
    assert {"seed", "data.root", "scenario.partition.alpha", "method.missing", "engine.quorum"} <= set(keys)
    assert not [key for key in keys if not has(raw, key)]
    assert not [line for line in text.splitlines() if re.match(r" *\w+:", line) and " # " not in line]


def keys_of(model: type[BaseModel], raw: Any, place: str = "") -> Iterator[str]:
    """Yield every key of a section, and of the sections in it; where there is a choice, of the one that was made."""
    for name, field in model.model_fields.items():
        yield place + name
        given = raw.get(name) if isinstance(raw, dict) else None
        if given is None and has(raw, name):  # null: there is no such section
            continue
        for option in models_in(field.annotation):
            chosen = option.model_fields.get("name")
            if chosen is None or not isinstance(given, dict) or chosen.default == given.get("name"):
                yield from keys_of(option, given, f"{place}{name}.")


def models_in(hint: Any) -> list[type[BaseModel]]:
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return [hint]
    return [model for part in get_args(hint) if get_args(part) or isinstance(part, type) for model in models_in(part)]


def has(raw: Any, path: str) -> bool:
    for key in path.split("."):
        if isinstance(raw, list):
            raw = raw[0]
        if not isinstance(raw, dict) or key not in raw:
            return False
        raw = raw[key]
    return True


def test_every_key_of_a_group_of_clients_is_described() -> None:
    text = page("docs/scenarios.md").split("\n## Groups of clients\n")[1].split("\n## ")[0]
    (block,) = blocks(text, "yaml")
    experiment = config.parse({**yaml.safe_load(block), "model": {"width": 8}})
    assert experiment.scenario.groups is not None
    assert [set(group.model_fields_set) for group in experiment.scenario.groups] == [set(Group.model_fields)] * 3
    assert all(f"`{key}`" in text for key in Group.model_fields)


def test_the_readme_counts_the_datasets() -> None:
    """``several`` is none of its own: it is what joins others."""
    words = ["nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen"]
    (word,) = re.findall(r"(\w+) datasets, among them your own files", page("README.md"))
    assert words.index(word) + 9 == len([name for name in DATASETS.names() if name != SEVERAL])


CHOICES = [(key, registry) for registries in KINDS.values() for key, registry in registries]


@pytest.mark.parametrize(("key", "registry"), CHOICES, ids=[key for key, _ in CHOICES])
def test_every_choice_and_option_is_listed_with_its_default(key: str, registry: Registry[Any]) -> None:
    rows = re.findall(r"^\| `([^`]+)` \|(.*)\|$", section(page("docs/experiment.md"), f"### {key}\n"), re.MULTILINE)
    assert [name for name, _ in rows] == list(registry.names())
    for name, cell in rows:
        listed = dict(read_option(code) for code in re.findall(r"`([^`]+)`", cell))
        schema = registry.options(name).model_json_schema()
        defaults = {option: held.get("default", "given") for option, held in schema["properties"].items()}
        del defaults["name"]
        assert listed.keys() == defaults.keys(), name
        for option in listed.keys() - {"means"}:  # ten colours are not repeated
            assert listed[option] == defaults[option], (name, option)


def read_option(code: str) -> tuple[str, Any]:
    if ":" not in code:
        return code, "given"
    ((option, default),) = yaml.safe_load(code).items()
    return option, default


def test_every_method_is_described_with_its_options() -> None:
    text = page("docs/methods.md")
    assert first_cells(text) == list(METHODS.names())
    for name in METHODS.names():
        (row,) = re.findall(rf"^\| `{name}` \|.*$", text, re.MULTILINE)
        (more,) = re.findall(rf"^## {name}\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL | re.IGNORECASE) or [""]
        for option in METHODS.options(name).model_fields:
            assert option == "name" or f"`{option}" in row + more or "the same" in row, (name, option)


# ------------------------------------------------------------------------------------------------ run-folder.md


SERVED = {"engine__server_test": True, "engine__unimodal": True}


@cache
def whole_run(folder: Path) -> dict[str, Any]:
    """Leave the records of a run in which a reply was refused; return its summary, with itself as its baseline."""
    asking = {"select__name": "pow-d", "select__clients": 2}
    world = build_world(tiny(rounds=2, method__name="fedhgb", engine__diagnostics=True, **asking, **SERVED))

    def boastful(number: int, client: int, reply: Reply) -> Reply:
        return replace(reply, examples=10**9) if client == 1 else reply

    outcome = world.loop(folder, deliver=boastful).run()
    found: dict[str, Any] = json.loads(json.dumps(summarise(world, outcome, summarise(world, outcome, None))))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


GROUPED = {"tasks": ("<task>", "<metric>"), "metrics": ("<task>", "<metric>"), "by_modalities": ("<group>",)}
RECORDED = {**GROUPED, "fits": ("<how>",), "numbers": ("<name>",), "examples": ("<task>",)}
RECORDED |= {"notes": ("<name>",), "clients": ("<client>", "<name>"), "label_distance": ("<task>", "<modality>")}
BY_COMPONENT = {**RECORDED, **dict.fromkeys(("down", "up", "divergence"), ("<component>",))}
BY_COMPONENT |= {"cosine": ("<component>",), "clients": ("<component>",)}
SUMMED = {**GROUPED, "frozen": ("<part>",), **dict.fromkeys(("present", "trained", "down", "up"), ("<component>",))}
BY_PATH = {"weights": ("<task>", "<modality>", "<input scope>", "<output scope>")}
BY_MODALITY = {**RECORDED, **dict.fromkeys(("accuracy", "examples"), ("<task>", "<modality>"))}
NAMED = {"client": BY_COMPONENT, "refused": BY_COMPONENT, "unimodal_evaluation": BY_MODALITY}
NAMED |= {"router_use": {"weights": ("<task>", "<adapter's task>")}}
NAMED |= {"note": {**RECORDED, "links": ("<name>", "<client>", "<other client>")}}
NAMED |= {"agreement": BY_COMPONENT, "expert_use": BY_PATH}
WHOLE = ("best.tasks", "baseline.tasks", "baseline.clients")
"""Keys whose content has the form of another."""


def paths(value: Any, names: dict[str, tuple[str, ...]], place: str = "", below: tuple[str, ...] = ()) -> set[str]:
    """Return the paths of all values; a name that differs from run to run is replaced by what it stands for."""
    if place in WHOLE:
        return {place}
    if isinstance(value, list):
        return {path for item in value for path in paths(item, names, f"{place}[]")}
    if not isinstance(value, dict):
        return {place}
    found: set[str] = set()
    for key, held in value.items():
        shown, rest = (below[0], below[1:]) if below else (key, names.get(key, ()))
        found |= paths(held, names, f"{place}.{shown}" if place else shown, rest)
    return found


def test_every_key_of_the_summary_is_described(folder: Path) -> None:
    described = first_cells(section(page("docs/run-folder.md"), "## summary.json\n"))
    summary = whole_run(folder)
    summary["parameters"]["frozen"]["language_model"] = 1  # language models have such parts only
    assert set(described) == paths(summary, SUMMED)
    assert len(described) == len(set(described))


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def test_every_kind_and_key_of_the_records_is_described(folder: Path, tmp_path: Path) -> None:
    whole_run(folder)
    mixed = tmp_path / "mixed"
    train(of_experts(engine__diagnostics=True), mixed)
    found: dict[str, set[str]] = {}
    told: list[dict[str, Any]] = [line for line in records(mixed) if line["kind"] == "expert_use"]
    told += [
        {**line, "kind": "other_evaluation", "model": "deployed"}
        for line in records(folder)
        if line["kind"] == "evaluation"
    ]
    told.append(use_record(1, 0, {"vqa": {"caption": 1.0}}, "adapters"))
    told.append(json.loads(json.dumps(note_record(1, Note(links={"across.part": {0: {1: 0.5}}})))))
    for record in (*records(folder), *told):
        names = NAMED.get(record["kind"], RECORDED)
        found[record["kind"]] = found.get(record["kind"], set()) | paths(record, names)
    text = page("docs/run-folder.md")
    assert set(re.findall(r"^\*\*(\w+)\*\*: ", text, re.MULTILINE)) == set(found) | {"worker"}  # none died here
    for kind, keys in found.items():
        assert set(first_cells(section(text, f"**{kind}**: "))) == keys, kind


def test_every_file_of_a_run_folder_is_described(tmp_path: Path) -> None:
    done = run(tiny(rounds=1, baseline="local"), tmp_path / "run")
    described = {cell.rstrip("/") for cell in first_cells(page("docs/run-folder.md").split("\n## ", 1)[0])}
    assert done.folder is not None
    there = {path.name for path in done.folder.iterdir()}
    assert there | {PICTURES, ANSWERS} == described == {*OURS, LOCK}  # these come with their kinds of tasks only


# ------------------------------------------------------------------------------------------------ commands and code


def commands(text: str) -> list[list[str]]:
    """Return the polyfed commands of a page's console blocks as words, without the program's name."""
    lines = [line for code in blocks(text, "bash", "console") for line in code.splitlines()]
    parts = [part.strip().removeprefix("$ ") for line in lines for part in line.split("&&")]
    return [shlex.split(part, comments=True)[1:] for part in parts if re.match(r"polyfed\b", part)]


COMMANDS = [(path, words) for path in PAGES for words in commands(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("path", "words"), COMMANDS, ids=[" ".join(words) for _, words in COMMANDS])
def test_commands_are_ones_the_program_takes(path: Path, words: list[str]) -> None:
    command: Any = get_command(app)
    rest = list(words)
    while hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]
    given = command.make_context(command.name, rest).params
    config.load(None, dict(config.read_setting(text) for text in given.get("settings") or []))
    for word in words:
        assert not word.startswith("examples/") or (ROOT / word).exists()


def test_the_commands_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them in their order, with one round and one seed."""
    monkeypatch.chdir(tmp_path)
    for words in commands(page("README.md")):
        quick = ["--set", "rounds=1"] if words[0] in ("run", "compare") else []
        quick += ["--seeds", "0"] if words[0] == "compare" else []
        done = CliRunner().invoke(app, [*words, *quick], prog_name="polyfed")
        assert done.exit_code == 0, (words, done.output)
    assert (tmp_path / "runs/avdigits-fedavg-seed0/report.html").is_file()
    assert (tmp_path / "runs/avdigits-compare/comparison.html").is_file()


def test_the_readme_has_the_two_commands() -> None:
    lines = [line for code in blocks(page("README.md"), "bash") for line in code.splitlines()]
    assert "pip install -c constraints.txt . && polyfed run" in lines
    assert 'pip install -c constraints.txt ".[test]" && pytest' in lines


def test_the_python_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code blocks, one after the other, on the tiny experiment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(polyfed, "load", lambda path=None, changes=None: tiny().with_(changes or {}))
    code = blocks(page("docs/python.md"), "python")
    assert len(code) >= 5
    names: dict[str, Any] = {}
    for block in code:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert {row["method"] for row in names["table"]} == {"fedavg", "fedprox[mu=0.1]"}
    assert names["prox"].method.name == "fedprox"


def test_the_python_page_names_everything_public() -> None:
    listed = re.findall(r"`(\w+)", "".join(re.findall(r"^\| (`.*?) \|", page("docs/python.md"), re.MULTILINE)))
    assert set(listed) == set(polyfed.__all__)


# ------------------------------------------------------------------------------------------------ links and files


@pytest.mark.parametrize("path", PAGES, ids=[path.relative_to(ROOT).as_posix() for path in PAGES])
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            file, _, anchor = target.partition("#")
            there = (path.parent / file) if file else path
            assert there.exists(), target
            headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE) if anchor else [""]
            assert anchor in [re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-")) for heading in headings]


def test_files_named_in_the_pages_exist() -> None:
    for path in (ROOT / "docs/architecture.md", ROOT / "docs/methods.md", ROOT / "README.md"):
        for name in re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.(?:py|yaml))`", path.read_text(encoding="utf-8")):
            places = (ROOT / name, ROOT / "src" / name, ROOT / "src/polyfed" / name)
            assert name == "my.yaml" or any(place.is_file() for place in places), (path.name, name)
