"""``polyfed data convert``: public datasets as a folder with ``instructions.json``, made whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from polyfed.data.conversation_files import write_conversations
from polyfed.data.conversation_rules import TASK
from polyfed.data.conversations import Conversation
from polyfed.data.convert import coco_captions, coco_mini, gqa, ocr_vqa, refcoco, scienceqa, scienceqa_text
from polyfed.data.convert.job import Job, Splits
from polyfed.data.source import data_root
from polyfed.errors import UserError, unknown, writing

FILE = "instructions.json"
IMAGES = coco_mini.IMAGES


@dataclass(frozen=True)
class Kind:
    """A public dataset: what it is read from, and how; ``ours`` is one in the folder of downloaded sets."""

    needs: str
    convert: Callable[[Job], Iterator[Conversation]]
    tasks: tuple[str, ...]
    ours: bool = False
    unpacks: bool = False


KINDS: Mapping[str, Kind] = {
    "coco-captions": Kind("captions_*.json and the pictures", coco_captions.convert, ("caption",)),
    "gqa": Kind("*_balanced_questions.json and images/", gqa.convert, ("vqa",)),
    "refcoco": Kind("refs(unc).json, instances.json and the pictures", refcoco.convert, ("grounding",)),
    "scienceqa": Kind("problems.json, pid_splits.json and images/", scienceqa.convert, ("vqa",)),
    "ocr-vqa": Kind("dataset.json and images/", ocr_vqa.convert, ("vqa",)),
    "coco-mini": Kind(
        "images.tar and annotations.jsonl.gz", coco_mini.convert, ("caption", "vqa", "grounding"), True, True
    ),
    "scienceqa-text": Kind("scienceqa_text.jsonl.gz", scienceqa_text.convert, ("text",), True),
}


@dataclass(frozen=True)
class Made:
    """What was made: the file, the folder of its pictures (None without any), and samples by task and split."""

    file: Path
    images: Path | None
    counts: Mapping[tuple[str, str], int]
    left_out: Mapping[str, int]


@dataclass(frozen=True)
class Options:
    """How a set is converted.

    ``images`` is the folder of pictures where it is not found beside the annotations; ``task`` another name for the
    task; ``test_share`` replaces the official splits by a draw among pictures, keyed by ``seed``.
    """

    images: Path | None = None
    task: str | None = None
    test_share: float | None = None
    seed: int = 0
    skip_missing: bool = False
    copy_images: bool = False


def convert(
    kind: str, source: Path | None, target: Path, options: Options | None = None, *, progress: bool = False
) -> Made:
    """Convert a public dataset into the folder ``target``, which must not exist or be empty.

    ``source`` is the folder (or file) the set lies in; without it, sets of the folder of downloaded sets are looked for
    there. The folder appears when it is complete. Raises UserError for an unknown kind, a folder that is in use, a file
    that is missing or malformed (naming the place), and a picture that is missing unless such samples are skipped.
    """
    chosen, wanted = KINDS.get(kind), options or Options()
    if chosen is None:
        raise unknown("kind of dataset", kind, KINDS)
    _check(kind, chosen, wanted)
    place = _source(kind, chosen, source)
    _refuse_used(target)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            made = Path(scratch) / target.name
            made.mkdir()
            splits = Splits(wanted.test_share, wanted.seed)
            job = Job(place, made, wanted.images, splits, wanted.skip_missing)
            counts: Counter[tuple[str, str]] = Counter()
            samples = _shown(_samples(kind, chosen, job, wanted, counts), progress)
            write_conversations(made / FILE, samples)
            inside = chosen.unpacks or wanted.copy_images
            pictures = target / IMAGES if inside else job.root
            if target.exists():
                target.rmdir()
            made.replace(target)
    return Made(target / FILE, None if chosen.tasks == ("text",) else pictures, counts, job.left_out)


def _samples(
    name: str, kind: Kind, job: Job, options: Options, counts: Counter[tuple[str, str]]
) -> Iterator[Conversation]:
    """Yield what the converter makes, renamed, counted, and with its picture copied if that is wanted."""
    for found in kind.convert(job):
        sample = found if options.task is None else replace(found, task=options.task)
        if options.copy_images and not kind.unpacks and sample.image is not None:
            _copy(job.root / sample.image, job.made / IMAGES / sample.image)
        counts[sample.task or "", sample.split or ""] += 1
        yield sample
    if not counts:
        raise UserError(f"{job.source}: nothing to convert{_why(job)}; {name} needs {kind.needs}")


def _why(job: Job) -> str:
    return "".join(f" ({count} left out: {reason})" for reason, count in job.left_out.items())


def _copy(source: Path, target: Path) -> None:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _shown(samples: Iterable[Conversation], progress: bool) -> Iterator[Conversation]:
    """Show on standard error how many samples are made."""
    columns = (SpinnerColumn(), TextColumn("samples"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        yield from bar.track(samples, total=None)


def _check(name: str, kind: Kind, options: Options) -> None:
    if options.test_share is not None and not 0 <= options.test_share < 1:
        raise UserError(f"--test-share: {options.test_share} is no share; give a number from 0 to below 1")
    if options.task is not None and len(kind.tasks) > 1:
        raise UserError(f"--task: {name} has several tasks, {', '.join(kind.tasks)}; they cannot have one name")
    if options.task is not None and not TASK.fullmatch(options.task):
        raise UserError(f"--task: {options.task!r} cannot be a name: use letters, digits, '_' and '-', a letter first")
    if options.images is not None and not options.images.is_dir():
        raise UserError(f"--images: {str(options.images)!r} is not a folder that exists")


def _source(name: str, kind: Kind, source: Path | None) -> Path:
    if source is None and kind.ours:
        source = data_root(None)
    if source is None:
        raise UserError(f"where from? Give --from PATH, a folder with {kind.needs}, for {name}")
    if not source.exists():
        raise UserError(f"--from: there is no file or folder {str(source)!r}")
    return source


def _refuse_used(target: Path) -> None:
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise UserError(f"{target} exists and is not empty; give another folder by --to, or move it away")
