"""``polyfed data check FILE``: what a file of samples for instruction tuning holds, and which pictures it lacks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from polyfed.data.conversation_files import picture, read_conversations
from polyfed.data.conversations import Split
from polyfed.data.folder_files import image_library
from polyfed.data.instruction_pictures import PictureFile
from polyfed.errors import UserError

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
"""Ends of names of such files; no dataset of polyfed's is called so."""


@dataclass
class Contents:
    """What a file holds.

    ``samples`` are counted by task and split, ``clients`` by name; None is what a sample does not name. ``pictures``
    are the distinct names of pictures, ``problems`` what is wrong with them: the file, the first line that names it,
    and why it cannot be used.
    """

    samples: Counter[tuple[str | None, Split | None]] = field(default_factory=Counter)
    clients: Counter[str | None] = field(default_factory=Counter)
    pictures: int = 0
    problems: list[str] = field(default_factory=list)


def check_conversations(path: Path, images: Path | None = None) -> Contents:
    """Read a file of samples in LLaVA's format, one by one, and look at the head of each picture once.

    ``images`` is the folder of pictures, by default the file's own. Raises UserError for the first sample that is
    malformed.
    """
    folder, seen, found = images or path.parent, set[str](), Contents()
    for said in read_conversations(path):
        found.samples[said.task, said.split] += 1
        found.clients[said.client] += 1
        if said.image is not None and said.image not in seen:
            image_library()  # where it is missing, that is no fault of the picture's
            seen.add(said.image)
            place = f"{path}, line {said.line}, 'image'"
            try:
                PictureFile(picture(said.image, folder, place), place).opened()
            except UserError as error:
                found.problems.append(str(error))
    found.pictures = len(seen)
    return found
