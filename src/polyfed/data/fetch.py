"""``polyfed data fetch``: download a set into the folder of downloaded sets, checked."""

from __future__ import annotations

import tempfile
from pathlib import Path
from urllib.parse import urljoin

from polyfed.data.archive import unpack
from polyfed.data.check import KNOWN, check
from polyfed.data.download import download
from polyfed.data.origins import ORIGINS, Archive, Built, Files, Manual
from polyfed.data.source import find
from polyfed.errors import UserError, unknown


def fetch(name: str, root: Path, *, base_url: str | None = None, progress: bool = True) -> list[Path]:
    """Download a set into ``root`` (made where it does not exist) and return its files or folder.

    A set that is there and sound is not downloaded again; one that is built from others fetches those. ``base_url``
    is a mirror with the same file names. Raises UserError for an unknown name, a set that must be obtained by hand
    (saying what to put where), a failed download, a wrong checksum or wrong content.
    """
    origin = ORIGINS.get(name)
    if origin is None:
        raise unknown("dataset to fetch", name, ORIGINS)
    if isinstance(origin, Built):
        return [path for part in origin.parts for path in fetch(part, root, base_url=base_url, progress=progress)]
    there = find(root, KNOWN[name].layouts)
    problems = check(name, root) if there is not None else []
    if there is not None and not problems:
        return list(there.paths)
    if isinstance(origin, Manual):
        wrong = f" What is there is wrong: {'; '.join(problems)}" if problems else ""
        raise UserError(f"{name} cannot be downloaded. {origin.told(root)}{wrong}")
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{root}: cannot be made ({error.strerror})") from error
    if isinstance(origin, Files):
        return _files(name, origin, root, base_url, progress)
    if problems:
        raise UserError(f"{name} is there but not sound; move it away and fetch again: {'; '.join(problems)}")
    return _archive(name, origin, root, base_url, progress)


def _files(name: str, origin: Files, root: Path, base_url: str | None, progress: bool) -> list[Path]:
    base = _folder_url(base_url or origin.url)
    folder = root / origin.folder
    paths = [download(urljoin(base, file), folder / file, known, progress) for file, known in origin.checksums.items()]
    _refuse(name, check(name, root))
    return paths


def _archive(name: str, origin: Archive, root: Path, base_url: str | None, progress: bool) -> list[Path]:
    target = root / origin.folder
    if target.exists():
        raise UserError(f"{target}: is there but incomplete; move it away and fetch again")
    url = urljoin(_folder_url(base_url or origin.url), origin.file)
    packed = download(url, root / f"{name}.zip", origin.checksum, progress)
    try:
        _install(name, origin, packed, target)
    except UserError as error:  # with no checksum to tell it, the same bad archive would be unpacked again next time
        packed.unlink()
        raise UserError(f"{error}; {packed} was removed") from error
    except OSError as error:
        raise UserError(
            f"{root}: {name} could not be unpacked ({error.strerror or error}); {packed} is kept"
        ) from error
    packed.unlink()
    return [target]


def _install(name: str, origin: Archive, packed: Path, target: Path) -> None:
    """Unpack into a temporary folder beside the target, check there, and only then move into place."""
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=packed.parent) as scratch:
        content = _unpacked(packed, origin, Path(scratch))
        trial = Path(scratch) / "checked"
        trial.mkdir()
        content.replace(trial / origin.folder)
        _refuse(name, check(name, trial))
        (trial / origin.folder).replace(target)


def _unpacked(packed: Path, origin: Archive, scratch: Path) -> Path:
    """Unpack an archive (and the one inside it) and return its only top folder."""
    outer = scratch / "outer"
    unpack(packed, outer)
    if origin.inner is not None:
        inner = outer / origin.inner
        if not inner.is_file():
            raise UserError(f"{packed}: holds no {origin.inner!r}")
        outer = scratch / "inner"
        unpack(inner, outer)
    tops = [path for path in outer.iterdir() if path.is_dir() and path.name != "__MACOSX"]
    if len(tops) != 1:
        raise UserError(f"{packed}: has {len(tops)} top folders, expected one")
    return tops[0]


def _refuse(name: str, problems: list[str]) -> None:
    if problems:
        raise UserError(f"{name}: what was downloaded is not the published set: {'; '.join(problems)}")


def _folder_url(url: str) -> str:
    return url if url.endswith("/") else url + "/"
