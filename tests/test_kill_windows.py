"""A kill between two operations on the file system: at the start, in the middle, at the end, while overwriting."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polyfed.experiment import running
from polyfed.experiment.config import Experiment
from polyfed.experiment.running import Run, run
from tests.worlds import tiny

OPERATIONS = ("replace", "rename", "mkdir", "unlink", "rmdir", "fsync")
STRIDE = 5  # every fifth operation: all of them would take minutes


def experiment() -> Experiment:
    return tiny(rounds=2, baseline="local", method__name="fedadam", train__batch_size=256)


def killed_at(number: int, work: Callable[[], Any]) -> bool:
    """Do the work in a child process that dies, as by kill -9, before its n-th operation; whether it died."""
    child = os.fork()
    if child == 0:
        counter = itertools.count(1)  # of the training and of the thread that writes checkpoints

        def dying(operation: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*arguments: Any, **options: Any) -> Any:
                if next(counter) == number:
                    os._exit(9)
                return operation(*arguments, **options)

            return counted

        for name in OPERATIONS:
            setattr(os, name, dying(getattr(os, name)))
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 9), f"operation {number}: the run failed instead of dying"
    return code == 9


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(experiment(), tmp_path_factory.mktemp("whole") / "run")


def assert_whole(folder: Path, whole: Run) -> None:
    done = run(experiment(), folder, resume=True)
    assert whole.folder is not None
    for key in ("digest", "personal_digest", "tasks", "bytes", "rounds"):
        assert done.summary[key] == whole.summary[key], key
    assert names(folder) == names(whole.folder)
    for run_folder in (folder, folder / "baseline"):
        assert_tidy(run_folder / "checkpoints")


def names(folder: Path) -> list[str]:
    """Return what is there, but for the checkpoints: which rounds have one depends on the disk's speed."""
    found = (path.relative_to(folder) for path in folder.rglob("*"))
    return sorted(path.as_posix() for path in found if "checkpoints" not in path.parts[:-1])


def assert_tidy(checkpoints: Path) -> None:
    """The last round has a checkpoint, at most one other is kept, and there is no file that neither refers to."""
    heads = {path.name: json.loads((path / "state.json").read_bytes()) for path in checkpoints.glob("round-*")}
    assert max(heads) == "round-000002" and len(heads) <= 2
    needed = {
        f"client-{client:06d}-round-{number:06d}.safetensors"
        for head in heads.values()
        for client, number, _ in head["personal"]
    }
    assert {path.name for path in (checkpoints / "personal").glob("*")} == needed
    assert {path.name for path in checkpoints.iterdir()} - {"personal"} == set(heads)


def test_a_run_killed_anywhere_is_resumed_to_the_same_end(tmp_path: Path, whole: Run) -> None:
    number, died = 1, True
    while died:
        folder = tmp_path / str(number)
        died = killed_at(number, lambda folder=folder: run(experiment(), folder))  # type: ignore[misc]
        assert_whole(folder, whole)
        number += STRIDE
    assert number > 60


def test_an_overwrite_killed_anywhere_can_be_repeated_or_resumed(tmp_path: Path, whole: Run) -> None:
    assert whole.folder is not None
    for number in range(1, 40, STRIDE):
        for again in ("overwrite", "resume"):
            folder = tmp_path / f"{number}-{again}"
            shutil.copytree(whole.folder, folder)
            assert killed_at(number, lambda folder=folder: run(experiment(), folder, overwrite=True))  # type: ignore[misc]
            if again == "overwrite":
                run(experiment(), folder, overwrite=True)
            assert_whole(folder, whole)


def test_a_report_that_is_missing_is_written(tmp_path: Path, whole: Run) -> None:
    assert whole.folder is not None
    folder = tmp_path / "run"
    shutil.copytree(whole.folder, folder)
    (folder / "report.html").unlink()
    assert_whole(folder, whole)


def test_no_report_of_fewer_rounds_outlives_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = experiment().with_({"rounds": 1, "baseline": None})
    run(short, tmp_path)
    before = (tmp_path / "report.html").read_bytes()

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(running, "write_report", killed)
        with pytest.raises(KeyboardInterrupt):
            run(short.with_({"rounds": 2}), tmp_path, resume=True)
    run(short.with_({"rounds": 2}), tmp_path, resume=True)
    assert (tmp_path / "report.html").read_bytes() != before


def test_a_folder_in_which_nothing_was_begun_counts_as_empty(tmp_path: Path, whole: Run) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".lock").touch()
    (folder / ".experiment.yaml.draft").write_text("half")
    run(experiment(), folder)
    assert_whole(folder, whole)
