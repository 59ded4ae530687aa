"""``scienceqa_text.jsonl.gz``: questions of ScienceQA without their pictures (docs/datasets.md describes the file)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from polyfed.data.conversations import Conversation, Split
from polyfed.data.convert import wording
from polyfed.data.convert.job import Ask, Job, chosen
from polyfed.data.json_fields import Fields
from polyfed.data.json_stream import elements
from polyfed.errors import unknown

SPLITS: dict[str, Split] = {split: split for split in get_args(Split)}


def convert(job: Job) -> Iterator[Conversation]:
    """Yield the questions that need no picture; those with one are left out, since it is not there."""
    path = job.file("scienceqa_text.jsonl*")
    for line, _, raw in elements(path):
        problem = Fields(raw, f"{path}, line {line}")
        number, split = problem.label("id"), problem.text("split")
        if split not in SPLITS:
            raise unknown("split", split, SPLITS, place=f"{problem.place}, 'split'")
        choices, answer = chosen(problem)
        if problem.value("has_image"):
            job.left_out["the question has a picture, which is not in this set"] += 1
            continue
        ask = Ask(problem.place, number, None, "text", job.splits.of(SPLITS[split], number))
        yield ask.answered(wording.lettered(problem.text("prompt")), answer, choices=choices)
