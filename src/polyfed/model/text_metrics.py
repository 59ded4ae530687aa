"""Metrics of generated text, by task: answers, captions, boxes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from polyfed.data.boxes import located, overlap, parse_box
from polyfed.data.option_letters import option_letter
from polyfed.errors import unknown
from polyfed.model.cider import Captions
from polyfed.model.metrics import Sums
from polyfed.model.tallies import Mean

ENOUGH_ANNOTATORS = 3


def normalised(answer: str) -> str:
    """Return an answer in lower case, without space around it and without a final full stop."""
    return answer.strip().lower().removesuffix(".").rstrip()


def exact_match(prediction: str, answer: str) -> bool:
    """Whether prediction and answer are the same once normalised."""
    return normalised(prediction) == normalised(answer)


def same_option(prediction: str, answer: str) -> bool:
    """Whether both choose the same option; a prediction that chooses none is wrong."""
    chosen = option_letter(prediction)
    return chosen is not None and chosen == option_letter(answer)


def vqa_consensus(prediction: str, answers: Sequence[str]) -> float:
    """Return the accuracy of VQAv2, whose questions were answered by several people (ten): from 0 to 1.

    Leaving each of them out in turn, the mean of min(how many of the others agree / 3, 1). Answers are normalised as
    for ``exact_match``. Raises ValueError for fewer than two answers.
    """
    if len(answers) < 2:
        raise ValueError(f"consensus needs the answers of two or more people, not {len(answers)}")
    agree = [exact_match(prediction, answer) for answer in answers]
    return sum(min((sum(agree) - one) / ENOUGH_ANNOTATORS, 1.0) for one in agree) / len(agree)


def box_overlap(prediction: str, answer: str) -> float:
    """Return the intersection over union of the boxes that two texts name; 0 if the prediction names none.

    Raises ValueError if the answer names none.
    """
    target = parse_box(answer)
    if target is None:
        raise ValueError(f"{answer!r} is no box")
    said = parse_box(prediction)
    return overlap(said, target) if said is not None else 0.0


def text_sums(task: str, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Sums:
    """Take the metrics of generated texts, each with its reference texts.

    ``vqa`` and ``text``: ``accuracy`` by exact match, or by consensus where there are several answers. ``choice``:
    ``accuracy`` of the option's letter. ``caption``: ``cider``, from 0 to 1000. ``grounding``: ``accuracy``, the share
    of boxes that overlap with the right one by at least one half (intersection over union), and ``iou``, the mean
    overlap. Raises UserError for another task, ValueError where references are missing or are no boxes.
    """
    if task not in TEXT_METRICS:
        raise unknown("task", task, TEXT_METRICS)
    return TEXT_METRICS[task](predictions, references)


def _answers(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Sums:
    pairs = zip(predictions, references, strict=True)
    return {"accuracy": _mean(_agreement(prediction, answers) for prediction, answers in pairs)}


def _agreement(prediction: str, answers: Sequence[str]) -> float:
    return exact_match(prediction, answers[0]) if len(answers) == 1 else vqa_consensus(prediction, answers)


def _choices(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Sums:
    pairs = zip(predictions, references, strict=True)
    return {"accuracy": _mean(same_option(prediction, answers[0]) for prediction, answers in pairs)}


def _captions(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Sums:
    return {"cider": Captions.of(predictions, references)}


def _boxes(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Sums:
    pairs = zip(predictions, references, strict=True)
    shared = [box_overlap(prediction, answers[0]) for prediction, answers in pairs]
    return {"accuracy": _mean(map(located, shared)), "iou": _mean(shared)}


def _mean(values: Iterable[float]) -> Mean:
    return Mean.of(torch.tensor([float(value) for value in values], dtype=torch.float64))


TEXT_METRICS: dict[str, Callable[[Sequence[str], Sequence[Sequence[str]]], Sums]] = {
    "caption": _captions,
    "vqa": _answers,
    "text": _answers,
    "choice": _choices,
    "grounding": _boxes,
}
"""Task -> its metrics. The first name in each result is the one the task is judged by."""
