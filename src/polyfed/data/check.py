"""``polyfed data list`` and ``polyfed data check``: which sets are there, and whether they are what was published."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from polyfed.data import cmu_mosei_files, fsdd, mnist, uci_har_files, vehicle_sensor
from polyfed.data.dataset import Root
from polyfed.data.idx import content
from polyfed.data.origins import ORIGINS, Built
from polyfed.data.source import Found, Layout, find, locate
from polyfed.errors import UserError, unknown

# sha256 of the four idx files, decompressed: the same whether they lie there plain or compressed by whatever program.
IDX_SHA256 = {
    "mnist": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    "fashion_mnist": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}
FSDD_SHA256 = "129f5025b817f638b8cf07e28394159ae32468a3d0306f18500a623382670a71"  # of ``fsdd.digest``
UCI_HAR_SHA256 = "81c81db3dd9a4fafb68abd42e30d2b9b369f634faa84419377236a8751a34026"
COCO_SHA256 = (
    "b32f28e66cb8697863c723045003d6527211ab8fc9d217fe5c44a9cf7ea35ee5",
    "846c23d5e9a153e159db70f9bc76ca0dd7438de3e360bf05b88db0e3e93f8865",
)
SCIENCEQA_SHA256 = ("41b00a7f8e2900e1e69f00d88b33f06975082f1f67b20faee350424e7f6eb7dd",)
ACTIVITY_COUNTS = (1722, 1544, 1406, 1777, 1906, 1944)
UNSEEN_SUBJECTS = (2, 4, 9, 10, 12, 13, 18, 20, 24)


@dataclass(frozen=True)
class Status:
    """Whether a set is there: the layout it was found in, and where it is or how to get it."""

    name: str
    found: bool
    layout: str
    detail: str


@dataclass(frozen=True)
class Known:
    """A set of files: what people call it, how it may lie there, and what is wrong with it where it does."""

    title: str
    layouts: tuple[Layout, ...]
    problems: Callable[[Root, Found], list[str]]


def status(root: Root) -> list[Status]:
    """Say of every set whether it is under ``root``, without reading the files."""
    return [_status(name, root) for name in ORIGINS]


def check(name: str, root: Root) -> list[str]:
    """Compare a set with what was published and return the problems: file, expected, got. None means sound.

    Raises UserError for an unknown name.
    """
    origin = ORIGINS.get(name)
    if origin is None:
        raise unknown("dataset to check", name, ORIGINS)
    if isinstance(origin, Built):
        return [problem for part in origin.parts for problem in check(part, root)]
    known = KNOWN[name]
    try:
        found = locate(known.title, name, root, known.layouts)
        return known.problems(root, found)
    except UserError as error:
        return [str(error)]


def _status(name: str, root: Root) -> Status:
    origin = ORIGINS[name]
    if isinstance(origin, Built):
        if not origin.parts:
            return Status(name, True, "package", "ships inside polyfed")
        missing = [part for part in origin.parts if not _status(part, root).found]
        detail = f"needs {', '.join(missing)}: `polyfed data fetch {name}`" if missing else "ready"
        return Status(name, not missing, f"built from {', '.join(origin.parts)}", detail)
    found = find(root, KNOWN[name].layouts)
    if found is None:
        return Status(name, False, "", f"`polyfed data fetch {name}`")
    return Status(name, True, found.layout, str(found.paths[0] if len(found.paths) == 1 else found.paths[0].parent))


def _idx(folder: str, root: Root, found: Found) -> list[str]:
    wrong = [
        _differs(f"{path}: sha256 of the decompressed bytes", expected, hashlib.sha256(content(path)).hexdigest())
        for path, expected in zip(found.paths, IDX_SHA256[folder], strict=True)
    ]
    mnist.digits(root, folder)  # shapes, counts and label ranges; raises
    return [line for line in wrong if line]


def _fsdd(root: Root, found: Found) -> list[str]:
    read = fsdd.clips(root)
    place = found.paths[0]
    wrong = [
        _differs(f"{place}: clips", 3000, len(read)),
        _differs(f"{place}: speakers", 6, len(read.speaker_names)),
        _differs(f"{place}: sha256 of names and samples", FSDD_SHA256, fsdd.digest(read)),
    ]
    return [line for line in wrong if line]


def _uci_har(root: Root, found: Found) -> list[str]:
    read = uci_har_files.recordings(root)
    place = found.paths[0]
    counts = tuple(np.bincount(read.label, minlength=6).tolist())
    unseen = tuple(np.unique(read.subject[read.uci_test]).tolist())
    strength = float(np.linalg.norm(read.signal[:, 6:] - read.signal[:, :3], axis=1).mean())
    wrong = [
        _differs(f"{place}: windows per activity", ACTIVITY_COUNTS, counts),
        _differs(f"{place}: subjects of the test set", UNSEEN_SUBJECTS, unseen),
        "" if abs(strength - 1.02) < 0.02 else f"{place}: mean gravity: expected 1.00 to 1.04 g, got {strength:.3f} g",
    ]
    if found.layout == "packed":
        wrong.append(_differs(f"{place}: sha256", UCI_HAR_SHA256, _sha256(place)))
    return [line for line in wrong if line]


def _reads(read: Callable[[Root], object], root: Root, found: Found) -> list[str]:
    read(root)  # raises; what the user converted himself has no checksum
    return []


def _checksums(expected: tuple[str, ...], root: Root, found: Found) -> list[str]:
    pairs = zip(found.paths, expected, strict=True)
    return [line for path, digest in pairs if (line := _differs(f"{path}: sha256", digest, _sha256(path)))]


def _differs(what: str, expected: object, got: object) -> str:
    return "" if got == expected else f"{what}: expected {expected}, got {got}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


KNOWN: Mapping[str, Known] = {
    "mnist": Known("MNIST", mnist.layouts("mnist"), partial(_idx, "mnist")),
    "fashion-mnist": Known("Fashion-MNIST", mnist.layouts("fashion_mnist"), partial(_idx, "fashion_mnist")),
    "fsdd": Known("The Free Spoken Digit Dataset", fsdd.LAYOUTS, _fsdd),
    "uci-har": Known("UCI HAR", uci_har_files.LAYOUTS, _uci_har),
    "cmu-mosei": Known("CMU-MOSEI", cmu_mosei_files.LAYOUTS, partial(_reads, cmu_mosei_files.parts)),
    "vehicle-sensor": Known("Vehicle Sensor", vehicle_sensor.LAYOUTS, partial(_reads, vehicle_sensor.vehicle_sensor)),
    "coco-mini": Known(
        "coco_mini",
        (Layout("packed", (("coco_mini/images.tar",), ("coco_mini/annotations.jsonl.gz",))),),
        partial(_checksums, COCO_SHA256),
    ),
    "scienceqa-text": Known(
        "scienceqa_text", (Layout("packed", (("scienceqa_text.jsonl.gz",),)),), partial(_checksums, SCIENCEQA_SHA256)
    ),
}
