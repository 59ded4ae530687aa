"""Bad input of every kind: one message that names value, place and choices; nothing half-written; no traceback."""

from __future__ import annotations

import errno
import gzip
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import polyfed
from polyfed.data.check import check
from polyfed.engine.loop import Loop
from polyfed.errors import RunError, UserError
from polyfed.experiment import config
from polyfed.experiment.running import claimed, run
from polyfed.experiment.world import build_world
from polyfed.method.catalog import METHODS
from polyfed.method.protocol import Reply
from polyfed.model.parts import ENCODERS, HEADS
from polyfed.scenario.catalog import PARTITIONS
from tests.worlds import TINY, tiny

torch.set_num_threads(1)

Changes = Mapping[str, object]
Bad = Changes | str | bytes
"""An experiment file: keys of the tiny experiment that are changed, or its text, or its bytes."""


def written(place: Path, bad: Bad) -> Path:
    """Write an experiment file."""
    path = place / "experiment.yaml"
    if isinstance(bad, bytes):
        path.write_bytes(bad)
    else:
        path.write_text(bad if isinstance(bad, str) else yaml.safe_dump(config.changed(TINY, {"rounds": 1, **bad})))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a run folder but its lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def drafts(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if "draft" in path.name]


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny experiment, one round long."""
    place = tmp_path_factory.mktemp("earlier")
    run(written(place, {}), place / "run")
    return place / "run"


@pytest.fixture(scope="module")
def before(earlier: Path) -> dict[str, bytes]:
    """What was in the finished run before anything bad was tried."""
    return contents(earlier)


def refused(file: Path, message: str, out: Path, earlier: Path, before: Mapping[str, bytes]) -> None:
    """The experiment is refused in a new folder, which stays empty, and in that of a run, which stays as it is."""
    with pytest.raises(UserError, match=message) as caught:
        run(file, out)
    lines = str(caught.value).splitlines()
    assert len({line.split(": ")[0] for line in lines}) == 1, "a line per fault of one file"
    assert not contents(out)
    with pytest.raises(UserError, match=message):
        run(file, earlier, overwrite=True)
    assert contents(earlier) == before


# -------------------------------------------------------------------------------------- experiment files

TEXT = yaml.safe_dump(dict(TINY))
SETS = "scenario.modalities.sets"

EXPERIMENTS: dict[str, tuple[Bad, str]] = {
    # keys
    "unknown key": (
        {"metod": 1},
        r"experiment\.yaml: metod: unknown key 'metod'; did you mean 'method'\? Choices: ver",
    ),
    "unknown key of a section": (
        {"train.learning": 1},
        r"train\.learning: unknown key 'learning'\. Choices: optimizer",
    ),
    "unknown key of a group": (
        {"scenario": {"clients": 4, "modalities": {"name": "groups", "groups": [{"clints": 4, "modalities": []}]}}},
        r"scenario\.modalities\.groups\.0\.clints: unknown key 'clints'; did you mean 'clients'\?",
    ),
    "option of another method": ({"method.mu": 0.1}, r"method\.mu: unknown key 'mu'\. Choices: name, missing"),
    "key that is no text": (TEXT + "1: 2\n", "1: 1 is not allowed: keys should be strings"),
    # values
    "a name where a table belongs": ({"method": "fedprox"}, r"method: 'fedprox' is a text .* write \{name: fedprox\}"),
    "a part's name where a table belongs": (
        {"scenario.partition": "iid"},
        r"scenario\.partition: 'iid' is a text where a table belongs; write \{name: iid\}",
    ),
    "momentum without sgd": (
        {"train.optimizer": "adam", "train.momentum": 0.9},
        r"train: momentum 0\.9 is used by sgd only; with adam set it to 0",
    ),
    "wrong type": ({"rounds": "many"}, "rounds: 'many' is not allowed: input should be a valid integer"),
    "true for a number": ({"rounds": True}, "rounds: 'true' is not allowed: input should be a valid integer"),
    "a value for a section": ({"train": 3}, "train: 3 is not allowed"),
    "a text for a list": ({SETS: "image"}, r"sets: 'image' is not allowed: input should be a valid list"),
    "below the range": ({"train.lr": -1}, r"train\.lr: -1 is not allowed: input should be greater than 0"),
    "above the range": ({"train.lr": 1e39}, r"train\.lr: 1e\+39 is not allowed: input should be less than"),
    "rate above one": (
        {"scenario": {"clients": 4, "modalities": {"name": "rates", "rates": {"audio": 1.5}}}},
        r"scenario\.modalities\.rates\.audio: 1\.5 is not allowed: input should be less than or equal to 1",
    ),
    "not finite": ({"train.lr": float("inf")}, r"train\.lr: inf is not allowed: input should be a finite number"),
    "too many threads": ({"engine.threads": 10**6}, r"engine\.threads: 1000000 .* less than or equal to 1024"),
    "another version": ({"version": 2}, "version: 2 is not one of the choices: 1"),
    # names
    "unknown method": ({"method.name": "fedpox"}, "method: unknown name 'fedpox'; did you mean 'fedprox'.*fedadam"),
    "unknown dataset": ({"data.name": "avdigit"}, r"data: unknown name 'avdigit'; did you mean 'avdigits'\? Choices"),
    "unknown partition": (
        {"scenario.partition.name": "dir"},
        r"scenario\.partition: unknown name 'dir'.* Choices: iid",
    ),
    "unknown optimizer": ({"train.optimizer": "adamm"}, "train.optimizer: 'adamm' is not one of the choices: 'sgd'"),
    "unknown selection": (
        {"select.name": "al"},
        r"select: unknown name 'al'; did you mean 'all'\? Choices: all, random",
    ),
    "unknown encoder": (
        {"model.encoders.image.name": "cn"},
        r"model\.encoders\.image: unknown encoder 'cn'; did you mean 'cnn'\?",
    ),
    "unknown option of an encoder": (
        {"model.encoders.image": {"name": "mlp", "hiden": [4]}},
        r"model\.encoders\.image: encoder 'mlp': hiden: unknown key 'hiden'; did you mean 'hidden'\?",
    ),
    "option of an encoder out of range": (
        {"model.encoders.image": {"name": "mlp", "hidden": [0]}},
        r"model\.encoders\.image: encoder 'mlp': hidden\.0: 0 is not allowed",
    ),
    "encoder for a modality that is not there": (
        {"model.encoders": {"imge": {}}},
        r"model\.encoders: unknown modality 'imge'; did you mean 'image'\?",
    ),
    "encoder that cannot read the modality": (
        {"model.encoders.image": {"name": "bag"}},
        r"modality 'image': encoder 'bag' cannot read image data of shape \(1, 8, 8\)\. Choices: cnn",
    ),
    "part larger than the memory": (
        {"model.encoders.image": {"name": "mlp", "hidden": [10**15]}},
        r"component 'encoder\.image' fails for an input of shape \(2, 1, 8, 8\): RuntimeError: .*allocate",
    ),
    # YAML
    "key given twice": (TEXT + "seed: 4\n", r"line \d+, column 1: not valid YAML: the key 'seed' is given twice"),
    "syntax error": (TEXT + "x: [1\n", r"experiment\.yaml, line \d+, column 1: not valid YAML: expected ',' or '\]'"),
    "empty file": ("", r"experiment\.yaml: is empty; write at least one key"),
    "list at the top": ("- 1\n", r"experiment\.yaml: expected keys and values, found a list"),
    "binary": (bytes(range(256)), r"experiment\.yaml cannot be read: 'utf-8' codec can't decode byte 0x80"),
    "impossible date": (TEXT + "note: 2001-99-99\n", "not valid YAML: month must be in 1..12"),
    "number of 5000 digits": (TEXT.replace("rounds: 3", "rounds: " + "9" * 5000), "not valid YAML: Exceeds the limit"),
    "a table that holds itself": ("data: &x {name: avdigits, root: *x}\n", "not valid YAML: maximum recursion"),
    "a Python object": ("name: !!python/object/apply:os.system [ls]\n", "line 1, column 7: not valid YAML: could not"),
    # clients, modalities, tasks
    "more clients a round than there are": (
        {"select": {"name": "random", "clients": 9}},
        r"select\.clients is 9, but scenario\.clients is 4",
    ),
    "more clients a round than groups": (
        {
            "select": {"name": "random", "clients": 999},
            "scenario": {"clients": None, "partition": {"name": "natural", "field": "voice"}},
        },
        r"select\.clients: 999 clients per round, but the federation has \d+",
    ),
    "more clients than samples": (
        {"scenario": {"clients": 99999}},
        r"scenario: 99999 clients, but avdigits has 740 groups of the field 'clip', .* use 1 to 740 clients",
    ),
    "unknown field": (
        {"scenario.partition": {"name": "natural", "field": "voise"}},
        "unknown field 'voise'; did you mean 'voice'",
    ),
    "empty client": (
        {"scenario": {"clients": 200, "partition": {"name": "dirichlet", "minimum": 0, "quantity_alpha": 0.01}}},
        r"client \d+ gets no samples from the partition 'dirichlet' \(\d+ of 200 clients are empty\)",
    ),
    "unknown task in use": ({"data.tasks": ["digt"]}, "dataset avdigits: unknown task 'digt'; did you mean 'digit'"),
    "no task in use": ({"data.tasks": []}, "dataset avdigits: no task is in use.* Choices: digit, parity"),
    "unknown modality of a client": (
        {SETS: [["image"], ["sound"], ["audio"], ["image"]]},
        "modality listed, client 1: unknown modality 'sound'. Choices: audio, image",
    ),
    "client without a modality": (
        {SETS: [["image"], [], ["audio"], ["image"]]},
        "client 1: name at least one modality. Choices: image, audio",
    ),
    "modality nobody has": ({SETS: [["image"]] * 4}, "no client holds the modality 'audio'; give it to a client or"),
    "task nobody has": ({"scenario.tasks.sets": [["digit"]] * 4}, "no client holds the task 'parity'; give it to"),
    "list of the wrong length": ({SETS: [["image"]] * 3}, "3 sets are listed, but the scenario has 4 clients"),
    "n of n": (
        {"scenario": {"clients": 4, "modalities": {"name": "n-of-m", "n": 2}}},
        r"n is 2, but there are 2 modalities \(image, audio\); use n below 2, or 'all'",
    ),
    "groups that do not add up": (
        {
            "scenario": {
                "clients": 4,
                "modalities": {"name": "groups", "groups": [{"clients": 3, "modalities": ["image"]}]},
            }
        },
        "the groups count 3 clients together, but the scenario has 4",
    ),
    # where things are
    "data root that is not there": ({"data.root": "/nowhere"}, r"data\.root: '/nowhere' is not a folder that exists"),
    "home of nobody": ({"data.root": "~nobody-at-all"}, r"data\.root: '~nobody-at-all' is not a folder that exists"),
    "endless name": ({"data.root": "a" * 5000}, r"data\.root: 'a+' is not a folder that exists"),
    "no GPU": ({"engine.device": "cuda"}, r"engine\.device: 'cuda', but torch finds no GPU here; choose auto or cpu"),
    # plugins
    "plugins that are no list": ({"plugins": "own.py"}, r"plugins: 'own\.py' is not allowed: write a list of files"),
    "plugin that is not there": ({"plugins": ["own.py"]}, r"plugins: .*own\.py: no such Python file"),
    "module that is not there": (
        {"plugins": ["not_there"]},
        "plugins: not_there: ModuleNotFoundError: No module named",
    ),
}


@pytest.mark.parametrize("kind", EXPERIMENTS)
def test_a_bad_experiment_is_refused_and_nothing_is_written(
    kind: str, tmp_path: Path, earlier: Path, before: dict[str, bytes]
) -> None:
    if kind == "no GPU" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    bad, message = EXPERIMENTS[kind]
    refused(written(tmp_path, bad), message, tmp_path / "out", earlier, before)


@pytest.mark.parametrize(
    ("path", "message"), [("none.yaml", r"none\.yaml: no such file"), ("", "cannot be read: .*Is a directory")]
)
def test_an_experiment_that_is_no_file_is_refused(tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(tmp_path / path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.lr", r"--set 'train\.lr': write it as key=value, for instance --set train\.lr=0\.1"),
        ("=3", "--set '=3': write it as key=value"),
        ("a..b=1", r"--set 'a\.\.b=1': write it as key=value"),
        ("train.lr=[", r"--set 'train\.lr=\[', line 1, column 2: not valid YAML"),
        ("name=2001-99-99", "--set 'name=2001-99-99': not valid YAML: month must be"),
        ("train={lr: 1, lr: 2}", "the key 'lr' is given twice"),
        ("seed.x=1", r"--set seed\.x: seed is not a section"),
        (
            "scenario.tasks.sets.0.clients=2",
            r"scenario\.tasks\.sets is a list, and a list can only be set whole: --set 'scenario\.tasks\.sets=\[",
        ),
        ("train.lr=fast", r"the embedded experiment: train\.lr: 'fast' is not allowed"),
    ],
)
def test_a_bad_setting_is_refused(setting: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.load(None, dict([config.read_setting(setting)]))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: HEADS.build("linnear", {}), r"unknown head 'linnear'; did you mean 'linear'\?"),
        (lambda: METHODS.build("fedprox", {"mu": -1}), "method 'fedprox': mu: -1 is not allowed: input should be"),
        (lambda: METHODS.build("fedavgm", {"momentun": 1}), "method 'fedavgm': momentun: .*; did you mean 'momentum'"),
        (lambda: PARTITIONS.build("natural", {}), "partition 'natural': field: is missing"),
    ],
)
def test_bad_options_given_from_python_are_a_users_mistake_too(build: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        build()


# -------------------------------------------------------------------------------------- files of data


def digits(place: Path) -> Path:
    """Write 40 training and 20 test images and labels as MNIST has them, compressed."""
    folder, draw = place / "sets" / "mnist", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for split, rows in (("train", 40), ("t10k", 20)):
        pixels, labels = draw.integers(0, 256, (rows, 28, 28), dtype=np.uint8), np.arange(rows, dtype=np.uint8) % 10
        images = struct.pack(">4i", 2051, rows, 28, 28) + pixels.tobytes()
        (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images, mtime=0))
        labelled = struct.pack(">2i", 2049, rows) + labels.tobytes()
        (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labelled, mtime=0))
    return place / "sets"


IMAGES, LABELS = "mnist/train-images-idx3-ubyte.gz", "mnist/train-labels-idx1-ubyte.gz"
Damage = Callable[[Path], object]


def cut(file: str) -> Damage:
    return lambda root: (root / file).write_bytes((root / file).read_bytes()[:-20])


def relabelled(root: Path) -> None:
    (root / LABELS).write_bytes(gzip.compress(struct.pack(">2i", 2049, 40) + bytes([*range(10)] * 3 + [7, 12] * 5)))


DIGITS: dict[str, tuple[Damage, str]] = {
    "none of the files": (
        lambda root: shutil.rmtree(root / "mnist"),
        "MNIST was not found under .*looked for mnist/train-images.* To get it, run `polyfed data fetch mnist`, or set",
    ),
    "one file missing": (
        lambda root: (root / LABELS).unlink(),
        r"train-labels-idx1-ubyte is missing.*data fetch mnist",
    ),
    "truncated gzip": (cut(IMAGES), r"train-images-idx3-ubyte\.gz: damaged or cut short"),
    "not what it says": (
        lambda root: shutil.copy(root / LABELS, root / IMAGES),
        r"train-images-idx3-ubyte\.gz: magic number 2049 is not that of idx images \(2051\)",
    ),
    "fewer labels than images": (
        lambda root: shutil.copy(root / "mnist/t10k-labels-idx1-ubyte.gz", root / LABELS),
        "holds 40 images but .* 20 labels",
    ),
    "label above nine": (relabelled, r"train-labels-idx1-ubyte\.gz: row 31 has the label 12, expected 0 to 9"),
}
ON_DIGITS: Changes = {"scenario": {"clients": 2}, "model": {"width": 4}}


@pytest.mark.parametrize("kind", DIGITS)
def test_damaged_files_of_a_dataset_are_named(
    kind: str, tmp_path: Path, earlier: Path, before: dict[str, bytes]
) -> None:
    damage, message = DIGITS[kind]
    root = digits(tmp_path)
    damage(root)
    file = written(tmp_path, {**ON_DIGITS, "data": {"name": "mnist", "root": str(root)}})
    refused(file, message, tmp_path / "out", earlier, before)


def test_files_that_are_sound_but_not_the_published_ones_are_found_by_their_checksum(tmp_path: Path) -> None:
    problems = check("mnist", digits(tmp_path))
    assert len(problems) == 4
    assert re.search(
        r"train-images-idx3-ubyte\.gz: sha256 of the decompressed bytes: expected ba89.*, got ", problems[0]
    )


def own_files(place: Path) -> Path:
    """Write a user's own folder: 24 samples of three numbers in a file each, and a class."""
    folder = place / "own"
    folder.mkdir()
    (folder / "dataset.yaml").write_text(
        "modalities: {points: {kind: vector, shape: [3]}}\ntasks: {side: {kind: classification, classes: 2}}\n"
    )
    rows = [f"{number}.npy,{number % 2}" for number in range(24)]
    (folder / "samples.csv").write_text("\n".join(["points,side", *rows, ""]))
    for number in range(24):
        np.save(folder / f"{number}.npy", np.full(3, number / 24))
    return folder


