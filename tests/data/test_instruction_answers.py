"""Answers of instruction files that cannot be judged as their task is: no letter of an option, no right box."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.data.test_instructions import built, plain, sample, write

from polyfed.errors import UserError

LETTERLESS: dict[str, tuple[dict[str, Any], str]] = {
    "a word": ({"value": "red"}, "'conversations[1].value': 'red' names none of the letters A, B"),
    "a letter beyond": ({"value": "D"}, "'conversations[1].value': 'D' names none of the letters A, B"),
    "an option that looks like another's letter": (
        {"value": "A cat", "choices": ["a dog", "A cat"]},
        "'conversations[1].value': 'A cat' is one of the 'choices', but would be taken for A",
    ),
    "a reference": ({"value": "A", "answers": ["red"]}, "'answers[0]': 'red' names none of the letters A, B"),
}


@pytest.mark.parametrize("case", LETTERLESS)
def test_answers_that_choose_no_option_are_refused_where_letters_are_judged(case: str, tmp_path: Path) -> None:
    changes, message = LETTERLESS[case]
    more = {"choices": ["x", "y"], **changes}
    answer = more.pop("value")
    samples = [plain(0, "A or B?", "B.", choices=["x", "y"]), plain(1, "A or B?", answer, **more)]
    path = write(tmp_path, samples)
    with pytest.raises(UserError) as error:
        built(path)
    assert str(error.value) == (
        f"{path}, line 3, {message}, but the task 'text' is judged by the letter of the answer; write that letter, or "
        "say how else it is judged: data.metrics: {text: vqa}"
    )
    assert built(path, metrics={"text": "vqa"}).tasks["text"].metric == "vqa"
    free = write(tmp_path / "free", [*samples, plain(2, "Which?", "red")])
    assert built(free).tasks["text"].metric == "text", "not all samples have choices"
    with pytest.raises(UserError, match=r"free.*line 3, .* the task 'text' is judged by the letter"):
        built(free, metrics={"text": "choice"})


def test_answers_that_choose_an_option_need_no_more_than_its_letter(tmp_path: Path) -> None:
    options = ["A. cat", "B. dog"]
    samples = [plain(i, "Which?", said, choices=options) for i, said in enumerate(["B", "(b)", "B. dog", "It is A."])]
    assert built(write(tmp_path, samples)).tasks["text"].metric == "choice"


def boxed(answer: str, **more: Any) -> dict[str, Any]:
    return plain(1, "Where?", answer, task="grounding", **more)


WRONG_BOXES: dict[str, tuple[dict[str, Any], str]] = {
    "box in pixels": (
        boxed("[10, 10, 50, 50]"),
        "'conversations[1].value': '[10, 10, 50, 50]' has values outside 0 to 1",
    ),
    "box below zero": (
        boxed("[-0.10, 0.10, 0.50, 0.50]"),
        "'conversations[1].value': '[-0.10, 0.10, 0.50, 0.50]' has values outside 0 to 1",
    ),
    "flat box": (
        boxed("[0.10, 0.20, 0.10, 0.50]"),
        "'conversations[1].value': '[0.10, 0.20, 0.10, 0.50]' has no area",
    ),
    "another box": (
        boxed("[0.10, 0.20, 0.30, 0.50]", box=[0.5, 0.2, 0.7, 0.5]),
        "'conversations[1].value': '[0.10, 0.20, 0.30, 0.50]' is another box than the sample's own 'box',"
        " [0.5, 0.2, 0.7, 0.5]",
    ),
    "another box as reference": (
        boxed("[0.10, 0.20, 0.30, 0.50]", box=[0.1, 0.2, 0.3, 0.5], answers=["[0.00, 0.00, 0.20, 0.20]"]),
        "'answers[0]': '[0.00, 0.00, 0.20, 0.20]' is another box",
    ),
}


@pytest.mark.parametrize("case", WRONG_BOXES)
def test_boxes_that_mean_something_else_are_refused(case: str, tmp_path: Path) -> None:
    bad, message = WRONG_BOXES[case]
    path = write(tmp_path, [sample(0), bad])
    with pytest.raises(UserError) as error:
        built(path)
    assert str(error.value).startswith(f"{path}, line 3, {message}")


def test_boxes_that_are_meant_alike_are_taken(tmp_path: Path) -> None:
    said = [
        boxed("[0.10, 0.20, 0.30, 0.50]", box=[0.1049, 0.2, 0.2951, 0.504]),
        boxed("[0, 0, 1, 1]"),
        plain(
            2,
            "Where?",
            "[0.1, 0.1, 0.2, 0.2]",
            "And?",
            "[0.5, 0.5, 0.6, 0.6]",
            task="grounding",
            box=[0.5, 0.5, 0.6, 0.6],
        ),
    ]
    assert len(built(write(tmp_path, said)).train) == 3


def test_choices_that_are_answered_in_words_are_judged_by_words(tmp_path: Path) -> None:
    samples = [plain(i, "Is it?", said, choices=["yes", "no"]) for i, said in enumerate(["yes", "no", "yes"])]
    assert built(write(tmp_path, samples)).tasks["text"].metric == "text"
