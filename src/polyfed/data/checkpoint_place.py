"""Where a checkpoint is: a folder of this machine or, said so, a repository on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from polyfed.errors import UserError

HUB = "hf://"
REPOSITORY = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


class Place(NamedTuple):
    """What libraries take for a checkpoint, and whether it is on this machine: then nothing is to be downloaded."""

    name: str
    local: bool


def checkpoint_place(named: str, key: str) -> Place:
    """Return where a checkpoint is: the folder ``named``, or the repository ``hf://owner/name``.

    A folder's name is never taken for a repository's: a mistyped path must not fetch what a stranger calls the same.
    Raises UserError naming ``key`` where there is no such folder, or no repository can be called so.
    """
    if named.startswith(HUB):
        return Place(_repository(named, key), local=False)
    folder = expanded(named)
    if not named or not folder.is_dir():
        raise UserError(
            f"{key}: there is no folder {named!r} (looked for {folder.absolute()}). A tiny LLaVA is made by "
            f"`polyfed pretrain tiny-llava {named}`; one on the Hugging Face hub is written {HUB}owner/name"
        )
    return Place(str(folder), local=True)


def expanded(named: str) -> Path:
    """Return a path, ``~`` being the user's home; where there is no such user it is left as it is."""
    path = Path(named)
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def _repository(named: str, key: str) -> str:
    name = named.removeprefix(HUB)
    if REPOSITORY.fullmatch(name) is None:
        raise UserError(f"{key}: {named!r} names no repository on the Hugging Face hub; write {HUB}owner/name")
    if Path(name).exists():  # which libraries would take instead
        raise UserError(
            f"{key}: {named!r} is also a folder here ({Path(name).absolute()}); rename it, or leave out {HUB}"
        )
    return name
