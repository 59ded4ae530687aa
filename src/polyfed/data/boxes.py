"""Boxes in the frame that a model sees: the picture padded to a square, sides from 0 to 1.

LLaVA pads the shorter side on both ends (the smaller half first where they differ by a pixel) and resizes; so a box in
this frame means the same whatever the resolution.
"""

from __future__ import annotations

import math
import re

Box = tuple[float, float, float, float]
"""Left, top, right, bottom; the origin is at the top left."""

LONGEST = 1000
"""No box is looked for beyond so many characters of a text."""

ENOUGH_OVERLAP = 0.5
ROUNDING = 1e-9
"""An overlap this close below one half is one half: decimal edges such as 0.1 are no exact binary numbers."""

_NUMBER = r"\s*([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))\s*"
_FOUR = ",".join([_NUMBER] * 4)
_BOX = re.compile(rf"[\[(]{_FOUR}[\])]|^{_FOUR}\.?\s*$")


def to_square(box: Box, width: int, height: int) -> Box:
    """Convert a box from shares of a picture's width and height (in pixels) to shares of the padded square."""
    side, left, top = _frame(width, height)
    x1, y1, x2, y2 = box
    return (
        (x1 * width + left) / side,
        (y1 * height + top) / side,
        (x2 * width + left) / side,
        (y2 * height + top) / side,
    )


def from_square(box: Box, width: int, height: int) -> Box:
    """Convert a box from shares of the padded square to shares of the picture, cut at the picture's edges."""
    side, left, top = _frame(width, height)
    x1, y1, x2, y2 = box
    return (
        _share((x1 * side - left) / width),
        _share((y1 * side - top) / height),
        _share((x2 * side - left) / width),
        _share((y2 * side - top) / height),
    )


def of_corner_and_size(found: Box, width: int, height: int) -> Box:
    """Convert COCO's boxes (left, top, width, height in pixels) to shares of the picture, cut at its edges."""
    x, y, w, h = found
    return _share(x / width), _share(y / height), _share((x + w) / width), _share((y + h) / height)


def box_text(box: Box) -> str:
    """Write a box as answers give it: ``[0.10, 0.25, 0.50, 1.00]``."""
    return f"[{', '.join(f'{value:.2f}' for value in box)}]"


def parse_box(text: str) -> Box | None:
    """Return the first box that stands in a text: four numbers with commas, in brackets or with nothing else.

    None if there is none, and where the right edge is left of the left one or the lower above the upper.
    """
    found = _BOX.search(text[:LONGEST])
    if found is None:
        return None
    x1, y1, x2, y2 = (float(number) for number in found.groups() if number is not None)
    # a run of several hundred digits is infinite
    return (x1, y1, x2, y2) if math.isfinite(x1 + y1 + x2 + y2) and x1 <= x2 and y1 <= y2 else None


def overlap(one: Box, other: Box) -> float:
    """Return the intersection of two boxes over their union, 0 to 1."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / (_area(one) + _area(other) - width * height)


def located(shared: float) -> bool:
    """Whether an overlap is enough for a thing to be found: at least one half."""
    return shared >= ENOUGH_OVERLAP - ROUNDING


def sayable(box: Box) -> bool:
    """Whether the box written with two decimals is still the same object (intersection over union of 0.5)."""
    written = parse_box(box_text(box))
    return written is not None and overlap(box, written) >= ENOUGH_OVERLAP


def _frame(width: int, height: int) -> tuple[int, int, int]:
    """Return the side of the square, and what is padded at the left and at the top, in pixels."""
    side = max(width, height)
    return side, (side - width) // 2, (side - height) // 2


def _share(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
