"""Samples of instruction files as rows: read one by one, their texts encoded, their pictures named by content."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from polyfed.data.boxes import parse_box
from polyfed.data.conversation_files import read_conversations
from polyfed.data.conversations import Conversation, Split
from polyfed.data.instruction_checkpoint import Checkpoint, Encoded
from polyfed.data.instruction_columns import Packing
from polyfed.data.instruction_pictures import PictureFile
from polyfed.data.instruction_table import Rows
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
MOST_LETTERS = 5  # the metric "choice" knows the letters A to E


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
class Samples:
    """All samples: the rows to train on and to test on, the distinct pictures, and the tasks answered by letters.

    ``pictures`` are by the SHA-256 of their files; equal files are one picture. Where texts are not encoded, pictures
    are not read either, and their paths stand for them.
    """

    train: Part = field(default_factory=Part)
    test: Part = field(default_factory=Part)
    pictures: dict[str, PictureFile] = field(default_factory=dict)
    lettered: dict[str, bool] = field(default_factory=dict)
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
        self.lettered[task] = self.lettered.get(task, True) and 0 < len(said.choices) <= MOST_LETTERS

    def _digest(self, file: PictureFile) -> str:
        if file.path not in self._digests:
            file.check()
            self._digests[file.path] = file.digest()
            self.pictures.setdefault(self._digests[file.path], file)
        return self._digests[file.path]


def references(said: Conversation) -> tuple[str, ...]:
    """Return what the answer to the first question is compared with; of several turns only that one is asked for."""
    return said.references if len(said.turns) == 2 else (said.turns[1].text,)


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
                _check_box(said, place)
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


def _check_box(said: Conversation, place: str) -> None:
    answer = references(said)[0]
    if parse_box(answer) is None:
        name = "answers[0]" if said.answers and len(said.turns) == 2 else "conversations[1].value"
        raise UserError(
            f"{place}, {name!r}: {answer!r} is no box, but a box is what the task is judged by; write it as "
            "[0.10, 0.25, 0.50, 1.00], or choose another of data.metrics"
        )


def judged(samples: Samples, metrics: Mapping[str, str]) -> dict[str, str]:
    """Return how each task is judged, sorted by task: as told, else as the task's name says.

    Raises UserError for a task of which neither says it, and where no sample is of a task that is told.
    """
    for task in metrics:
        if task not in samples.lettered:
            raise unknown("task", task, samples.lettered, place="data.metrics")
    return {task: _metric(task, samples.lettered[task], metrics) for task in sorted(samples.lettered)}


def _metric(task: str, lettered: bool, metrics: Mapping[str, str]) -> str:
    known = metrics.get(task, METRICS.get(task))
    if known is None:
        raise UserError(
            f"data.metrics: nothing says how answers of the task {task!r} are judged; write metrics: {{{task}: ...}}. "
            f"Choices: {', '.join(METRICS)}"
        )
    return "choice" if lettered and task not in metrics and known in ("text", "vqa") else known


def numbered(names: Sequence[str]) -> Iterator[str]:
    """Yield distinct names sorted: by number where all are whole numbers, else as texts."""
    distinct = set(names)
    yield from sorted(distinct, key=lambda name: (int(name), name) if _whole(distinct) else (0, name))


def _whole(names: Collection[str]) -> bool:
    return all(name.removeprefix("-").isdecimal() for name in names)
