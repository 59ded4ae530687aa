"""Unpacking zip archives that come from elsewhere."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from polyfed.errors import UserError

LIMIT = 2 * 2**30  # bytes unpacked; the largest set has 0.3 GB
MEMBERS = 100_000


def unpack(archive: Path, folder: Path, limit: int = LIMIT) -> None:
    """Unpack a zip archive into a folder.

    Raises UserError, before anything is written, where a member would land outside the folder or is a link, or the
    members are too many or larger than ``limit`` bytes together; and where the archive is damaged.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            _check(archive, members, limit)
            for member in members:
                _extract(opened, member, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{archive}: damaged, or not a zip archive that can be read ({error})") from error


def _check(archive: Path, members: list[zipfile.ZipInfo], limit: int) -> None:
    check_amount(archive, len(members), sum(member.file_size for member in members), limit)
    for member in members:
        path = PurePosixPath(member.filename)
        outside = path.is_absolute() or ".." in path.parts or "\\" in member.filename or ":" in member.filename
        if outside or stat.S_ISLNK(member.external_attr >> 16):
            raise UserError(f"{archive}: refused, because member {member.filename!r} is a link or points outside")


def check_amount(archive: Path, members: int, size: int, limit: int) -> None:
    """Refuse an archive of too many members, or that unpacks to more than ``limit`` bytes."""
    if members > MEMBERS:
        raise UserError(f"{archive}: has {members} members, more than {MEMBERS}")
    if size > limit:
        raise UserError(f"{archive}: unpacks to {size} bytes, more than the {limit} allowed")


def _extract(opened: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> None:
    """Write one member; zipfile reads no more than the size it declares, and checks its CRC."""
    target = folder / member.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    with opened.open(member) as source, target.open("wb") as file:
        shutil.copyfileobj(source, file)
