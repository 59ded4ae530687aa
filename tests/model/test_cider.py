"""CIDEr-D against figures computed with pycocoevalcap 1.2 and by hand."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyfed.model.cider import Captions, cider, words

WORDS = st.lists(st.sampled_from(["a", "red", "circle", "on", "black"]), min_size=1, max_size=7).map(" ".join)
SETS = st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=3)), min_size=1, max_size=6)


def score(*pairs: tuple[str, list[str]]) -> list[float]:
    return cider([said for said, _ in pairs], [texts for _, texts in pairs])


def test_figures_of_the_coco_toolkit() -> None:
    found = score(
        (
            "a small red square on a black background",
            ["a small red circle on a black background", "there is a small red circle"],
        ),
        ("a large blue square and a small green cross", ["a large blue square and a small green cross"]),
        ("a red cross cross", ["a red cross"]),
    )
    assert found == pytest.approx([326.92059157737407, 1000.0, 531.5801563819314], rel=1e-12)


def test_by_hand() -> None:
    # Picture 1: of orders 1 and 2 nothing is in common with weight ("a" is everywhere), so "a b" against "a c" is 0.
    # Picture 2: "a d" is right, in 2 of 4 orders; order 1 by "d" alone.
    assert score(("a b", ["a c"]), ("a d", ["a d"])) == pytest.approx([0, 500])
    # "d d" for "d": the second one is clipped, 1 · 1 / (2 · 1); one bigram too many against none.
    length = math.exp(-1 / 72)
    assert score(("d d", ["d"]), ("x", ["y"])) == pytest.approx([1000 * 0.5 * length / 4, 0])


def test_perfect_captions() -> None:
    assert score(("a b c d", ["a b c d"]), ("e f g h", ["e f g h"])) == pytest.approx([1000, 1000])
    assert score(("a b c", ["a b c"]), ("e f g", ["e f g"])) == pytest.approx([750, 750])


def test_a_single_picture_gets_nothing() -> None:
    assert score(("a b c d", ["a b c d"])) == [0]


def test_copying_one_of_two_references_is_not_perfect() -> None:
    several = ["a red kite flies over the sea", "somebody lets a kite fly"]
    found = score((several[0], several), ("two dogs sleep here", ["two dogs sleep here"]))
    assert 500 < found[0] < 1000


def test_nothing_said() -> None:
    assert score(("", ["a b"]), ("a b", ["c d"])) == [0, 0]


def test_unequal_lists_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        cider(["a"], [["a"], ["b"]])
    with pytest.raises(ValueError, match="at least one reference"):
        cider(["a"], [[]])


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A small, RED circle.", "a small red circle"),
        ("A man's dog isn't black-and-white; it's 2.5 m tall!", "a man 's dog is n't black-and-white it 's 2.5 m tall"),
        ('a chair,couch (and) "10,000" $ 50%', "a chair couch and 10,000 $ 50 %"),
        ("They can’t; cannot.", "they ca n't can not"),
        ("", ""),
    ],
)
def test_words_as_the_toolkit_splits_them(caption: str, expected: str) -> None:
    assert " ".join(words(caption)) == expected


@given(SETS)
def test_bounds(pairs: list[tuple[str, list[str]]]) -> None:
    assert all(0 <= value <= 1000 + 1e-9 for value in score(*pairs))


@given(SETS, st.randoms(use_true_random=False), st.integers(0, 6))
def test_order_and_batches_do_not_matter(pairs: list[tuple[str, list[str]]], shuffle: random.Random, cut: int) -> None:
    def batch(part: list[tuple[str, list[str]]]) -> Captions:
        return Captions.of([said for said, _ in part], [texts for _, texts in part])

    whole = batch(pairs)
    mixed = list(pairs)
    shuffle.shuffle(mixed)
    both = batch(mixed[:cut]) + batch(mixed[cut:])
    assert both.samples == whole.samples == len(pairs)
    assert both.result() == whole.result()


def test_no_captions_no_result() -> None:
    assert Captions.of([], []).result() is None
