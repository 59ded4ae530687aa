"""ScienceQA: ``problems.json`` and ``pid_splits.json``, and pictures in ``images/SPLIT/NUMBER/``.

P. Lu et al., "Learn to Explain: Multimodal Reasoning via Thought Chains for Science Question Answering", NeurIPS 2022;
layout as in the repository lupantech/ScienceQA.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from polyfed.data.conversations import Conversation, Split
from polyfed.data.convert import wording
from polyfed.data.convert.job import Ask, Job, chosen
from polyfed.data.json_fields import Fields
from polyfed.data.json_stream import members, whole

OFFICIAL: tuple[Split, ...] = ("train", "val", "test")


def convert(job: Job) -> Iterator[Conversation]:
    """Yield the problems of the official splits, with a picture or without."""
    path = job.file("problems.json", "data/scienceqa")
    splits = _splits(path.parent / "pid_splits.json")
    for line, number, raw in members(path):
        place = f"{path}, line {line}"
        problem = Fields(raw, place, f"{number}.")
        choices, answer = chosen(problem)
        question, hint = problem.text("question"), problem.text("hint") if problem.has("hint") else ""
        official = splits.get(number)
        if official is None:
            job.left_out["the problem is in no official split"] += 1
            continue
        image = None
        if problem.has("image"):
            name = f"{official}/{number}/{problem.text('image')}"
            image = job.picture(place, f"images/{name}", name)
            if image is None:
                continue
        ask = Ask(place, number, image, "vqa", job.splits.of(official, number))
        yield ask.answered(wording.multiple_choice(question, choices, hint), answer, choices=choices)


def _splits(path: Path) -> dict[str, Split]:
    content = Fields(whole(path), str(path))
    return {number: split for split in OFFICIAL for number in content.texts(split)}
