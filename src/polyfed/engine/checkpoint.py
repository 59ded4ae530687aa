"""Checkpoints: one folder per round, written beside its final place and renamed into it.

A reader therefore sees a whole checkpoint or none. ``state.json`` holds the skeleton and the SHA-256 of each tensor
file; tensors are safetensors. Personal states are one file per client, kept as long as a checkpoint refers to them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from polyfed.engine.tree import pack, unpack
from polyfed.errors import UserError, writing
from polyfed.method.protocol import Groups
from polyfed.scenario.federation import ClientId

FORMAT = 1
KEEP = 2

S = TypeVar("S")


@dataclass(frozen=True)
class Saved(Generic[S]):
    """What a checkpoint holds: the server's state, personal states by client, and the run's own progress (JSON)."""

    round: int
    state: S
    personal: dict[ClientId, Groups]
    progress: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run. ``identity`` tells runs apart: another run's checkpoint is refused."""

    def __init__(self, folder: Path, identity: Mapping[str, str]) -> None:
        self.folder = folder
        self.identity = dict(identity)
        self._personal_files: dict[ClientId, dict[str, Any]] = {}

    def write(
        self, round_number: int, state: Any, changed: Mapping[ClientId, Groups], progress: Mapping[str, Any]
    ) -> None:
        """Save a round; ``changed`` are the personal states that differ from the last checkpoint.

        Raises UserError where that is impossible (a full disk, say); then the checkpoints before are as they were.
        """
        draft = self.folder / f".draft-{round_number:06d}"
        added: list[Path] = []
        with writing(self.folder):
            try:
                shutil.rmtree(draft, ignore_errors=True)
                self._begin()
                draft.mkdir()
                files = self._write_personal(round_number, changed, added)
                self._write_head(draft, round_number, state, files, progress)
                _sync(draft)
                target = self.folder / _name(round_number)
                shutil.rmtree(target, ignore_errors=True)
                draft.rename(target)
            except BaseException:
                shutil.rmtree(draft, ignore_errors=True)
                _remove(added)
                raise
            _sync(self.folder)
        self._personal_files = files
        self._tidy()

    def _begin(self) -> None:
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True)
            _sync(self.folder.parent)  # for itself and the records, whose names would else be lost in a power cut

    def _write_personal(
        self, round_number: int, changed: Mapping[ClientId, Groups], added: list[Path]
    ) -> dict[ClientId, dict[str, Any]]:
        """Write the personal states that changed and return where all are; ``added`` gets each file as it is begun."""
        files = dict(self._personal_files)
        personal = self.folder / "personal"
        if changed:
            personal.mkdir(exist_ok=True)
        for client, groups in changed.items():
            added.append(personal / f"client-{client:06d}-round-{round_number:06d}.safetensors")
            skeleton, digest = _write_tensors(added[-1], groups)
            files[client] = {"file": added[-1].name, "sha256": digest, "skeleton": skeleton}
        if changed:
            _sync(personal)
        return files

    def _write_head(
        self,
        draft: Path,
        round_number: int,
        state: Any,
        files: Mapping[ClientId, dict[str, Any]],
        progress: Mapping[str, Any],
    ) -> None:
        skeleton, digest = _write_tensors(draft / "state.safetensors", state)
        head = {
            "format": FORMAT,
            "round": round_number,
            "identity": self.identity,
            "state": skeleton,
            "sha256": digest,
            "personal": [[client, entry] for client, entry in sorted(files.items())],
            "progress": dict(progress),
        }
        _write(draft / "state.json", json.dumps(head).encode())

    def latest(self, state_type: type[S]) -> Saved[S] | None:
        """Read the newest whole checkpoint, None if there is none.

        A damaged one is passed over for the one before it; all damaged, or one of another run, is an error.
        """
        problems = []
        for path in sorted(self.folder.glob("round-*"), reverse=True):
            try:
                saved = self._read(path, state_type)
            except DamagedCheckpointError as error:
                problems.append(str(error))
            else:
                self._tidy()  # a kill may have come between a checkpoint and its tidying
                return saved
        if problems:
            raise UserError(f"{self.folder}: no usable checkpoint. {'; '.join(problems)}")
        return None

    def _read(self, path: Path, state_type: type[S]) -> Saved[S]:
        head = _read_head(path / "state.json")
        if head.get("format") != FORMAT:
            raise UserError(f"{path}: checkpoint format {head.get('format')!r}; this version reads {FORMAT}")
        differing = [key for key, value in self.identity.items() if head.get("identity", {}).get(key) != value]
        if differing:
            raise UserError(
                f"{path}: this checkpoint belongs to another run: {', '.join(differing)} differ. "
                "Resume with the experiment it was started with, or use --overwrite"
            )
        try:
            return self._unpacked(head, path, state_type)
        except (LookupError, TypeError, ValueError) as error:
            raise DamagedCheckpointError(
                f"{path / 'state.json'} is damaged: {type(error).__name__} {error} where its entries are read"
            ) from error

    def _unpacked(self, head: Mapping[str, Any], path: Path, state_type: type[S]) -> Saved[S]:
        state = unpack(state_type, head["state"], _read_tensors(path / "state.safetensors", head["sha256"]), str(path))
        entries = {int(client): entry for client, entry in head["personal"]}
        personal = {
            client: unpack(
                Groups,
                entry["skeleton"],
                _read_tensors(self.folder / "personal" / Path(entry["file"]).name, entry["sha256"]),
                f"{path}: client {client}",
            )
            for client, entry in entries.items()
        }
        self._personal_files = entries
        return Saved(int(head["round"]), state, personal, dict(head["progress"]))

    def _tidy(self) -> None:
        """Drop checkpoints but the newest, and personal files that none of these refers to."""
        kept = sorted(self.folder.glob("round-*"))[-KEEP:]
        for path in [*self.folder.glob("round-*"), *self.folder.glob(".draft-*")]:
            if path not in kept:
                shutil.rmtree(path, ignore_errors=True)
        needed = {entry["file"] for entry in self._personal_files.values()}
        for path in kept[:-1]:
            with suppress(DamagedCheckpointError, KeyError, TypeError):
                needed |= {entry["file"] for _, entry in _read_head(path / "state.json")["personal"]}
        for path in (self.folder / "personal").glob("*.safetensors"):
            if path.name not in needed:
                path.unlink(missing_ok=True)


