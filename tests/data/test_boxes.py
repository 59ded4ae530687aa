"""Boxes in the frame of the padded square; ``test_box_texts`` has them as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyfed.data.boxes import Box, box_text, from_square, of_corner_and_size, sayable, to_square

SHARE = st.floats(0, 1)
BOX = st.tuples(SHARE, SHARE, SHARE, SHARE).map(
    lambda edges: (min(edges[0], edges[2]), min(edges[1], edges[3]), max(edges[0], edges[2]), max(edges[1], edges[3]))
)
PIXELS = st.integers(1, 5000)


@pytest.mark.parametrize(
    ("box", "size", "square"),
    [
        ((0.0, 0.0, 1.0, 1.0), (100, 100), (0.0, 0.0, 1.0, 1.0)),
        ((0.0, 0.0, 1.0, 1.0), (200, 100), (0.0, 0.25, 1.0, 0.75)),  # 50 pixels of padding above and below
        ((0.0, 0.0, 1.0, 1.0), (100, 200), (0.25, 0.0, 0.75, 1.0)),
        ((0.5, 0.5, 1.0, 1.0), (200, 100), (0.5, 0.5, 1.0, 0.75)),
        ((0.0, 0.0, 1.0, 1.0), (4, 1), (0.0, 0.25, 1.0, 0.5)),  # 3 pixels of padding: 1 above, 2 below
    ],
)
def test_to_square_by_hand(box: Box, size: tuple[int, int], square: Box) -> None:
    assert to_square(box, *size) == square
    assert from_square(square, *size) == box


@given(BOX, PIXELS, PIXELS)
def test_to_square_and_back(box: Box, width: int, height: int) -> None:
    square = to_square(box, width, height)
    assert all(0 <= edge <= 1 for edge in square)
    shorter = min(width, height) / max(width, height)
    assert from_square(square, width, height) == pytest.approx(box, abs=1e-9 / shorter)


def test_what_lies_in_the_padding_is_cut_off() -> None:
    assert from_square((0.0, 0.0, 1.0, 0.5), 200, 100) == (0.0, 0.0, 1.0, 0.5)
    assert from_square((0.0, 0.9, 1.0, 1.0), 200, 100) == (0.0, 1.0, 1.0, 1.0)


def test_boxes_of_coco_by_hand() -> None:
    assert of_corner_and_size((20, 10, 100, 40), 200, 100) == (0.1, 0.1, 0.6, 0.5)
    assert of_corner_and_size((150, -1, 51, 102), 200, 100) == (0.75, 0.0, 1.0, 1.0)  # beyond the edges
    assert box_text(to_square(of_corner_and_size((20, 10, 100, 40), 200, 100), 200, 100)) == "[0.10, 0.30, 0.60, 0.50]"


def test_a_box_is_sayable_if_two_decimals_keep_half_of_it() -> None:
    assert sayable((0.1, 0.1, 0.2, 0.2))
    assert not sayable((0.101, 0.1, 0.104, 0.2))  # both edges become 0.10
    assert not sayable((0.104, 0.1, 0.106, 0.2))  # becomes 0.10 to 0.11: a fifth of that
    assert sayable((0.104, 0.1, 0.116, 0.2))  # becomes 0.10 to 0.12: three fifths
