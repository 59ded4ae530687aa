"""Metrics of generated text."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyfed.data.boxes import located, overlap
from polyfed.data.option_letters import option_letter
from polyfed.errors import UserError
from polyfed.model.metrics import add_sums, finish
from polyfed.model.text_metrics import (
    box_overlap,
    exact_match,
    same_option,
    text_sums,
    vqa_consensus,
)


@pytest.mark.parametrize("prediction", ["red", " Red", "RED.", "red .\n"])
def test_exact_match(prediction: str) -> None:
    assert exact_match(prediction, "Red")


@pytest.mark.parametrize("prediction", ["", "red..", "dark red", "re", ".red"])
def test_no_match(prediction: str) -> None:
    assert not exact_match(prediction, "red")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(c).", "C"),
        ("D. a whale", "D"),
        ("The answer is B, not C.", "B"),
        ("Because of E", "E"),
        ("it is a dog", None),
        ("F", None),
        ("ABC", None),
        ("", None),
    ],
)
def test_option_letter(text: str, letter: str | None) -> None:
    assert option_letter(text) == letter


def test_choosing_nothing_is_wrong() -> None:
    assert same_option("B. a whale", "B")
    assert not same_option("a whale", "B")
    assert not same_option("a whale", "none")


@pytest.mark.parametrize(("agreeing", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_consensus_of_ten(agreeing: int, expected: float) -> None:
    # one of ten agrees: in 9 of 10 subsets min(1/3, 1), in the other 0
    answers = ["Red."] * agreeing + ["blue"] * (10 - agreeing)
    assert vqa_consensus("red", answers) == pytest.approx(expected)


def test_consensus_needs_people() -> None:
    with pytest.raises(ValueError, match="two or more"):
        vqa_consensus("red", ["red"])


def test_half_overlap_is_enough() -> None:
    assert located(box_overlap("[0.00, 0.00, 1.00, 0.50]", "[0.00, 0.00, 1.00, 1.00]"))
    # exactly one half, which binary fractions miss
    assert overlap((0.1, 0.1, 0.4, 0.4), (0.1, 0.1, 0.4, 0.25)) != 0.5
    assert located(box_overlap("[0.10, 0.10, 0.40, 0.40]", "[0.10, 0.10, 0.40, 0.25]"))
    assert not located(box_overlap("[0.00, 0.00, 1.00, 0.49]", "[0.00, 0.00, 1.00, 1.00]"))
    assert not located(box_overlap("nowhere", "[0.00, 0.00, 1.00, 1.00]"))


SIDE = st.integers(1, 100)


@given(SIDE, SIDE, SIDE, SIDE)
def test_located_is_exact_for_hundredths(width: int, height: int, other_width: int, other_height: int) -> None:
    shared = min(width, other_width) * min(height, other_height)
    exact = Fraction(shared, width * height + other_width * other_height - shared)
    boxes = [f"[0.00, 0.00, {x / 100:.2f}, {y / 100:.2f}]" for x, y in ((width, height), (other_width, other_height))]
    assert located(box_overlap(*boxes)) == (exact >= Fraction(1, 2))


def test_a_reference_must_be_a_box() -> None:
    with pytest.raises(ValueError, match="'left' is no box"):
        box_overlap("[0, 0, 1, 1]", "left")


def test_metrics_by_task() -> None:
    assert finish(text_sums("vqa", ["Red", "blue"], [["red"], ["red"]])) == {"accuracy": 0.5}
    assert finish(text_sums("vqa", ["red"], [["red", "blue"]])) == {"accuracy": pytest.approx(1 / 6)}
    assert finish(text_sums("text", ["two."], [["two"]])) == {"accuracy": 1.0}
    assert finish(text_sums("choice", ["B.", "C"], [["B"], ["B"]])) == {"accuracy": 0.5}
    assert finish(text_sums("caption", ["a b c d", "x"], [["a b c d"], ["e f"]])) == {"cider": pytest.approx(500)}
    boxes = text_sums("grounding", ["[0, 0, 1, 0.5]", "?"], [["[0, 0, 1, 1]"], ["[0, 0, 1, 1]"]])
    assert finish(boxes) == {"accuracy": 0.5, "iou": 0.25}


def test_batches_add_up() -> None:
    said, wanted = ["a b c d", "e f g h", "a b"], [["a b c d"], ["e f g i"], ["b a"]]
    parts = add_sums(text_sums("caption", said[:1], wanted[:1]), text_sums("caption", said[1:], wanted[1:]))
    assert finish(parts) == finish(text_sums("caption", said, wanted))


@pytest.mark.parametrize("task", ["caption", "vqa", "text", "choice", "grounding"])
def test_nothing_to_judge(task: str) -> None:
    assert finish(text_sums(task, [], [])) == {}


@pytest.mark.parametrize("task", ["caption", "vqa", "choice", "grounding"])
def test_every_prediction_needs_references(task: str) -> None:
    with pytest.raises(ValueError, match="zip"):
        text_sums(task, ["a", "b"], [["[0, 0, 1, 1]"]])


def test_unknown_task() -> None:
    with pytest.raises(UserError, match="unknown task 'captions'; did you mean 'caption'"):
        text_sums("captions", [], [])