class DamagedCheckpointError(UserError):
    """A checkpoint that is not whole."""


def digest_of(parameters: Mapping[str, Tensor]) -> str:
    """SHA-256 over tensors by sorted name: name, dtype, shape and bytes of each."""
    total = hashlib.sha256()
    for name in sorted(parameters):
        value = parameters[name].detach().cpu().contiguous()
        total.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part; raises UserError if it cannot."""
    draft = path.with_name(f".{path.name}.draft")
    with writing(path):
        try:
            _write(draft, content)
            draft.replace(path)
        except BaseException:
            _remove([draft])
            raise
        _sync(path.parent)


def _name(round_number: int) -> str:
    return f"round-{round_number:06d}"


def _write_tensors(path: Path, value: Any) -> tuple[Any, str]:
    skeleton, tensors = pack(value)
    seen: set[int] = set()
    whole = {}
    for name, tensor in tensors.items():
        held = tensor.detach().cpu().contiguous()
        whole[name] = held.clone() if held.data_ptr() in seen else held
        seen.add(held.data_ptr())
    content = save(whole)
    _write(path, content)
    return skeleton, hashlib.sha256(content).hexdigest()


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _remove(files: Iterable[Path]) -> None:
    """Remove what was begun; that this fails too must not hide why."""
    for path in files:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read_head(path: Path) -> dict[str, Any]:
    try:
        head = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DamagedCheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(head, dict) or not isinstance(head.get("identity", {}), dict):
        raise DamagedCheckpointError(f"{path} is not a checkpoint")
    return head


def _read_tensors(path: Path, digest: str) -> dict[str, Tensor]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DamagedCheckpointError(f"{path} cannot be read: {error}") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise DamagedCheckpointError(f"{path} is damaged: its SHA-256 is not the one recorded")
    try:
        return load(content)
    except SafetensorError as error:
        raise DamagedCheckpointError(f"{path} is not safetensors: {error}") from error
