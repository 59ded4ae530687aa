"""Unpacking tar archives of plain files that come from elsewhere."""

from __future__ import annotations

import shutil
import tarfile
from io import BufferedReader
from pathlib import Path

from polyfed.data.archive import LIMIT, check_amount
from polyfed.errors import UserError


def unpack_tar(archive: Path, folder: Path, limit: int = LIMIT) -> frozenset[str]:
    """Unpack an uncompressed tar archive of plain files without folders; returns their names.

    Raises UserError, before anything is written, where a member is a link, a device or in a folder, two have one name,
    or they are too many or larger than ``limit`` bytes together; and where the archive is damaged.
    """
    try:
        with _readable(archive) as raw, tarfile.open(fileobj=raw, mode="r:") as opened:
            members = opened.getmembers()
            _check(archive, members, limit)
            folder.mkdir(parents=True, exist_ok=True)
            for member in members:
                source = opened.extractfile(member)
                assert source is not None  # it is a plain file
                with source, (folder / member.name).open("xb") as file:
                    shutil.copyfileobj(source, file)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{archive}: damaged, or not a tar archive that can be read ({error})") from error
    return frozenset(member.name for member in members)


def _readable(archive: Path) -> BufferedReader:
    try:
        return archive.open("rb")
    except OSError as error:
        raise UserError(f"{archive}: cannot be read: {error.strerror}") from error


def _check(archive: Path, members: list[tarfile.TarInfo], limit: int) -> None:
    check_amount(archive, len(members), sum(member.size for member in members), limit)
    seen: set[str] = set()
    for member in members:
        name = member.name
        plain = member.isreg() and not member.issparse() and name not in seen
        if not plain or name in ("", ".", "..") or set(name) & set("/\\:\0"):
            raise UserError(f"{archive}: refused, because member {name!r} is no plain file with a name of its own")
        seen.add(name)
