"""Tar archives that come from elsewhere."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from polyfed import UserError
from polyfed.data import archive as limits
from polyfed.data.tar_archive import unpack_tar


def packed(path: Path, *members: tuple[str, bytes, bytes]) -> Path:
    """Write an archive of members: name, content and type."""
    with tarfile.open(path, "w") as archive:
        for name, content, kind in members:
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(content), kind, "/etc/passwd"
            archive.addfile(member, io.BytesIO(content))
    return path


PLAIN = tarfile.REGTYPE


def test_plain_files_are_unpacked(tmp_path: Path) -> None:
    archive = packed(tmp_path / "a.tar", ("1.jpg", b"one", PLAIN), ("2.jpg", b"", PLAIN))
    assert unpack_tar(archive, tmp_path / "out") == {"1.jpg", "2.jpg"}
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {"1.jpg": b"one", "2.jpg": b""}


BAD = {
    "above": ("../1.jpg", PLAIN),
    "absolute": ("/tmp/1.jpg", PLAIN),
    "in a folder": ("a/1.jpg", PLAIN),
    "backslash": ("..\\1.jpg", PLAIN),
    "drive": ("c:1.jpg", PLAIN),
    "dots": ("..", PLAIN),
    "link": ("1.jpg", tarfile.SYMTYPE),
    "hard link": ("1.jpg", tarfile.LNKTYPE),
    "folder": ("1.jpg", tarfile.DIRTYPE),
    "device": ("1.jpg", tarfile.CHRTYPE),
    "pipe": ("1.jpg", tarfile.FIFOTYPE),
    "twice": ("0.jpg", PLAIN),
}


@pytest.mark.parametrize("name", BAD)
def test_anything_else_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    member, kind = BAD[name]
    archive = packed(tmp_path / "a.tar", ("0.jpg", b"zero", PLAIN), (member, b"", kind))
    with pytest.raises(UserError, match="refused, because member"):
        unpack_tar(archive, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [archive]


def test_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = packed(tmp_path / "a.tar", ("1.jpg", b"12345", PLAIN), ("2.jpg", b"12345", PLAIN))
    with pytest.raises(UserError, match="unpacks to 10 bytes, more than the 9 allowed"):
        unpack_tar(archive, tmp_path / "out", limit=9)
    monkeypatch.setattr(limits, "MEMBERS", 1)
    with pytest.raises(UserError, match="has 2 members, more than 1"):
        unpack_tar(archive, tmp_path / "out")


@pytest.mark.parametrize("keep", [0, 100, 700, 5000])
def test_a_damaged_archive_is_named(tmp_path: Path, keep: int) -> None:
    archive = packed(tmp_path / "a.tar", ("1.jpg", b"x" * 8000, PLAIN))
    archive.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"a\.tar: damaged, or not a tar archive"):
        unpack_tar(archive, tmp_path / "out")


def test_an_archive_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.tar: cannot be read: No such file"):
        unpack_tar(tmp_path / "a.tar", tmp_path / "out")
