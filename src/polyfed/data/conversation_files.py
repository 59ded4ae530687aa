"""Files of samples for instruction tuning: read one by one, written whole or not at all, and their pictures checked."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from polyfed.data.conversation_rules import conversation_of
from polyfed.data.conversations import Conversation
from polyfed.data.folder_columns import inside
from polyfed.data.folder_files import opened_image
from polyfed.data.json_fields import Fields
from polyfed.data.json_stream import elements
from polyfed.errors import UserError, writing


def read_conversations(path: Path, images: Path | None = None) -> Iterator[Conversation]:
    """Yield the samples of a file in LLaVA's format: a JSON list, or an object per line; either may be ``.gz``.

    Samples are read one by one, so the file may be larger than memory. No picture is opened; where ``images``, the
    folder of pictures, is given, every file that a sample names must be in it. Raises UserError naming the file, the
    line the sample begins on and the field at fault.
    """
    empty, seen = True, set[str]()
    for line, _, raw in elements(path):
        sample = Fields(raw, f"{path}, line {line}")
        found = conversation_of(sample, line)
        if images is not None and found.image is not None and found.image not in seen:
            picture(found.image, images, f"{sample.place}, 'image'")
            seen.add(found.image)
        empty = False
        yield found
    if empty:
        raise UserError(f"{path}: holds no samples")


def write_conversations(path: Path, conversations: Iterable[Conversation]) -> int:
    """Write samples and return how many; a JSON list with one sample per line, or JSON lines for ``.jsonl``.

    The file appears when it is complete; one that was there before is replaced only then. Raises UserError where it
    cannot be written.
    """
    before, between, after = ("", "\n", "\n") if path.suffix == ".jsonl" else ("[\n", ",\n", "\n]\n")
    count = 0
    with writing(path), tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as scratch:
        part = Path(scratch) / path.name
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.write(before)
            for conversation in conversations:
                file.write((between if count else "") + json.dumps(conversation.as_json(), ensure_ascii=False))
                count += 1
            file.write(after)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    return count


def picture(name: str, images: Path, place: str) -> Path:
    """Return the path of a picture. Raises UserError when it is missing or lies outside the folder."""
    return inside(images, name, place)


def picture_size(path: Path) -> tuple[int, int]:
    """Return width and height in pixels, from the header alone. Raises UserError for what is no picture."""
    with opened_image(path) as image:
        size: tuple[int, int] = image.size
        return size


def check_pictures(path: Path, conversations: Iterable[Conversation], images: Path) -> None:
    """Open the header of every picture once. Raises UserError naming the file ``path`` and the line of the sample."""
    seen = set[str]()
    for conversation in conversations:
        name = conversation.image
        if name is None or name in seen:
            continue
        seen.add(name)
        place = f"{path}, line {conversation.line}, 'image'"
        try:
            picture_size(picture(name, images, place))
        except UserError as error:
            raise error if str(error).startswith(place) else UserError(f"{error} ({place})") from error