def rewritten(file: str, old: str, new: str) -> Damage:
    def damage(folder: Path) -> None:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new, 1))

    return damage


OWN: dict[str, tuple[Damage, str]] = {
    "no folder": (shutil.rmtree, r"dataset folder: path: '.*own' is not a folder that exists"),
    "no description": (lambda folder: (folder / "dataset.yaml").unlink(), r"dataset\.yaml: no such file"),
    "unknown key": (
        rewritten("dataset.yaml", "tasks", "task"),
        r"dataset\.yaml: task: unknown key 'task'; did you mean",
    ),
    "unknown kind": (rewritten("dataset.yaml", "vector", "smell"), r"points\.kind: 'smell' is not one of the choices"),
    "impossible date": (rewritten("dataset.yaml", "tasks", "name: 2001-99-99\ntasks"), "not valid YAML: month must be"),
    "unreadable table": (
        lambda folder: (folder / "samples.csv").write_bytes(b"\xff\xfe"),
        r"samples\.csv: cannot be r",
    ),
    "missing file": (
        rewritten("samples.csv", "7.npy", "70.npy"),
        r"line 9, column 'points': there is no file '70\.npy'",
    ),
    "file outside": (
        rewritten("samples.csv", "7.npy", "../x.npy"),
        r"line 9, column 'points': '\.\./x\.npy' lies outside",
    ),
    "label out of range": (rewritten("samples.csv", "7.npy,1", "7.npy,2"), r"line 9, .*: '2' is not a class.*: 0 to 1"),
    "wrong shape": (
        lambda folder: np.save(folder / "7.npy", np.zeros(4)),
        r"7\.npy: has the shape \[4\], but dataset\.yaml says \[3\] .*line 9, column 'points'",
    ),
    "pickled file": (
        lambda folder: np.save(folder / "7.npy", np.array([None] * 3)),
        r"7\.npy: is not a whole \.npy array",
    ),
}


