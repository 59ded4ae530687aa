"""The command line: output, exit codes, and what is where."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

import polyfed
from polyfed import UserError
from polyfed.command import listing, progress
from polyfed.errors import RunError
from polyfed.report.tables import Column, ComparisonTable, Row, Spread

TINY = """\
name: tiny
rounds: 2
baseline: local
data: {name: avdigits, tasks: [parity]}
scenario: {clients: 3, partition: {name: iid}}
model: {name: modular, width: 4}
"""
DATA = ["data", "data list", "data check", "data fetch", "data convert"]
COMMANDS = ["run", "compare", "show", "list", "report", "schema", *DATA, "pretrain", "pretrain tiny-llava"]

# typer 0.20 uses what click 8.4 deprecates; the newer typer does not go together with the extra ``flower``.
OLD_TYPER = ".*will be removed in Click 9"
pytestmark = pytest.mark.filterwarnings(f"ignore:{OLD_TYPER}:DeprecationWarning")
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", OLD_TYPER, DeprecationWarning)
    from typer.testing import CliRunner

    from polyfed.command.app import app
    from polyfed.command.inventory import histogram, outputs
    from polyfed.command.results import comparison_tables


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("experiment") / "tiny.yaml"
    path.write_text(TINY)
    return str(path)


@pytest.fixture(scope="module")
def finished(experiment: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("finished") / "a run"
    return folder, call("run", experiment, "--out", str(folder))


@dataclass(frozen=True)
class Result:
    exit_code: int
    stdout: str
    stderr: str


def call(*arguments: str) -> Result:
    """Run a command in this process."""
    result = CliRunner().invoke(app, list(arguments), prog_name="polyfed")
    return Result(result.exit_code, result.stdout, result.stderr)


def refused(*arguments: str) -> str:
    """Run a command that must be refused as a mistake, in one message on standard error."""
    result = call(*arguments)
    assert result.exit_code == 2, result
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr


# ------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_examples(command: str) -> None:
    result = call(*command.split(), "--help")
    assert result.exit_code == 0
    assert f"Usage: polyfed {command} " in result.stdout
    assert "Example" in result.stdout or command in ("data", "pretrain")


def test_version() -> None:
    assert call("--version").stdout == f"polyfed {polyfed.__version__}\n"


def test_help_needs_no_torch_and_has_no_escape_codes() -> None:
    code = "import sys; sys.argv = ['polyfed', '--help']\nfrom polyfed.command.app import main\ntry: main()\n"
    code += "finally: print({'torch', 'numpy', 'pydantic'} & set(sys.modules))"
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.rstrip().endswith("set()")
    assert "\x1b" not in done.stdout


def test_an_unknown_command_is_a_mistake() -> None:
    assert call("fly").exit_code == 2
    assert call("run", "--fly").exit_code == 2
    for mistyped, meant in (("runn", "run"), ("data chek", "check")):
        message = refused(*mistyped.split())
        assert message.count("Did you mean") == 1
        assert f"Did you mean '{meant}'?" in message


# -------------------------------------------------------------------------------------------------------- run


def test_run_prints_the_gain_over_the_baseline(finished: tuple[Path, Result]) -> None:
    folder, result = finished
    assert result.exit_code == 0
    summary = json.loads((folder / "summary.json").read_bytes())
    accuracy, baseline = (held["tasks"]["parity"]["accuracy"]["mean"] for held in (summary, summary["baseline"]))
    line = next(line for line in result.stdout.splitlines() if line.strip().startswith("parity accuracy"))
    assert line.split()[2:8] == ["all", "3", f"{100 * accuracy:.1f}", "%", f"{100 * baseline:.1f}", "%"]
    assert f"digest: {summary['digest'][:12]}" in result.stdout
    assert f"report: {folder / 'report.html'}\n" in result.stdout
    assert "\x1b" not in result.stdout + result.stderr


def test_progress_goes_to_standard_error_line_by_line(finished: tuple[Path, Result]) -> None:
    lines = finished[1].stderr.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "local (baseline): round 1/2",
        "local (baseline): round 2/2",
        "fedavg: round 1/2",
        "fedavg: round 2/2",
    ]
    assert all(re.search(r"parity \d+\.\d % \(validation \d+\.\d %\), .* sent", line) for line in lines)


def test_quiet_prints_nothing(experiment: str, tmp_path: Path) -> None:
    arguments = ["--set", "rounds=1", "--set", "baseline=null", "--out", str(tmp_path / "run"), "--quiet"]
    result = call("run", experiment, *arguments)
    assert result == Result(0, "", "")
    assert json.loads((tmp_path / "run" / "summary.json").read_bytes())["baseline"] is None


def test_a_finished_run_is_not_repeated_unasked(experiment: str, finished: tuple[Path, Result]) -> None:
    folder, result = finished
    message = refused("run", experiment, "--out", str(folder))
    assert all(word in message for word in ("finished run", "--overwrite", "--resume", "--out", "report.html"))
    again = call("run", "--resume", "--out", str(folder))
    assert again.exit_code == 0
    assert again.stderr == ""  # nothing was trained
    assert again.stdout == result.stdout


def test_the_default_folder_is_named_after_the_run(
    experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["--set", "rounds=1", "--set", "method.name=local", "--set", "name=My /first\\ run!", "--set", "seed=7"]
    assert call("run", experiment, *settings, "--quiet").exit_code == 0
    assert (tmp_path / "runs" / "My-first-run-local-seed7" / "summary.json").exists()
    assert "--overwrite" in refused("run", experiment, *settings)


def test_resume_reads_the_experiment_of_the_folder(experiment: str, tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    settings = ["--set", "baseline=null", "--set", "train.lr=0.2"]
    assert call("run", experiment, *settings, "--out", folder, "--quiet").exit_code == 0
    result = call("run", "--resume", "--out", folder, "--set", "rounds=3")
    assert result.exit_code == 0
    assert [line.split(",")[0] for line in result.stderr.splitlines()] == ["fedavg: round 3/3"]
    assert yaml.safe_load((tmp_path / "run" / "experiment.yaml").read_text())["train"]["lr"] == 0.2
    assert "train.lr was 0.2 and is now 0.05" in refused("run", experiment, "--resume", "--out", folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "methd.name=local"], "did you mean 'method'"),
        (["--set", "rounds"], "key=value"),
        (["--set", "rounds=0"], "rounds: 0"),
        (["--device", "gpu"], "engine.device: 'gpu'"),
        (["no-such.yaml"], "no-such.yaml: no such file"),
        (["--resume", "--out", "no-such-folder"], "no-such-folder holds no run"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    assert message in refused("run", *arguments)


LISTENING = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module('polyfed', run_name='__main__', alter_sys=True)"
)
"""Starts polyfed so that it hears Ctrl-C, also where the tests run in the background and it would be ignored."""


def test_ctrl_c_says_how_to_go_on(experiment: str, tmp_path: Path) -> None:
    folder = tmp_path / "a run"
    arguments = ["run", experiment, "--set", "rounds=100000", "--set", "baseline=null", "--out", str(folder)]
    with subprocess.Popen(
        [sys.executable, "-c", LISTENING, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        deadline = time.monotonic() + 60
        while not list(folder.glob("checkpoints/round-*")) and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        try:
            output, errors = running.communicate(timeout=60)
        finally:
            running.kill()
    assert running.returncode == 130
    assert errors.endswith(f"stopped; go on with: polyfed run --resume --out '{folder}'\n")
    assert "Traceback" not in errors
    assert output == ""


@pytest.mark.parametrize(
    ("error", "code", "message", "traced"),
    [
        (RunError("quorum lost"), 1, "the run failed: quorum lost", False),
        (UserError("no such thing"), 2, "error: no such thing", False),
        (KeyError("oops"), 1, "KeyError: 'oops'. Please report it", True),
        (PermissionError(13, "Permission denied", "file"), 1, "Permission denied: 'file'", False),
        (KeyboardInterrupt(), 130, "stopped; nothing was trained yet", False),
    ],
)
def test_exit_codes(
    error: BaseException,
    code: int,
    message: str,
    traced: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(*rest: Any, **named: Any) -> None:
        raise error

    monkeypatch.setattr(sys.modules["polyfed.experiment.running"], "run", failing)
    monkeypatch.delenv("POLYFED_DEBUG", raising=False)
    result = call("run", "--out", str(tmp_path / "run"))
    assert result.exit_code == code
    assert message in result.stderr
    assert ("Traceback" in result.stderr) == traced
    if not isinstance(error, KeyboardInterrupt):
        monkeypatch.setenv("POLYFED_DEBUG", "1")
        assert "Traceback" in call("run", "--out", str(tmp_path / "run")).stderr


# ---------------------------------------------------------------------------------------------------- compare


def test_compare(experiment: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    arguments = ["compare", experiment, "--methods", "local,fedprox[mu=0.1]", "--seeds", "0-1", "--set", "rounds=1"]
    result = call(*arguments, "--out", str(folder))
    assert result.exit_code == 0, result
    assert re.search(r"fedprox\[mu=0\.1\] +1 +\d+\.\d ± \d+\.\d", result.stdout)
    assert "differ in length" not in result.stdout
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == [f"run {k}/4" for k in (1, 2, 3, 4)]
    again = call(*arguments, "--out", str(folder))
    assert again.stdout == result.stdout
    assert again.stderr.count("finished earlier") == 4

    page = tmp_path / "page.html"
    report = call("report", str(folder), "--out", str(page))
    assert report.exit_code == 0
    assert report.stdout.splitlines()[-1] == str(page)
    assert len(report.stdout.splitlines()) == 5
    assert page.exists()


@pytest.mark.parametrize("width", [80, 200])
def test_groups_and_methods_are_folded_and_never_cut(width: int) -> None:
    groups = [f"body_acceleration+gravity+{name}" for name in ("gyroscope_of_the_left", "gyroscope_of_the_right")]
    columns = tuple(Column("step", "accuracy", group) for group in (None, *groups))
    cells = dict.fromkeys(columns, Spread(0.5, 0.01, 2))
    cost = Spread(1.0, None, 2)
    rows = tuple(Row(f"fedprox[mu={mu}]", (0, 1), (4, 30), cells, frozenset(), cost, cost) for mu in (0.1, 0.2))
    console = Console(record=True, file=io.StringIO(), width=width, markup=False)
    for table in comparison_tables(ComparisonTable(columns, rows)):
        console.print(table)
    output = console.export_text()
    assert "…" not in output
    assert output.count("4–30") == 4  # in both tables
    assert output.count("50.0 ± 1.0") == 6
    for name in (*groups, *(row.method for row in rows)):
        assert width == 80 or name in output


def test_a_failed_run_is_told_at_the_end(experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*rest: Any, **named: Any) -> Any:
        raise RunError("quorum lost")

    import polyfed.experiment.comparing  # noqa: F401 - so that it can be patched

    monkeypatch.setattr(sys.modules["polyfed.experiment.comparing"], "run", failing)
    result = call("compare", experiment, "--methods", "local", "--out", str(tmp_path / "out"))
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "local, seed 0 failed: quorum lost"


def test_mistakes_of_comparisons(experiment: str) -> None:
    assert "brackets" in refused("compare", experiment, "--methods", "fedprox[mu=1")
    assert "--seeds" in refused("compare", experiment, "--methods", "local", "--seeds", "x")
    assert call("compare", experiment).exit_code == 2


# ------------------------------------------------------------------------------------------------------- show


def test_show_counts_what_clients_hold(experiment: str) -> None:
    result = call("show", experiment, "--json")
    assert result.exit_code == 0
    described = json.loads(result.stdout)
    assert [client["id"] for client in described["clients"]] == [0, 1, 2]
    for client in described["clients"]:
        assert sum(client["labels"]["parity"]) == client["examples"]["train"] == client["with_modality"]["image"]
        assert client["parameters"] == sum(described["model"]["components"].values())
        assert client["share"] == 1
    total = {part: sum(client["examples"][part] for client in described["clients"]) for part in described["examples"]}
    assert described["examples"] == total
    assert total["train"] + total["validation"] == 1437
    assert total["test"] == 360


def test_show_counts_shared_validation_samples_once(experiment: str) -> None:
    described = json.loads(call("show", experiment, "--set", "scenario.validation_source=shared", "--json").stdout)
    (each,) = {client["examples"]["validation"] for client in described["clients"]}
    assert described["examples"]["validation"] == each > 8
    assert sum(described["examples"].values()) == 1437 + 360


def test_show_tells_kinds_of_clients_apart(experiment: str) -> None:
    rates = ["--set", "scenario.modalities={name: n-of-m, n: 1}", "--set", "scenario.clients=50"]
    described = json.loads(call("show", experiment, *rates, "--json").stdout)
    for client in described["clients"]:
        assert len(client["modalities"]) == 1
        assert f"encoder.{client['modalities'][0]}" in client["components"]
        assert 0 < client["share"] < 1
    short, long = (call("show", experiment, *rates, *more).stdout for more in ([], ["--all"]))
    assert "the first 10 of 50 clients" in short
    assert len(long.splitlines()) - len(short.splitlines()) == 40 - 1
    assert "the first" not in long


def test_show_of_the_pooled_reference_shows_the_clients(experiment: str) -> None:
    described = json.loads(call("show", experiment, "--set", "method.name=centralized", "--json").stdout)
    assert len(described["clients"]) == 3


@pytest.mark.parametrize(
    ("counts", "drawn"),
    [
        ([0, 1, 4, 8], "·▁▄█"),
        ([5, 5], "██"),
        ([0, 0], "··"),
        ([], ""),
        ([1] * 3 + [0] * 20, "3 of 23 classes"),
    ],
)
def test_histogram(counts: list[int], drawn: str) -> None:
    assert histogram(counts) == drawn


def test_show_names_components_and_numbers_on_a_narrow_screen(experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    described = json.loads(call("show", experiment, "--json").stdout)
    output = call("show", experiment).stdout
    kinds = "".join(output[output.index("Kinds of clients") : output.rindex("Clients ")].split())
    assert all(name in kinds for name in described["model"]["components"])


def test_a_single_number_has_no_shape_to_show() -> None:
    described = {"tasks": {"age": {"kind": "regression", "shape": []}, "pose": {"kind": "regression", "shape": [3, 2]}}}
    assert [outputs(task) for task in described["tasks"].values()] == ["regression", "regression 3×2"]


def test_tables_fit_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for arguments in (["show"], ["list", "methods"], ["data", "list"]):
        output = call(*arguments).stdout
        assert max(len(line.rstrip()) for line in output.splitlines()) <= 80
        assert "…" not in output


# ------------------------------------------------------------------------------------------------------- list


@pytest.mark.parametrize("kind", listing.KINDS)
def test_list_names_everything_with_its_options(kind: str) -> None:
    output = call("list", kind).stdout
    for _, registry in listing.KINDS[kind]:
        for name in registry.names():
            assert f"  {name} " in output
            assert all(option in output for option in registry.options(name).model_fields if option != "name")


def test_list_of_kinds_and_an_unknown_kind() -> None:
    assert all(kind in call("list").stdout for kind in listing.KINDS)
    assert "did you mean 'methods'" in refused("list", "method")


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "number > 0 and ≤ 1"),
        ({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]}, "integer ≥ 1 or null"),
        ({"type": "array", "items": {"type": "string"}}, "list of string"),
        ({"enum": ["sgd", "adam"]}, "sgd | adam"),
        ({"const": "local"}, "local"),
        ({"type": "object", "additionalProperties": {"type": "number"}}, "table of number"),
        ({"$ref": "#/$defs/Group"}, "table of clients, modalities"),
        ({}, "value"),
    ],
)
def test_types_in_words(schema: dict[str, Any], told: str) -> None:
    definitions: dict[str, Any] = {"$defs": {"Group": {"properties": {"clients": {}, "modalities": {}}}}}
    assert listing.kind_of(schema, definitions) == told


@pytest.mark.parametrize(("value", "text"), [(None, "null"), (True, "true"), (0.1, "0.1"), ([1, None], "[1, null]")])
def test_defaults_are_written_as_yaml(value: Any, text: str) -> None:
    assert listing.written(value) == text


# ----------------------------------------------------------------------------------------------------- schema


def test_schema_describes_experiment_files() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="the extra 'test' is not installed")
    schema = json.loads(call("schema").stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(yaml.safe_load((Path(polyfed.__file__).parent / "experiment" / "default.yaml").read_text()))
    validator.validate(yaml.safe_load(TINY))
    mistakes: list[dict[str, Any]] = [{"rounds": 0}, {"method": {"name": "fedpox"}}, {"engin": {}}]
    for wrong in mistakes:
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(wrong)


# ------------------------------------------------------------------------------------------------------ report


def test_report_writes_the_page_anew(finished: tuple[Path, Result]) -> None:
    page = finished[0] / "report.html"
    before = page.read_bytes()
    page.unlink()
    assert call("report", str(finished[0])).stdout == f"{page}\n"
    assert page.read_bytes() == before


def test_a_page_of_several_runs_lies_in_the_folder_that_holds_them(
    finished: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / "out" / method / "seed-0" for method in ("a", "b")]
    for folder in folders:
        shutil.copytree(finished[0], folder)
    experiment = folders[1] / "experiment.yaml"
    experiment.write_text(experiment.read_text().replace("lr: ", "lr: 1"))
    told = call("report", *map(str, folders)).stdout.splitlines()[-1]
    assert told == str(tmp_path / "out" / "comparison.html")
    assert Path(told).exists()
    monkeypatch.chdir(tmp_path)
    nested = call("report", "out/a/seed-0", "out/a/seed-0/baseline").stdout.splitlines()[-1]
    assert nested == str(Path("out", "a", "comparison.html"))


def test_local_runs_tell_the_digest_of_what_clients_hold(
    experiment: str, tmp_path: Path, finished: tuple[Path, Result]
) -> None:
    folder = tmp_path / "local"
    result = call("run", experiment, "--set", "method.name=local", "--set", "baseline=null", "--out", str(folder))
    summary = json.loads((folder / "summary.json").read_bytes())
    assert f"personal digest: {summary['personal_digest'][:12]}\n" in result.stdout
    page = tmp_path / "page.html"
    assert call("report", str(folder), str(finished[0]), "--out", str(page)).exit_code == 0
    assert f"{summary['personal_digest'][:12]} (personal digest)" in page.read_text()
    assert summary["digest"][:12] not in page.read_text()


def test_mistakes_of_reports(finished: tuple[Path, Result], tmp_path: Path) -> None:
    assert "not a run folder" in refused("report", str(tmp_path / "no"))
    assert "--out is for" in refused("report", str(finished[0]), "--out", str(tmp_path / "page.html"))


# -------------------------------------------------------------------------------------------------------- data


def test_data_list_says_what_is_there(tmp_path: Path) -> None:
    rows = [line.split() for line in call("data", "list", "--root", str(tmp_path)).stdout.splitlines()]
    there = {words[0]: words[1] for words in rows if len(words) > 1}
    assert there["avdigits"] == "yes"
    assert there["mnist"] == there["av-mnist"] == "no"


def test_data_check(tmp_path: Path) -> None:
    root = ["--root", str(tmp_path)]
    assert call("data", "check", *root).stdout == "avdigits: sound\n"
    missing = call("data", "check", "mnist", *root)
    assert missing.exit_code == 1
    assert missing.stdout.startswith("mnist: NOT SOUND\n")
    assert "did you mean 'mnist'" in refused("data", "check", "mnits", *root)


def test_data_check_reads_a_file_of_samples(tmp_path: Path) -> None:
    image_library = pytest.importorskip("PIL.Image", reason="pictures need the extra polyfed[image]")

    def said(image: str, **more: object) -> dict[str, object]:
        turns = [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": "one"}]
        return {"id": 1, "image": image, "conversations": turns, **more}

    path = tmp_path / "mine.jsonl"
    (tmp_path / "pictures").mkdir()
    image_library.new("RGB", (4, 4)).save(tmp_path / "pictures/a.png")
    samples = [said("a.png", task="vqa", split="train", client=i) for i in (1, 1, 2)] + [said("a.png")]
    path.write_text("\n".join(map(json.dumps, samples)))
    words = ["data", "check", str(path), "--images", str(tmp_path / "pictures")]
    sound = call(*words)
    assert sound.exit_code == 0
    assert re.search(r"not named +not named +1 *\n +vqa +train +3 *\n", sound.stdout)
    assert "clients: 2; their samples: 1 to 2\nsamples that name no client: 1\npictures: 1, " in sound.stdout
    assert sound.stdout.endswith(f"{path}: sound\n")
    missing = call(*words[:3])
    assert missing.exit_code == 1
    assert missing.stdout.endswith(
        f"{path}: NOT SOUND\n  {path}, line 1, 'image': there is no file 'a.png' in {tmp_path}\n"
    )
    path.write_text("\n".join(json.dumps(said(f"{i}.png")) for i in range(22)))
    assert call(*words).stdout.endswith(" 'image': there is no file '19.png' in " + words[-1] + "\n  and 2 more\n")
    path.write_text(json.dumps(said("a.png", split="half")))
    assert f"{path}, line 1, 'split'" in refused(*words)
    assert "no such file" in refused("data", "check", str(tmp_path / "nowhere.json"))
    assert "--images: " in refused(*words[:4], str(tmp_path / "nowhere"))
    assert "--images goes with a file of samples" in refused("data", "check", "mnist", *words[3:])


def test_data_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POLYFED_DATA", raising=False)
    assert "--root" in refused("data", "fetch", "mnist")
    assert "did you mean" in refused("data", "fetch", "mnits", "--root", str(tmp_path))
    assert "nothing to download" in call("data", "fetch", "avdigits", "--root", str(tmp_path)).stdout


# ------------------------------------------------------------------------------------------------ pipes, progress


@pytest.mark.parametrize("arguments", ["list methods", "schema"])
def test_a_closed_pipe_is_no_error(arguments: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "polyfed", *arguments.split()]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_time_left_counts_only_what_was_measured() -> None:
    now = 0.0
    meter = progress.Meter("x", 10, clock=lambda: now)
    assert meter.left == ""
    meter.reach(4, skipped=True)
    assert meter.left == ""
    now = 6.0
    meter.reach(6)
    assert meter.left == "12 s left"  # 3 s each, 4 to go
    meter.reach(10)
    assert meter.left == ""


@pytest.mark.parametrize(("rounds", "lines"), [(1, 1), (3, 3), (10, 10), (100, 11), (1000, 11)])
def test_a_run_prints_a_line_every_tenth(rounds: int, lines: int) -> None:
    console = Console(record=True, file=io.StringIO(), width=100)
    watch = progress.RunProgress(console, "fedavg", "", rounds)
    for number in range(1, rounds + 1):
        watch({"kind": "round", "round": number, "bytes": {"up": 1000, "down": 0}})
    assert len(console.export_text().splitlines()) == lines


def test_scores_are_means_over_clients_of_the_latest_round() -> None:
    training = progress.Training("fedavg", 5)
    for round_number, values in ((1, (0.0, 0.0)), (2, (0.5, 1.0))):
        for client, value in enumerate(values):
            for split in ("validation", "test"):
                metrics = {"digit": {"loss": 9.0, "accuracy": value if split == "test" else 0.25}}
                record = {"kind": "evaluation", "round": round_number, "split": split, "client": client}
                assert not training.add({**record, "metrics": metrics})
    assert training.add({"kind": "round", "round": 2, "bytes": {"up": 1_000_000, "down": 500_000}})
    assert training.details() == "digit 75.0 % (validation 25.0 %), 1.5 MB sent"


def test_the_live_display_shows_bars() -> None:
    console = Console(force_terminal=True, file=io.StringIO(), width=80, color_system=None)
    with progress.ComparisonProgress(console, 2, 4) as watch:
        watch({"kind": "run", "state": "started", "method": "fedavg", "seed": 0})
        watch({"kind": "round", "round": 1, "bytes": {"up": 0, "down": 0}})
        drawn = Console(width=80, record=True, file=io.StringIO())
        drawn.print(watch.render())
        text = drawn.export_text()
    assert re.search(r"all runs +━+ +1/8", text)
    assert re.search(r"fedavg, seed 0 +━+ +1/4", text)


def test_data_convert_says_what_was_made(tmp_path: Path) -> None:
    question = {"imageId": "7", "question": "Is it?", "answer": "yes"}
    (tmp_path / "val_balanced_questions.json").write_text(
        json.dumps({"1": question, "2": {**question, "imageId": "8"}})
    )
    (tmp_path / "7.jpg").touch()
    words = ["data", "convert", "gqa", "--from", str(tmp_path), "--to", str(tmp_path / "made")]
    assert "there is no picture 'images/8.jpg'" in refused(*words)
    assert not (tmp_path / "made").exists()
    result = call(*words, "--skip-missing")
    assert result.exit_code == 0
    assert re.search(r"vqa +val +1 *\n", result.stdout)
    assert "1 left out: the picture is missing" in result.stdout
    assert f"samples: {tmp_path / 'made' / 'instructions.json'}\npictures: {tmp_path}\n" in result.stdout
    assert "exists and is not empty" in refused(*words)
