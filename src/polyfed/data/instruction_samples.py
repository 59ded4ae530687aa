"""Samples of instruction files as rows: read one by one, their texts encoded, their pictures named by content."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from polyfed.data.conversation_files import read_conversations
from polyfed.data.conversations import Conversation, Split
from polyfed.data.instruction_answers import check_box, letter_fault, references
from polyfed.data.instruction_checkpoint import Checkpoint, Encoded
from polyfed.data.instruction_columns import Packing
from polyfed.data.instruction_pictures import PictureFile
from polyfed.data.instruction_table import Rows
from polyfed.data.option_letters import LETTERS
from polyfed.data.samples import Asked
from polyfed.errors import UserError, unknown

TextMetric = Literal["caption", "choice", "grounding", "text", "vqa"]
METRICS: Mapping[str, TextMetric] = {
    "caption": "caption",
    "choice": "choice",
    "grounding": "grounding",
    "text": "text",
    "vqa": "vqa",
}
"""How answers are judged, by the task's name, where the user does not say it."""


class Source(NamedTuple):
    """A file of samples, the folder of its pictures, and whether its samples are for training or for the test."""

    file: Path
    images: Path
    part: Literal["train", "test"]


@dataclass
class Part:
    """Rows of one table: a list entry each."""

    packing: Packing = field(default_factory=Packing)
    asked: list[Asked] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    clients: list[str | None] = field(default_factory=list)
    pictures: list[str | None] = field(default_factory=list)
    places: list[str] = field(default_factory=list)

    @property
    def rows(self) -> Rows:
        """What makes the table of it."""
        return Rows(self.packing, self.asked, self.tasks)


@dataclass
class TaskFacts:
    """What is known of a task's samples.

    ``first`` is the place of the first one; ``lettered`` whether all have choices that letters tell apart; ``fault``
    what is wrong with the first one that cannot be judged by a letter, ``letters`` whether there is one that can.
    """

    first: str
    lettered: bool = True
    fault: str | None = None
    letters: bool = False

    def add(self, said: Conversation, place: str) -> None:
        """Note a sample of the task."""
        self.lettered = self.lettered and 0 < len(said.choices) <= len(LETTERS)
        fault = letter_fault(said, place)
        self.letters = self.letters or fault is None
        self.fault = self.fault or fault


@dataclass
class Samples:
    """All samples: the rows to train on and to test on, the distinct pictures, and what is known of each task.

    ``pictures`` are by the SHA-256 of their files; equal files are one picture. Where texts are not encoded, pictures
    are not read either, and their paths stand for them.
    """

    train: Part = field(default_factory=Part)
    test: Part = field(default_factory=Part)
    pictures: dict[str, PictureFile] = field(default_factory=dict)
    facts: dict[str, TaskFacts] = field(default_factory=dict)
    _digests: dict[Path, str] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The tables there are."""
        return (self.train, self.test) if self.test.tasks else (self.train,)

    def add(
        self, said: Conversation, file: PictureFile | None, place: str, part: Part, task: str, text: Encoded | None
    ) -> None:
        """Note a sample; ``text`` is what is made of it, None where texts are not encoded."""
        if text is not None:
            part.packing.add(text)
        part.asked.append(Asked(said.instruction, references(said), file))
        part.tasks.append(task)
        part.clients.append(said.client)
        part.pictures.append(None if file is None else str(file.path) if text is None else self._digest(file))
        part.places.append(place)
        first = f"{place}, 'task'" if said.task is not None else place
        self.facts.setdefault(task, TaskFacts(first)).add(said, place)

    def _digest(self, file: PictureFile) -> str:
        if file.path not in self._digests:
            file.check()
            self._digests[file.path] = file.digest()
            self.pictures.setdefault(self._digests[file.path], file)
        return self._digests[file.path]


def read_samples(
    sources: Iterable[Source],
    checkpoint: Checkpoint | None,
    *,
    task: str,
    metrics: Mapping[str, str],
    test_splits: Collection[Split],
) -> Samples:
    """Read files of samples one sample at a time.

    Of a training file, samples of the splits ``test_splits`` are for the test; of a test file that has any, only these
    are. Samples without a task have the task ``task``. A sample of which nothing is left to learn once it is cut is
    passed over. Without a checkpoint, texts are not encoded and no picture is opened: this finds at once what is wrong
    with the files alone. Raises UserError naming the file, the line and the field for whatever is wrong with a sample.
    """
    found = Samples()
    for source in sources:
        chosen = _only_tests(source, test_splits) if source.part == "test" else None
        for said in read_conversations(source.file, source.images):
            if chosen is not None and said.split not in chosen:
                continue
            place = f"{source.file}, line {said.line}"
            testing = source.part == "test" or said.split in test_splits
            part, name = found.test if testing else found.train, said.task or task
            boxed = metrics.get(name, METRICS.get(name)) == "grounding"
            if boxed:
                check_box(said, place)
            text = None if checkpoint is None else _encoded(said, checkpoint, place)
            if text is None or text.answers:
                found.add(said, _picture(said, source, place, boxed), place, part, name, text)
    return found


def _encoded(said: Conversation, checkpoint: Checkpoint, place: str) -> Encoded:
    turns = (said.instruction, *(turn.text for turn in said.turns[1:]))
    return checkpoint.encoded(turns, said.image is not None, f"{place}, 'conversations'")


def _only_tests(source: Source, test_splits: Collection[Split]) -> Collection[Split] | None:
    """Return the splits to take of a test file; None for all samples, where none is of a test split."""
    marked = any(said.split in test_splits for said in read_conversations(source.file))
    return test_splits if marked else None


def _picture(said: Conversation, source: Source, place: str, boxed: bool) -> PictureFile | None:
    return None if said.image is None else PictureFile(source.images / said.image, f"{place}, 'image'", boxed)


def judged(samples: Samples, metrics: Mapping[str, str]) -> dict[str, str]:
    """Return how each task is judged, sorted by task: as told, else as the task's name says.

    Raises UserError for a task of which neither says it, where no sample is of a task that is told, and for the first
    answer without a letter of a task that is judged by letters.
    """
    for task in metrics:
        if task not in samples.facts:
            raise unknown("task", task, samples.facts, place="data.metrics")
    return {task: _metric(task, samples.facts[task], metrics) for task in sorted(samples.facts)}


def _metric(task: str, facts: TaskFacts, metrics: Mapping[str, str]) -> str:
    known = metrics.get(task, METRICS.get(task))
    if known is None:
        raise UserError(
            f"{facts.first}: nothing says how answers of the task {task!r} are judged; name it like a metric, or write "
            f"data.metrics: {{{task}: ...}}. Choices: {', '.join(METRICS)}"
        )
    lettered = facts.lettered and facts.letters and task not in metrics
    found = "choice" if lettered and known in ("text", "vqa") else known
    if found == "choice" and facts.fault is not None:
        raise UserError(
            f"{facts.fault}, but the task {task!r} is judged by the letter of the answer; write that letter, or say "
            f"how else it is judged: data.metrics: {{{task}: vqa}}"
        )
    return found


def numbered(names: Sequence[str]) -> Iterator[str]:
    """Yield distinct names sorted: by number where all are whole numbers, else as texts."""
    distinct = set(names)
    yield from sorted(distinct, key=lambda name: (int(name), name) if _whole(distinct) else (0, name))


def _whole(names: Collection[str]) -> bool:
    return all(name.removeprefix("-").isdecimal() for name in names)
