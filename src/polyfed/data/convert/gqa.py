"""GQA's questions: ``train_balanced_questions.json`` and the like, a member per question.

D. A. Hudson and C. D. Manning, "GQA: A New Dataset for Real-World Visual Reasoning and Compositional Question
Answering", CVPR 2019. Of a question ``imageId``, ``question`` and ``answer`` are used. The parts test and
challenge have no answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from polyfed.data.conversations import Conversation, Split
from polyfed.data.convert import wording
from polyfed.data.convert.job import Ask, Job
from polyfed.data.json_fields import Fields
from polyfed.data.json_stream import members
from polyfed.errors import UserError

OFFICIAL: dict[str, Split] = {"train": "train", "val": "val", "testdev": "test"}


def convert(job: Job) -> Iterator[Conversation]:
    """Yield the balanced questions of the parts with answers, or those of the one file that was named."""
    found = job.files("*_balanced_questions.json", "questions")
    named = [path for path in found if _part(path) in OFFICIAL] if job.source.is_dir() else found
    if not named:
        raise UserError(f"{job.source}: none of the files of questions has answers; those of {', '.join(OFFICIAL)} do")
    for path in named:
        yield from _questions(job, path)


def _part(path: Path) -> str:
    return path.name.split("_", 1)[0]


def _questions(job: Job, path: Path) -> Iterator[Conversation]:
    official = OFFICIAL.get(_part(path))
    for line, key, raw in members(path):
        place = f"{path}, line {line}"
        question = Fields(raw, place, f"{key}.")
        number = question.label("imageId")
        asked, answer = wording.short(question.text("question")), question.text("answer")
        image = job.picture(place, f"images/{number}.jpg", f"{number}.jpg")
        if image is not None and job.says(answer):
            yield Ask(place, key, image, "vqa", job.splits.of(official, number)).answered(asked, answer)
