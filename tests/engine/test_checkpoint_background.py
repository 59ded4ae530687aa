"""Checkpoints that are written beside the training, seen from a whole run."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from polyfed.engine.background import NAME
from polyfed.engine.checkpoint import Checkpoints
from polyfed.engine.loop import Loop
from polyfed.errors import UserError
from polyfed.experiment.world import build_world
from tests.worlds import tiny, train

LOST = {(1, 0), (2, 1), (3, 2)}


def lost(round_number: int, client: int, reply: Any) -> Any:
    return None if (round_number, client) in LOST else reply


def test_a_slow_disk_costs_checkpoints_but_each_is_of_one_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first checkpoint is held up until the last round: it must not see what came after it."""
    last_round = threading.Event()
    seen: list[tuple[int, Mapping[str, Any]]] = []
    write = Checkpoints.write

    def slow(self: Checkpoints, number: int, state: Any, changed: Any, progress: Mapping[str, Any]) -> None:
        assert last_round.wait(60)
        seen.append((number, progress))
        write(self, number, state, changed, progress)
        shutil.copytree(folder, tmp_path / f"at-{number}")

    def watch(record: Mapping[str, Any]) -> None:
        if record["kind"] == "round" and record["round"] == 4:
            last_round.set()

    experiment, folder = tiny(rounds=4, method__name="local"), tmp_path / "run"
    folder.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "write", slow)
        whole = build_world(experiment).loop(folder, [watch], deliver=lost).run()
    assert [(number, progress["round"], len(progress["refused"])) for number, progress in seen] in (
        [(0, 0, 0), (3, 3, 3), (4, 4, 3)],
        [(0, 0, 0), (4, 4, 3)],
    )
    for number, _ in seen:
        resumed = train(experiment, tmp_path / f"at-{number}", resume=True, deliver=lost)
        assert (resumed.personal_digest, resumed.digest) == (whole.personal_digest, whole.digest)
        assert resumed.progress.refused == whole.progress.refused
        assert resumed.progress.bytes == whole.progress.bytes


def test_a_disk_that_fills_up_ends_the_run_with_a_clear_error_and_it_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = threading.get_ident()
    sync, left = os.fsync, 40

    def filling(handle: int) -> None:
        nonlocal left
        if threading.get_ident() != training:
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    experiment = tiny(rounds=30, method__name="local", train__batch_size=256)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", filling)
        with pytest.raises(UserError, match="the disk is full; what was saved before is intact"):
            train(experiment, tmp_path)
    assert NAME not in {thread.name for thread in threading.enumerate()}
    assert train(experiment, tmp_path, resume=True).personal_digest == train(experiment).personal_digest


def test_an_interrupted_run_still_finishes_the_checkpoints_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Loop, *arguments: Any) -> None:
        if arguments[2].round == 2:
            raise KeyboardInterrupt
        save(self, *arguments)

    save = Loop._save
    with monkeypatch.context() as patched:
        patched.setattr(Loop, "_save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(tiny(), tmp_path)
    assert NAME not in {thread.name for thread in threading.enumerate()}
    assert max(path.name for path in (tmp_path / "checkpoints").glob("round-*")) == "round-000001"
    assert not list((tmp_path / "checkpoints").glob(".draft-*"))
    assert train(tiny(), tmp_path, resume=True).digest == train(tiny()).digest