def on_own_files(folder: Path) -> Changes:
    data = {"name": "folder", "path": str(folder)}
    return {"scenario": {"clients": 2, "validation": 0}, "model": {"width": 4}, "data": data}


@pytest.mark.parametrize("kind", OWN)
def test_bad_files_of_the_users_own_are_named(
    kind: str, tmp_path: Path, earlier: Path, before: dict[str, bytes]
) -> None:
    damage, message = OWN[kind]
    folder = own_files(tmp_path)
    damage(folder)
    refused(written(tmp_path, on_own_files(folder)), message, tmp_path / "out", earlier, before)


def test_nan_in_a_sample_is_named_when_its_file_is_read(tmp_path: Path) -> None:
    """Files are read when they are needed; a run that meets the NaN can be resumed once the file is mended."""
    folder = own_files(tmp_path)
    np.save(folder / "7.npy", np.array([0, np.nan, 0]))
    file = written(tmp_path, on_own_files(folder))
    with pytest.raises(UserError, match=r"own/7\.npy: holds NaN or an infinite value"):
        run(file, tmp_path / "out")
    assert set(contents(tmp_path / "out")) == {"experiment.yaml", "records.jsonl"}
    np.save(folder / "7.npy", np.zeros(3))
    assert run(file, tmp_path / "out", resume=True).summary["rounds"] == 1


