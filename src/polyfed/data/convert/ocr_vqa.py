"""OCR-VQA: ``dataset.json``, a member per book cover.

A. Mishra et al., "OCR-VQA: Visual Question Answering by Reading Text in Images", ICDAR 2019. Of a cover ``imageURL``
(for the ending of the file's name), ``questions``, ``answers`` and ``split`` (1 train, 2 val, 3 test) are used.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from polyfed.data.conversations import Conversation, Split
from polyfed.data.convert import wording
from polyfed.data.convert.job import Ask, Job
from polyfed.data.json_fields import Fields
from polyfed.data.json_stream import members

OFFICIAL: dict[int, Split] = {1: "train", 2: "val", 3: "test"}


def convert(job: Job) -> Iterator[Conversation]:
    """Yield a sample for every question about a cover."""
    path = job.file("dataset.json")
    for line, key, raw in members(path):
        place = f"{path}, line {line}"
        cover = Fields(raw, place, f"{key}.")
        questions, answers, number = cover.texts("questions"), cover.texts("answers"), cover.integer("split")
        if len(questions) != len(answers):
            raise cover.wrong("answers", f"holds {len(answers)} answers to {len(questions)} questions")
        if number not in OFFICIAL:
            raise cover.wrong("split", f"{number} is no split. Choices: 1 (train), 2 (val), 3 (test)")
        ending = PurePosixPath(cover.text("imageURL")).suffix
        names = [f"{key}{ending}", f"{key}.jpg"]  # some download all covers as .jpg
        image = job.picture(place, *(f"images/{name}" for name in names), *names)
        if image is None:
            continue
        split = job.splits.of(OFFICIAL[number], key)
        for i, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            if job.says(answer):
                yield Ask(place, f"{key}-{i}", image, "vqa", split).answered(wording.short(question), answer)
