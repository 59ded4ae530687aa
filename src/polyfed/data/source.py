"""Where the files of a set are: the folder of downloaded sets, and the layouts a set may have in it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from polyfed.data.dataset import Root
from polyfed.data.origins import ORIGINS, Manual
from polyfed.errors import UserError

VARIABLE = "POLYFED_DATA"


def data_root(explicit: str | None) -> Root:
    """Return the folder of downloaded sets: the explicit one, else that of POLYFED_DATA, else None.

    Raises UserError where the folder that was named does not exist.
    """
    named, place = (explicit, "data.root") if explicit else (os.environ.get(VARIABLE), VARIABLE)
    if not named:
        return None
    return existing_folder(named, place)


def existing_folder(named: str, place: str) -> Path:
    """Return the folder of that name (~ is the home folder); raises UserError where there is none."""
    try:
        folder = Path(named).expanduser()
        there = folder.is_dir()
    except (OSError, RuntimeError):  # a name longer than a file system takes; the home of a user who does not exist
        there = False
    if not there:
        raise UserError(f"{place}: {named!r} is not a folder that exists")
    return folder


@dataclass(frozen=True)
class Layout:
    """One way the files of a set may lie under the root: ``files``, each with its alternatives, relative to it."""

    name: str
    files: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        more = f" and {len(self.files) - 1} more files" if len(self.files) > 1 else ""
        return " or ".join(self.files[0]) + more


@dataclass(frozen=True)
class Found:
    """A layout that is complete, and its files (or folders) in the layout's order."""

    layout: str
    paths: tuple[Path, ...]


def find(root: Root, layouts: Sequence[Layout]) -> Found | None:
    """Return the first layout whose files are all there, or None."""
    if root is None:
        return None
    for layout in layouts:
        paths = [_first(root, names) for names in layout.files]
        there = tuple(path for path in paths if path is not None)
        if len(there) == len(paths):
            return Found(layout.name, there)
    return None


def locate(title: str, name: str, root: Root, layouts: Sequence[Layout]) -> Found:
    """Return the first complete layout; raises UserError saying what was looked for and what to do.

    ``title`` is what people call the set, ``name`` what ``polyfed data fetch`` calls it.
    """
    found = find(root, layouts)
    if found is not None:
        return found
    folder = f"set {VARIABLE} or data.root to the folder that holds it"
    origin = ORIGINS.get(name)
    remedy = f"To get it, run `polyfed data fetch {name}`, or {folder}"
    if isinstance(origin, Manual):
        remedy = f"{origin.told(root)} If it lies elsewhere, {folder}"
    if root is None:
        raise UserError(f"{title} was not found: no folder of downloaded sets is named. {remedy}")
    looked = "; ".join(f"{layout} ({layout.name} layout)" for layout in layouts)
    raise UserError(f"{title} was not found under {root}: {_lacking(root, layouts)}looked for {looked}. {remedy}")


def _lacking(root: Path, layouts: Sequence[Layout]) -> str:
    """Say what a layout that is there in part lacks."""
    for layout in layouts:
        missing = [" or ".join(names) for names in layout.files if _first(root, names) is None]
        if len(missing) < len(layout.files):
            return f"{', '.join(missing)} is missing; "
    return ""


def _first(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).exists()), None)