# -------------------------------------------------------------------------------------- run folders


def file_in_place_of_a_folder(place: Path) -> Path:
    (place / "file").write_text("mine")
    return place / "file"


def folder_under_a_file(place: Path) -> Path:
    return file_in_place_of_a_folder(place) / "runs" / "a"


def folder_of_something_else(place: Path) -> Path:
    (place / "thesis").mkdir()
    (place / "thesis" / "chapter.tex").write_text("mine")
    return place / "thesis"


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        (file_in_place_of_a_folder, "file cannot be written: Not a directory"),
        (folder_under_a_file, "file/runs/a cannot be written: Not a directory"),
        (folder_of_something_else, "thesis is not empty and is no run folder; choose another --out"),
        (lambda place: place / ("x" * 300), "cannot be written: File name too long"),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_cannot_be_used_is_left_alone(
    folder: Callable[[Path], Path], message: str, overwrite: bool, tmp_path: Path
) -> None:
    out = folder(tmp_path)
    kept = contents(tmp_path)
    with pytest.raises(UserError, match=message):
        run(tiny(), out, overwrite=overwrite)
    assert contents(tmp_path) == kept


def test_a_run_that_is_there_is_not_touched_unasked(earlier: Path, before: dict[str, bytes]) -> None:
    with pytest.raises(UserError, match="holds a finished run; use --resume to go on with it or --overwrite to start"):
        run(tiny(), earlier)
    with pytest.raises(UserError, match="holds another experiment: seed was 3 and is now 4"):
        run(tiny(seed=4), earlier, resume=True)
    with pytest.raises(UserError, match="--resume and --overwrite exclude each other"):
        run(tiny(), earlier, resume=True, overwrite=True)
    with (
        claimed(earlier, resume=True, overwrite=False),
        pytest.raises(UserError, match="another polyfed process is running in this folder"),
    ):
        run(tiny(rounds=2), earlier, resume=True)
    assert contents(earlier) == before


