"""Boxes as numbers and as text."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyfed.data.boxes import Box, box_text, overlap, parse_box

EDGES = st.tuples(st.integers(0, 99), st.integers(1, 100)).filter(lambda edges: edges[0] < edges[1])
HUNDREDTHS = st.tuples(EDGES, EDGES).map(lambda pair: (pair[0][0], pair[1][0], pair[0][1], pair[1][1]))


def shares(box: tuple[int, ...]) -> Box:
    left, upper, right, lower = (edge / 100 for edge in box)
    return left, upper, right, lower


def exact_overlap(first: tuple[int, ...], second: tuple[int, ...]) -> Fraction:
    def pixels(box: tuple[int, ...]) -> set[tuple[int, int]]:
        return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}

    return Fraction(len(pixels(first) & pixels(second)), len(pixels(first) | pixels(second)))


def test_text_has_two_decimals() -> None:
    assert box_text((0.25, 0.0, 0.5, 0.3125)) == "[0.25, 0.00, 0.50, 0.31]"


@given(HUNDREDTHS)
def test_text_and_back(box: tuple[int, int, int, int]) -> None:
    assert parse_box(box_text(shares(box))) == pytest.approx(shares(box), abs=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        "[0.1, 0.2, 0.3, 0.4]",
        "[.1,.2,.3,.4]",
        "(0.1, 0.2, 0.3, 0.40)",
        "0.1, 0.2, 0.3, 0.4.",
        " 0.1, 0.2, 0.3, 0.4\n",
        "It is at [ 0.1 , 0.2 ,\n0.3 , 0.4 ], I think, or [0.5, 0.5, 0.9, 0.9].",
        "3 things, one at [0.1, 0.2, 0.3, 0.4]",
    ],
)
def test_lenient_reading(text: str) -> None:
    assert parse_box(text) == (0.1, 0.2, 0.3, 0.4)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "left",
        "[0.1, 0.2, 0.3]",
        "[0.1, 0.2, 0.3, 0.4, 0.5]",
        "[0.1 0.2 0.3 0.4]",
        "[0.1, 0.2, 0.3, 0.4",
        "[0.1, 0.2, nan, 0.4]",
        "[0.1, 0.2, inf, 0.4]",
        "[0.1, 0.2, 1e9, 0.4]",
        "[0.3, 0.2, 0.1, 0.4]",
        "[0.1, 0.4, 0.3, 0.2]",
        f"[0.1, 0.2, {'9' * 400}, 0.4]",
        f"[0.1, 0.2, 0.3, {'4' * 5000}]",
        "[٠, 0, ١, 1]",
    ],
)
def test_no_box(text: str) -> None:
    assert parse_box(text) is None


@given(st.text(st.sampled_from("[](),.- 019e\n"), max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    box = parse_box(text)
    assert box is None or (box[0] <= box[2] and box[1] <= box[3])


def test_overlap_by_hand() -> None:
    assert overlap((0, 0, 1, 1), (0, 0, 1, 0.5)) == 0.5
    assert overlap((0, 0, 0.5, 0.5), (0.25, 0.25, 0.75, 0.75)) == pytest.approx(1 / 7)
    assert overlap((0, 0, 0.5, 1), (0.5, 0, 1, 1)) == 0
    assert overlap((0.2, 0.2, 0.2, 0.4), (0.2, 0.2, 0.2, 0.4)) == 0


@given(HUNDREDTHS, HUNDREDTHS)
def test_overlap_counts_cells(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    found = overlap(shares(first), shares(second))
    assert found == pytest.approx(float(exact_overlap(first, second)), abs=1e-9)
    assert found == overlap(shares(second), shares(first))
    assert overlap(shares(first), shares(first)) == pytest.approx(1)
