"""Checkpoints: one folder per round, written beside its final place and renamed into it.

A reader therefore sees a whole checkpoint or none. ``state.json`` holds the skeleton and the SHA-256 of each tensor
file; tensors are safetensors. Personal states are one file per client, kept as long as a checkpoint refers to them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor

from polyfed.engine.tensorfile import raw, read_tensors, write_tensors
from polyfed.engine.tree import pack, unpack
from polyfed.errors import UserError, writing
from polyfed.method.protocol import Groups
from polyfed.scenario.federation import ClientId

FORMAT = 2
KEEP = 2

S = TypeVar("S")
Entry = tuple[int, str]  # of a personal state: the round in which its file was written, and the file's SHA-256


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
        self._personal: dict[ClientId, Entry] = {}
        self._superseded: deque[set[Path]] = deque()  # personal files that only older checkpoints need, oldest first

    def write(
        self, round_number: int, state: Any, changed: Mapping[ClientId, Groups], progress: Mapping[str, Any]
    ) -> None:
        """Save a round; ``changed`` are the personal states that differ from the last checkpoint.

        Takes the memory of one tensor at most besides what it is given. Raises UserError where saving is impossible (a
        full disk, say); then the checkpoints before are as they were.
        """
        draft = self.folder / f".draft-{round_number:06d}"
        begun: set[Path] = set()
        with writing(self.folder):
            try:
                shutil.rmtree(draft, ignore_errors=True)
                self._begin()
                draft.mkdir()
                personal = {**self._personal, **self._write_personal(round_number, changed, begun)}
                self._write_head(draft, round_number, state, personal, progress)
                _sync(draft)
                target = self.folder / _name(round_number)
                shutil.rmtree(target, ignore_errors=True)
                draft.rename(target)
            except BaseException:
                shutil.rmtree(draft, ignore_errors=True)
                _remove(begun)
                raise
            _sync(self.folder)
        before = {client: self._personal[client] for client in changed if client in self._personal}
        self._superseded.append(self._files(before) - begun)
        self._personal = personal
        self._tidy()

    def _begin(self) -> None:
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True)
            _sync(self.folder.parent)  # for itself and the records, whose names would else be lost in a power cut

    def _file(self, client: ClientId, round_number: int) -> Path:
        return self.folder / "personal" / f"client-{client:06d}-round-{round_number:06d}.safetensors"

    def _files(self, personal: Mapping[ClientId, Entry]) -> set[Path]:
        return {self._file(client, round_number) for client, (round_number, _) in personal.items()}

    def _write_personal(
        self, round_number: int, changed: Mapping[ClientId, Groups], begun: set[Path]
    ) -> dict[ClientId, Entry]:
        """Write the personal states that changed and return where they are; ``begun`` gets each file in time."""
        if not changed:
            return {}
        written = {}
        (self.folder / "personal").mkdir(exist_ok=True)
        for client, groups in changed.items():
            file = self._file(client, round_number)
            begun.add(file)
            skeleton, tensors = pack(groups)
            written[client] = (round_number, write_tensors(file, tensors, {"skeleton": json.dumps(skeleton)}))
        _sync(self.folder / "personal")
        return written

    def _write_head(
        self,
        draft: Path,
        round_number: int,
        state: Any,
        personal: Mapping[ClientId, Entry],
        progress: Mapping[str, Any],
    ) -> None:
        skeleton, tensors = pack(state)
        head = {
            "format": FORMAT,
            "round": round_number,
            "identity": self.identity,
            "state": skeleton,
            "sha256": write_tensors(draft / "state.safetensors", tensors, {}),
            "personal": [[client, *entry] for client, entry in sorted(personal.items())],
            "progress": dict(progress),
        }
        _write(draft / "state.json", json.dumps(head).encode())

    def latest(self, state_type: type[S]) -> Saved[S] | None:
        """Read the newest whole checkpoint, None if there is none.

        A damaged one is passed over for the one before it; all damaged, or one of another run, is an error.
        """
        problems = []
        for path in reversed(self._rounds()):
            try:
                saved = self._read(path, state_type)
            except DamagedCheckpointError as error:
                problems.append(str(error))
            else:
                self._tidy_after_kill(path)
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
        tensors, _ = _read_tensors(path / "state.safetensors", head["sha256"])
        state = unpack(state_type, head["state"], tensors, str(path))
        entries = _entries(head)
        personal = {client: self._read_personal(client, entry, path) for client, entry in entries.items()}
        self._personal = entries
        return Saved(int(head["round"]), state, personal, dict(head["progress"]))

    def _read_personal(self, client: ClientId, entry: Entry, path: Path) -> Groups:
        round_number, digest = entry
        tensors, metadata = _read_tensors(self._file(client, round_number), digest)
        groups: Groups = unpack(Groups, json.loads(metadata["skeleton"]), tensors, f"{path}: client {client}")
        return groups

    def _tidy(self) -> None:
        """Drop all checkpoints but the newest, and the personal files that only those needed."""
        for path in self._rounds()[:-KEEP]:
            shutil.rmtree(path, ignore_errors=True)
        while len(self._superseded) >= KEEP:
            _remove(self._superseded.popleft())

    def _tidy_after_kill(self, newest: Path) -> None:
        """Drop what a kill has left lying about, and find the personal files that only older checkpoints need."""
        self._tidy()
        for path in self.folder.glob(".draft-*"):
            shutil.rmtree(path, ignore_errors=True)
        current, older = self._files(self._personal), set()
        for path in self._rounds():
            if path < newest:
                with suppress(DamagedCheckpointError, LookupError, TypeError, ValueError):
                    older |= self._files(_entries(_read_head(path / "state.json")))
        _remove(set((self.folder / "personal").glob("*.safetensors")) - current - older)
        self._superseded.append(older - current)

    def _rounds(self) -> list[Path]:
        return sorted(self.folder.glob("round-*"))


class DamagedCheckpointError(UserError):
    """A checkpoint that is not whole."""


def digest_of(parameters: Mapping[str, Tensor]) -> str:
    """SHA-256 over tensors by sorted name: name, dtype, shape and bytes of each."""
    total = hashlib.sha256()
    for name in sorted(parameters):
        value = parameters[name]
        total.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        total.update(raw(value))
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


def _entries(head: Mapping[str, Any]) -> dict[ClientId, Entry]:
    return {int(client): (int(round_number), str(digest)) for client, round_number, digest in head["personal"]}


def _read_tensors(path: Path, digest: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DamagedCheckpointError(f"{path} cannot be read: {error}") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise DamagedCheckpointError(f"{path} is damaged: its SHA-256 is not the one recorded")
    return read_tensors(content)
