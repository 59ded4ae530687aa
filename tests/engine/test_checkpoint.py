from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from polyfed.engine.checkpoint import Checkpoints, digest_of, write_atomically
from polyfed.errors import UserError
from polyfed.method.averaging import AveragingState

IDENTITY = {"seed": "1", "data": "abc"}


def state(value: float) -> AveragingState:
    shared = torch.full((2,), value)
    return AveragingState({"head.weight": shared, "tied.weight": shared}, {"momentum": {"head.weight": shared}}, {})


def written(folder: Path) -> Checkpoints:
    checkpoints = Checkpoints(folder, IDENTITY)
    for number in (1, 2, 3):
        personal = {number: {"parameters": {"own": torch.full((1,), float(number))}}}
        checkpoints.write(number, state(number), personal, {"round": number})
    return checkpoints


def test_the_newest_checkpoint_comes_back_with_every_clients_personal_state(tmp_path: Path) -> None:
    written(tmp_path)
    saved = Checkpoints(tmp_path, IDENTITY).latest(AveragingState)
    assert saved is not None
    assert (saved.round, saved.progress) == (3, {"round": 3})
    assert torch.equal(saved.state.parameters["head.weight"], torch.full((2,), 3.0))
    assert {k: float(groups["parameters"]["own"]) for k, groups in saved.personal.items()} == {1: 1.0, 2: 2.0, 3: 3.0}


def test_old_checkpoints_are_dropped_and_no_draft_is_left(tmp_path: Path) -> None:
    written(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["personal", "round-000002", "round-000003"]


def personal_files(folder: Path) -> list[str]:
    return sorted(path.name.removesuffix(".safetensors") for path in (folder / "personal").iterdir())


def test_personal_files_live_as_long_as_a_checkpoint_refers_to_them(tmp_path: Path) -> None:
    """Of two clients, 0 changes every round and 1 only in the first; the two newest checkpoints can be read."""
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    for number in range(1, 6):
        changing = (0, 1) if number == 1 else (0,)
        changed = {client: {"parameters": {"own": torch.full((1,), float(number))}} for client in changing}
        checkpoints.write(number, state(number), changed, {})
        if number == 3:  # as after a kill: another object goes on
            checkpoints = Checkpoints(tmp_path, IDENTITY)
            assert checkpoints.latest(AveragingState) is not None
    assert personal_files(tmp_path) == [
        "client-000000-round-000004",
        "client-000000-round-000005",
        "client-000001-round-000001",
    ]
    for number in (5, 4):
        saved = Checkpoints(tmp_path, IDENTITY).latest(AveragingState)
        assert saved is not None and saved.round == number
        assert float(saved.personal[0]["parameters"]["own"]) == number
        shutil.rmtree(tmp_path / f"round-{number:06d}")


def test_a_round_written_again_after_damage_keeps_its_personal_files(tmp_path: Path) -> None:
    written(tmp_path)
    hurt(tmp_path / "round-000003" / "state.safetensors", "flipped")
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    assert checkpoints.latest(AveragingState) is not None
    for number in (3, 4):
        checkpoints.write(number, state(number), {number: {"parameters": {"own": torch.ones(1)}}}, {})
    saved = Checkpoints(tmp_path, IDENTITY).latest(AveragingState)
    assert saved is not None and set(saved.personal) == {1, 2, 3, 4}


def test_an_empty_folder_holds_no_checkpoint(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none", IDENTITY).latest(AveragingState) is None


@pytest.mark.parametrize("file", ["state.json", "state.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "flipped"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, file: str, damage: str) -> None:
    written(tmp_path)
    hurt(tmp_path / "round-000003" / file, damage)
    saved = Checkpoints(tmp_path, IDENTITY).latest(AveragingState)
    assert saved is not None and saved.round == 2


def hurt(path: Path, damage: str) -> None:
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.write_bytes(bytes([content[0] ^ 0xFF]) + content[1:])


def test_nothing_but_damaged_checkpoints_is_an_error_that_names_them(tmp_path: Path) -> None:
    written(tmp_path)
    for number in (2, 3):
        hurt(tmp_path / f"round-00000{number}" / "state.safetensors", "truncated")
    with pytest.raises(UserError, match=r"no usable checkpoint.*round-000003.*SHA-256.*round-000002"):
        Checkpoints(tmp_path, IDENTITY).latest(AveragingState)


def test_another_runs_checkpoint_is_refused_with_what_differs(tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(UserError, match="belongs to another run: data differ"):
        Checkpoints(tmp_path, {**IDENTITY, "data": "other"}).latest(AveragingState)


def test_a_foreign_format_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / "round-000003" / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(UserError, match="checkpoint format 99; this version reads 2"):
        Checkpoints(tmp_path, IDENTITY).latest(AveragingState)


def test_a_personal_file_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    written(tmp_path / "run")
    shutil.copytree(tmp_path / "run" / "personal", tmp_path / "outside")
    path = tmp_path / "run" / "round-000003" / "state.json"
    head = json.loads(path.read_text())
    head["personal"] = [[f"../../outside/{client}", *entry] for client, *entry in head["personal"]]
    path.write_text(json.dumps(head))
    shutil.rmtree(tmp_path / "run" / "personal")
    shutil.rmtree(tmp_path / "run" / "round-000002")
    with pytest.raises(UserError, match="no usable checkpoint"):
        Checkpoints(tmp_path / "run", IDENTITY).latest(AveragingState)


def test_a_full_disk_leaves_the_last_checkpoint_usable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = written(tmp_path)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="the disk is full; what was saved before is intact"):
            checkpoints.write(4, state(4), {}, {})
    saved = Checkpoints(tmp_path, IDENTITY).latest(AveragingState)
    assert saved is not None and saved.round == 3


def test_every_name_is_on_the_disk_before_a_checkpoint_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut may undo a rename that comes after it, but not leave a checkpoint without its files."""
    done: list[str] = []
    sync, rename = os.fsync, os.rename

    def synced(handle: int) -> None:
        done.append(Path(f"/proc/self/fd/{handle}").readlink().relative_to(tmp_path).as_posix())
        sync(handle)

    def renamed(source: Path, target: Path) -> None:
        done.append("renamed")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    Checkpoints(tmp_path / "saved", IDENTITY).write(1, state(1), {0: {"parameters": {"own": torch.ones(1)}}}, {})
    folders = [name for name in done if not name.endswith((".json", ".safetensors"))]
    assert folders == [".", "saved/personal", "saved/.draft-000001", "renamed", "saved"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    write_atomically(path, b"old")

    def full(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"summary\.json: cannot be written: Input/output error; .* intact"):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_the_digest_depends_on_names_shapes_dtypes_and_bits_but_not_on_order() -> None:
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0])
    whole = digest_of({"a": a, "b": b})
    assert digest_of({"b": b, "a": a}) == whole
    others = [{"a": a, "c": b}, {"a": a.view(1, 2), "b": b}, {"a": a.double(), "b": b}, {"a": a + 1e-7, "b": b}]
    assert len({whole, *map(digest_of, others)}) == 5
