"""Where a checkpoint is: a folder of this machine or, said so, a repository on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from polyfed.errors import UserError

HUB = "hf://"


class Place(NamedTuple):
    """What libraries take for a checkpoint, and whether it is on this machine: then nothing is to be downloaded."""

    name: str
    local: bool


def checkpoint_place(named: str, key: str) -> Place:
    """Return where a checkpoint is: the folder ``named``, or the repository ``hf://owner/name``.

    A folder's name is never taken for a repository's: a mistyped path must not fetch what a stranger calls the same.
    Raises UserError naming ``key`` where there is no such folder.
    """
    if named.startswith(HUB):
        return Place(named.removeprefix(HUB), local=False)
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"{key}: there is no folder {named!r} (looked for {folder.absolute()}). A tiny LLaVA is made by "
            f"`polyfed pretrain tiny-llava {named}`; one on the Hugging Face hub is written {HUB}owner/name"
        )
    return Place(str(folder), local=True)