@pytest.mark.parametrize("summary", [b"", b"[]", b"{", b'{"rounds": "many"}', b"\xff"])
def test_a_summary_that_is_none_is_named_and_can_be_overwritten(
    summary: bytes, earlier: Path, before: dict[str, bytes], tmp_path: Path
) -> None:
    folder = shutil.copytree(earlier, tmp_path / "run")
    (folder / "summary.json").write_bytes(summary)
    with pytest.raises(UserError, match=r"summary\.json (cannot be read|is not a summary)"):
        run(tiny(rounds=1), folder, resume=True)
    run(tiny(rounds=1), folder, overwrite=True)
    assert json.loads((folder / "summary.json").read_text())["digest"] == json.loads(before["summary.json"])["digest"]


# -------------------------------------------------------------------------------------- checkpoints and records


def head(change: Callable[[dict[str, Any]], object], *rounds: int) -> Damage:
    """Change the JSON of the checkpoints of these rounds."""

    def damage(folder: Path) -> None:
        for number in rounds:
            path = folder / "checkpoints" / f"round-{number:06d}" / "state.json"
            found = json.loads(path.read_text())
            change(found)
            path.write_text(json.dumps(found))

    return damage


def records(change: Callable[[bytes], bytes]) -> Damage:
    return lambda folder: (folder / "records.jsonl").write_bytes(change((folder / "records.jsonl").read_bytes()))


def both_cut(folder: Path) -> None:
    for path in folder.glob("checkpoints/*/state.safetensors"):
        path.write_bytes(path.read_bytes()[:100])


