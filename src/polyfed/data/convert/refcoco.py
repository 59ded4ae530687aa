"""RefCOCO, RefCOCO+ and RefCOCOg: ``instances.json`` and the references as JSON.

L. Yu et al., "Modeling Context in Referring Expressions", ECCV 2016; layout as in the repository lichengunc/refer: a
list of references (ref_id, ann_id, image_id, split, sentences), and COCO's images (file_name, width, height) and
annotations (bbox: left, top, width, height in pixels).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from polyfed.data.boxes import of_corner_and_size, to_square
from polyfed.data.conversations import Conversation, Split
from polyfed.data.convert.job import Ask, Job
from polyfed.data.json_fields import Fields
from polyfed.data.json_stream import elements, whole
from polyfed.errors import UserError, unknown

T = TypeVar("T")

OFFICIAL: dict[str, Split] = {"train": "train", "val": "val", "test": "test", "testA": "test", "testB": "test"}
FOLDERS = ("train2014", "images/train2014", "images/mscoco/images/train2014", "images")
PICKLE = (
    "is a pickle, which may run any program when it is opened; polyfed opens none. If you trust where it comes from, "
    "write its content as JSON once (docs/datasets.md has the lines) and give that"
)


class Picture(NamedTuple):
    """A picture's file and size in pixels."""

    file: str
    width: int
    height: int


def convert(job: Job) -> Iterator[Conversation]:
    """Yield a sample for every expression; its box is in the frame of the padded square."""
    refs = _references(job)
    path = refs.parent / "instances.json"
    content = Fields(whole(path), str(path))
    pictures = {image.integer("id"): _picture(image) for image in content.objects("images")}
    boxes = {note.integer("id"): note.four_numbers("bbox") for note in content.objects("annotations")}
    for line, _, raw in elements(refs):
        ref = Fields(raw, f"{refs}, line {line}")
        number, official = ref.integer("image_id"), ref.text("split")
        if official not in OFFICIAL:
            raise unknown("split", official, OFFICIAL, place=f"{ref.place}, 'split'")
        picture = _listed(ref, "image_id", pictures, path)
        box = _listed(ref, "ann_id", boxes, path)
        names = [f"{folder}/{picture.file}" for folder in FOLDERS] + [picture.file]
        image = job.picture(ref.place, *names)
        if image is None:
            continue
        square = to_square(of_corner_and_size(box, picture.width, picture.height), picture.width, picture.height)
        for sentence in ref.objects("sentences"):
            name = f"{official}-{ref.integer('ref_id')}-{sentence.integer('sent_id')}"
            ask = Ask(ref.place, name, image, "grounding", job.splits.of(OFFICIAL[official], number))
            yield from job.grounded(ask, sentence.text("sent"), square)


def _references(job: Job) -> Path:
    """Return the file of references, which is not to be a pickle."""
    pickled = [job.source] if job.source.suffix == ".p" else sorted(job.source.glob("refs*.p"))
    if pickled and (job.source.is_file() or not list(job.source.glob("refs*.json"))):
        raise UserError(f"{pickled[0]} {PICKLE}")
    return job.file("refs*.json")


def _picture(image: Fields) -> Picture:
    found = Picture(image.text("file_name"), image.integer("width"), image.integer("height"))
    if min(found[1:]) < 1:
        raise image.wrong("width", f"a picture of {found.width} × {found.height} pixels has no area")
    return found


def _listed(ref: Fields, name: str, known: dict[int, T], path: Path) -> T:
    number = ref.integer(name)
    if number not in known:
        raise ref.wrong(name, f"{number} is not in {path}")
    return known[number]
