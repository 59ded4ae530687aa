"""``coco_mini``: photographs with captions, boxes and questions (docs/datasets.md describes the files).

Three tasks are made of each photograph: captions; questions (those of A-OKVQA, D. Schwenk et al., arXiv:2206.01718,
and, where its boxes are complete, what is there and how often); and where the only object of a category is.
Categories with a crowd box are left out, because a crowd is not counted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

from polyfed.data.boxes import Box, to_square
from polyfed.data.conversations import Conversation, Split
from polyfed.data.convert import wording
from polyfed.data.convert.job import Ask, Job
from polyfed.data.json_fields import Fields
from polyfed.data.json_stream import elements
from polyfed.data.source import Layout, locate
from polyfed.data.tar_archive import unpack_tar
from polyfed.errors import unknown
from polyfed.rng import numpy_generator

LAYOUTS = (
    Layout("packed", (("coco_mini/images.tar",), ("coco_mini/annotations.jsonl.gz",))),
    Layout("folder", (("images.tar",), ("annotations.jsonl.gz",))),
)
SPLITS: dict[str, Split] = {split: split for split in get_args(Split)}
IMAGES = "images"


class Thing(NamedTuple):
    """One box: its category, corners as shares of the photograph, and whether it holds a crowd."""

    category: str
    box: Box
    crowd: bool


@dataclass(frozen=True)
class Photo:
    """One photograph; ``things`` is None where its boxes are not known."""

    fields: Fields
    number: int
    file: str
    split: Split
    things: tuple[Thing, ...] | None

    def ask(self, job: Job, name: str, task: str) -> Ask:
        """Begin a sample."""
        return Ask(self.fields.place, f"{self.number}-{name}", self.file, task, job.splits.of(self.split, self.number))

    def counts(self) -> Counter[str]:
        """Count the objects of each category that has no crowd, in the order of the boxes."""
        things = self.things or ()
        crowded = {thing.category for thing in things if thing.crowd}
        return Counter(thing.category for thing in things if thing.category not in crowded)


def convert(job: Job) -> Iterator[Conversation]:
    """Unpack the photographs into the result, and yield the samples of all three tasks photograph by photograph."""
    tar, notes = locate("coco_mini", "coco-mini", job.source, LAYOUTS).paths
    names = unpack_tar(tar, job.made / IMAGES)
    lines = elements(notes)
    header = Fields(next(lines).value, f"{notes}, line 1")
    categories, licences, credits = header.texts("categories"), header.value("licenses"), []
    for line, _, raw in lines:
        photo = _photo(Fields(raw, f"{notes}, line {line}"), names)
        credits.append(_credit(photo.fields, licences))
        captions = photo.fields.texts("captions")
        yield from job.captions(photo.fields.place, photo.number, photo.file, captions, photo.split)
        yield from _asked(job, photo)
        yield from _counted(job, photo, categories)
        yield from _located(job, photo)
    (job.made / "credits.json").write_text(json.dumps(credits, indent=1), encoding="utf-8")


def _photo(fields: Fields, names: frozenset[str]) -> Photo:
    file, split = fields.text("file"), fields.text("split")
    if file not in names:
        raise fields.wrong("file", f"{file!r} is not in images.tar")
    if split not in SPLITS:
        raise unknown("split", split, SPLITS, place=f"{fields.place}, 'split'")
    things = tuple(_things(fields)) if fields.has("boxes") else None
    return Photo(fields, fields.integer("id"), file, SPLITS[split], things)


def _things(fields: Fields) -> Iterator[Thing]:
    for i, entry in enumerate(fields.value("boxes")):
        if not isinstance(entry, list) or len(entry) != 6:
            raise fields.wrong(f"boxes[{i}]", "must be [category, left, top, right, bottom, crowd]")
        named = Fields({"category": entry[0], "box": entry[1:5], "crowd": entry[5]}, fields.place, f"boxes[{i}].")
        yield Thing(named.text("category"), named.four_numbers("box"), bool(named.integer("crowd")))


def _asked(job: Job, photo: Photo) -> Iterator[Conversation]:
    """Yield the questions of A-OKVQA; the commonest of the ten answers (the first of several) is the one to learn."""
    for question in photo.fields.objects("aokvqa"):
        answers = question.texts("direct_answers")
        if not answers:
            raise question.wrong("direct_answers", "is empty")
        ((commonest, _),) = Counter(answers).most_common(1)
        ask = photo.ask(job, f"aokvqa-{question.text('question_id')}", "vqa")
        yield ask.answered(wording.short(question.text("question")), commonest, answers=answers)


def _counted(job: Job, photo: Photo, categories: tuple[str, ...]) -> Iterator[Conversation]:
    """Yield what is there and how often, and as many questions for what is not there."""
    if photo.things is None:
        return
    counts, seen = photo.counts(), {thing.category for thing in photo.things}
    for category, number in counts.items():
        yield photo.ask(job, f"presence-{category}", "vqa").answered(wording.present(category), "yes")
        yield photo.ask(job, f"count-{category}", "vqa").answered(wording.count(category), str(number))
    absent = [category for category in categories if category not in seen]
    draw = numpy_generator(job.splits.seed, "absent categories", photo.number)
    for i in draw.permutation(len(absent))[: len(counts)].tolist():
        yield photo.ask(job, f"presence-{absent[i]}", "vqa").answered(wording.present(absent[i]), "no")


def _located(job: Job, photo: Photo) -> Iterator[Conversation]:
    """Yield where the only object of a category is, in the frame of the padded square."""
    if photo.things is None:
        return
    width, height = _size(photo.fields)
    counts = photo.counts()
    for thing in photo.things:
        if counts[thing.category] == 1:
            square = to_square(thing.box, width, height)
            ask = photo.ask(job, f"where-{thing.category}", "grounding")
            yield from job.grounded(ask, f"the {thing.category}", square)


def _size(fields: Fields) -> tuple[int, int]:
    size = fields.integers("size")
    if len(size) != 2 or min(size) < 1:
        raise fields.wrong("size", f"{list(size)} is no width and height in pixels")
    return size[0], size[1]


def _credit(fields: Fields, licences: dict[str, Any]) -> dict[str, Any]:
    """Return whom a photograph is owed to: its licence, where it comes from, and whether it was made smaller."""
    name, url = licences.get(fields.label("license"), ("unknown", ""))
    kept = {key: fields.raw.get(key) for key in ("file", "flickr_url", "coco_url", "resized")}
    return {**kept, "licence": name, "licence_url": url}