SAVED: dict[str, tuple[Damage, str]] = {
    "future format": (head(lambda h: h.update(format=99), 1), "checkpoint format 99; this version reads 2"),
    "other data": (head(lambda h: h["identity"].update(data="x"), 1), "belongs to another run: data differ"),
    "all damaged": (both_cut, r"no usable checkpoint\..*round-000001.*SHA-256.*round-000000"),
    "entries missing": (
        head(lambda h: h.pop("state"), 0, 1),
        r"no usable checkpoint\..*state\.json is damaged: KeyError",
    ),
    "entries of another kind": (head(lambda h: h.update(personal=3), 0, 1), r"state\.json is damaged: TypeError"),
    "state of another method": (
        head(lambda h: h["state"].pop("memory"), 1),
        r"round-000001: expected the fields \['companion', 'memory', 'parameters', 'selection'\]",
    ),
    "progress of another version": (
        head(lambda h: h["progress"].update(mood="good"), 1),
        "checkpoint of round 1 holds another progress .*'mood'.*--overwrite",
    ),
    "records missing": (
        lambda folder: (folder / "records.jsonl").unlink(),
        r"records\.jsonl is missing, and the run cannot be resumed; put back the file",
    ),
    "records cut short": (records(lambda text: text[: len(text) // 2]), r"records\.jsonl, line \d+: is not a record"),
    "records damaged": (records(lambda text: text.replace(b"{", b"(", 1)), r"records\.jsonl, line 1: is not a record"),
    "records of zeros": (records(lambda text: bytes(len(text))), r"records\.jsonl, line 1: .*--overwrite"),
}


@pytest.mark.parametrize("kind", SAVED)
def test_a_run_that_cannot_be_resumed_says_why_and_is_left_as_it_is(kind: str, earlier: Path, tmp_path: Path) -> None:
    damage, message = SAVED[kind]
    folder = shutil.copytree(earlier, tmp_path / "run")
    damage(folder)
    kept = contents(folder)
    with pytest.raises(UserError, match=message):
        run(tiny(rounds=2), folder, resume=True)
    now = contents(folder)
    assert {name for name in now if now[name] != kept[name]} <= {"experiment.yaml"}
    assert now.keys() == kept.keys()
    assert run(tiny(rounds=2), folder, overwrite=True).summary["rounds"] == 2


def test_one_damaged_checkpoint_costs_a_round_and_nothing_else(earlier: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(earlier, tmp_path / "run")
    head(lambda found: found.update(sha256="0"), 1)(folder)
    resumed = run(tiny(rounds=2), folder, resume=True)
    assert resumed.summary["digest"] == run(tiny(rounds=2)).summary["digest"]


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A disk that is full for files whose name matches one of the patterns in this list."""
    patterns: list[str] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        name = Path(f"/proc/self/fd/{handle}").readlink().name
        if any(fnmatch(name, pattern) for pattern in patterns):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    yield patterns


@pytest.mark.parametrize(
    "file", ["experiment.yaml", "records.jsonl", "state.*", "client-*-round-000002*", "summary.json"]
)
def test_a_full_disk_costs_nothing_that_was_saved(file: str, tmp_path: Path, full: list[str]) -> None:
    """``local`` keeps personal states, so that all kinds of files are written."""
    folder, longer = tmp_path / "run", tiny(rounds=2, method__name="local")
    run(tiny(rounds=1, method__name="local"), folder)
    kept = contents(folder)
    full.append(f"*{file}*")
    with pytest.raises(UserError, match="the disk is full; what was saved before is intact"):
        run(longer, folder, resume=True)
    assert not drafts(folder)
    now = contents(folder)
    saved = {name: content for name, content in kept.items() if name.startswith("checkpoints/round-000001")}
    assert saved.items() <= now.items()
    assert now["records.jsonl"].startswith(kept["records.jsonl"])
    assert now["summary.json"] == kept["summary.json"]
    full.clear()
    assert run(longer, folder, resume=True).summary["digest"] == run(longer).summary["digest"]


# -------------------------------------------------------------------------------------- replies


def parameters(change: Callable[[torch.Tensor], object]) -> Callable[[Reply], Any]:
    def damaged(reply: Reply) -> Reply:
        tensors = dict(reply.tensors["parameters"])
        return replace(reply, tensors={"parameters": {**tensors, min(tensors): change(tensors[min(tensors)])}})  # type: ignore[dict-item]

    return damaged


HOSTILE: dict[str, tuple[Callable[[Reply], Any], str, str]] = {
    "bytes": (lambda r: b"\x80\x04K\x01.", "message", "5 bytes are too few for a message"),
    "no tables": (lambda r: Reply(1, None, None), "tensors", "expected a table by name, got None"),  # type: ignore[arg-type]
    "a list for a group": (lambda r: Reply(1, {"parameters": []}), r"tensors\.parameters", r"got \[\]"),  # type: ignore[dict-item]
    "names that are no texts": (lambda r: Reply(1, {"parameters": {3: 4}}), r"tensors\.parameters", "by name"),  # type: ignore[dict-item]
    "true for a count": (lambda r: replace(r, examples=True), "examples", "claims True training samples"),
    "more samples than it has": (
        lambda r: replace(r, examples=10**9),
        "examples",
        "claims 1000000000 training samples",
    ),
    "endless number": (lambda r: replace(r, numbers={"loss": 10**400}), r"numbers\.loss", "is not a finite number"),
    "a text for a number": (lambda r: replace(r, numbers={"loss": "0"}), r"numbers\.loss", "'0' is not a finite"),  # type: ignore[dict-item]
    "tensor without values": (parameters(lambda t: t.to("meta")), "encoder", "is not an ordinary tensor"),
    "sparse tensor": (parameters(lambda t: t.to_sparse()), "encoder", "is not an ordinary tensor"),
    "values out of this world": (parameters(lambda t: t + 1e9), "encoder", r"norm .* is above the limit"),
    "not a number": (parameters(lambda t: t * float("nan")), "encoder", "NaN or infinite; if training diverged, lower"),
    "other type": (parameters(lambda t: t.to(torch.complex64)), "encoder", "dtype torch.complex64, expected"),
    "lost": (lambda r: None, "reply", "lost on the way"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_reply_is_refused_by_name_and_the_run_goes_on(kind: str) -> None:
    damage, component, reason = HOSTILE[kind]

    def deliver(round_number: int, client: int, reply: Reply) -> Any:
        return damage(reply) if client == 1 else reply

    outcome = build_world(tiny(rounds=1)).loop(deliver=deliver).run()
    (refusal,) = outcome.progress.refused
    assert refusal["client"] == 1
    assert re.match(component, refusal["component"])
    assert re.search(reason, refusal["reason"])


def test_a_lost_quorum_ends_the_run_with_the_names_of_those_refused(tmp_path: Path) -> None:
    def deliver(round_number: int, client: int, reply: Reply) -> Any:
        return None if client else reply

    with pytest.raises(
        RunError,
        match=r"round 1: only 1 of 4 replies were sound, and the quorum \(engine\.quorum\) is 0\.5\. "
        r"client 1: reply: lost on the way; client 2: ",
    ):
        build_world(tiny()).loop(tmp_path, deliver=deliver).run()
    assert not drafts(tmp_path)


@pytest.mark.parametrize("method", ["fedavg", "local", "centralized"])
@pytest.mark.parametrize("batch_size", [64, 10**30])
def test_training_that_diverges_names_clients_and_the_remedy(method: str, batch_size: int) -> None:
    """With one step per round the loss is finite and only the parameters are not."""
    changes = {"method__name": method, "train__lr": 1e30, "train__batch_size": batch_size}
    with pytest.raises(RunError, match=r"round 1: only 0 of \d .* client 0: .*"):
        run(tiny(**changes))


def test_a_server_that_diverges_is_noticed_when_its_model_is_used() -> None:
    with pytest.raises(
        RunError, match=r"round 1: client 0, task '\w+': loss of its \w+ samples is \w+; .*lower train\.lr"
    ):
        run(tiny(method={"name": "fedavgm", "server_lr": 1e38}, rounds=1))


# -------------------------------------------------------------------------------------- the user's own parts


@pytest.fixture
def registries() -> Iterator[None]:
    """Forget what plugins register."""
    kept = [(registry, dict(registry._builders), dict(registry._options)) for registry in (ENCODERS, METHODS)]
    yield
    for registry, builders, options in kept:
        registry._builders, registry._options = builders, options  # type: ignore[assignment]


ENCODER = """\
from torch import nn
from polyfed.model.parts import ENCODERS

def own(modality, width{options}):
    return {module}

ENCODERS.add("{name}", own)
"""
FLAT = "nn.Sequential(nn.Flatten(), nn.Linear(64, {}))"


def encoder(module: str, *, name: str = "own", options: str = "") -> str:
    return ENCODER.format(module=module, name=name, options=options)


PLUGINS: dict[str, tuple[str, str]] = {
    "syntax": ("def own(:\n", r"plugins: .*own\.py: SyntaxError: invalid syntax \(own\.py, line 1\)"),
    "raises": ("x = 1\nraise OSError('no microphone')\n", r"plugins: .*own\.py, line 2: OSError: no microphone"),
    "name taken": (encoder("None", name="mlp"), r"own\.py, line 7: UserError: encoder 'mlp' is registered already"),
    "bad name": (encoder("None", name="My Own"), r"encoder name 'My Own': use lower-case letters"),
    "option without a type": (encoder("None", options=", *, depth=3"), "encoder 'own': .*option 'depth' has no type"),
    "option called name": (encoder("None", options=", *, name: str = ''"), "an option cannot be called 'name'"),
    "option of a strange type": (encoder("None", options=", *, unit: nn.Module = None"), "encoder 'own': its options"),
    "statistics": (
        encoder("nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, width))"),
        r"component 'encoder\.image' keeps statistics .*running_mean.*BatchNorm.* Use GroupNorm or LayerNorm",
    ),
    "wrong shape": (encoder(FLAT.format(5)), r"'encoder\.image' returns shape \(2, 5\) for 2 samples, not \(2, 8\)"),
    "no tensor": (encoder("nn.LSTM(8, width)"), r"component 'encoder\.image' (fails|returns)"),
    "no module": (encoder("None"), r"component 'encoder\.image' fails for an input of shape \(2, 1, 8, 8\): Attribute"),
    "does not fit": (
        encoder("nn.Linear(3, width)"),
        r"component 'encoder\.image' fails for an input of shape .*: Runtime",
    ),
}


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize("kind", PLUGINS)
def test_a_faulty_plugin_is_a_message_that_names_it(
    kind: str, tmp_path: Path, earlier: Path, before: dict[str, bytes]
) -> None:
    text, message = PLUGINS[kind]
    (tmp_path / "own.py").write_text(text)
    file = written(tmp_path, {"plugins": ["own.py"], "model.encoders.image": {"name": "own"}})
    with pytest.raises(UserError, match=message):
        run(file, tmp_path / "out")
    assert not contents(tmp_path / "out")
    assert contents(earlier) == before


@pytest.mark.usefixtures("registries")
def test_two_plugins_of_one_name_in_two_folders_are_two(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "own.py").write_text(encoder(FLAT.format("width"), name=name))
    config.load(written(tmp_path, {"plugins": ["one/own.py", "two/own.py"]}))
    assert {"one", "two"} <= set(ENCODERS.names())


@pytest.mark.usefixtures("registries")
def test_a_method_without_its_parts_is_told_what_is_missing(tmp_path: Path) -> None:
    METHODS.add("half", lambda context: object())
    with pytest.raises(UserError, match=r"method 'half': object lacks steps, begin, enrol, round, deploy"):
        run(written(tmp_path, {"method.name": "half"}), tmp_path / "out")
    assert not contents(tmp_path / "out")


@dataclass(frozen=True)
class Unsavable:
    """The state of a method whose author forgot that runs are saved."""

    generator: object


def test_a_method_whose_state_cannot_be_saved_is_told_where(tmp_path: Path) -> None:
    world = build_world(tiny())

    class Forgetful:
        def __getattr__(self, name: str) -> Any:
            return getattr(world.method, name)

        def begin(self, *arguments: Any) -> Unsavable:
            return Unsavable(np.random.default_rng(0))

        def deploy(self, state: Unsavable, card: Any) -> Any:
            return world.method.deploy(world.method.begin(world.architecture.initial(0), {}), card)

    loop: Loop = replace(world, method=Forgetful()).loop(tmp_path)
    with pytest.raises(
        UserError, match=r"state at /generator holds a Generator, which cannot be saved. Choices: tensors"
    ):
        loop.run()
    assert not (tmp_path / "checkpoints").exists()


# -------------------------------------------------------------------------------------- the command line

COMMANDS: dict[str, tuple[Bad, tuple[str, ...], int, str]] = {
    "unknown key": ({"metod": 1}, (), 2, "error: .*metod: unknown key 'metod'; did you mean 'method'"),
    "scenario": ({SETS: [["image"]] * 4}, ("--overwrite",), 2, "error: no client holds the modality 'audio'"),
    "data": ({"data.root": "/nowhere"}, ("--overwrite",), 2, "error: data.root: '/nowhere' is not a folder"),
    "folder": ({}, (), 2, "error: .*holds a finished run already"),
    "another experiment": ({"seed": 4}, ("--resume",), 2, "error: .*holds another experiment: seed was 3"),
    "quorum": ({"train.lr": 1e20}, ("--out", "new"), 1, r"the run failed: round 1: only 0 of 4 .* client 0: "),
}


SOURCE = str(Path(polyfed.__file__).parents[1])


def test_the_command_line_tells_mistakes_in_one_message_and_ends_with_code_2(
    tmp_path: Path, earlier: Path, before: dict[str, bytes]
) -> None:
    """All at once, for starting Python takes longest."""
    processes = {}
    for number, (kind, (bad, options, _, _)) in enumerate(COMMANDS.items()):
        place = tmp_path / str(number)
        shutil.copytree(earlier, place / "run")
        command = [sys.executable, "-m", "polyfed", "run", str(written(place, bad)), "--quiet", "--out", "run"]
        processes[kind] = subprocess.Popen(
            [*command, *options],
            cwd=place,
            env={**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1", "POLYFED_DEBUG": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    for kind, (_, _, code, message) in COMMANDS.items():
        output, errors = processes[kind].communicate(timeout=120)
        assert (processes[kind].returncode, output) == (code, ""), (kind, errors)
        assert re.match(message, errors), (kind, errors)
        assert "Traceback" not in errors
        assert len(errors.splitlines()) == 1, (kind, errors)
    assert all(contents(folder) == before for folder in tmp_path.glob("*/run"))
    assert not drafts(tmp_path)


@pytest.mark.usefixtures("registries")
def test_a_run_is_not_resumed_with_another_plugin(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(encoder(FLAT.format("width")))
    changes = {"plugins": ["own.py"], "model.encoders.image": {"name": "own"}}
    run(written(tmp_path, changes), tmp_path / "out")
    (tmp_path / "own.py").write_text(encoder(FLAT.format("width")) + "# another thought\n")
    file = written(tmp_path, {**changes, "rounds": 2})
    with pytest.raises(UserError, match="this checkpoint belongs to another run: plugins differ"):
        run(file, tmp_path / "out", resume=True)
