"""CIDEr-D: how close a caption comes to what several people wrote about the same picture.

Vedantam, Zitnick and Parikh, "CIDEr: Consensus-based Image Description Evaluation", CVPR 2015, as the COCO caption
toolkit computes it, times 100.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

ORDERS = 4
"""N-grams of 1 to 4 words count, each order alike."""
SIGMA = 6.0
"""Standard deviation, in words, of the penalty for another length."""
SCALE = 1000.0
"""A perfect caption gets 10, and results are reported times 100."""

Gram = tuple[str, ...]
Vector = dict[Gram, float]

_ENDING = re.compile(r"(?<=\w)(n't|'(?:s|m|d|re|ve|ll))(?!\w)")
_WORD = re.compile(
    r"n't(?!\w)|'(?:s|m|d|re|ve|ll)(?!\w)"  # endings cut off before
    r"|\w+(?:(?:[-./:'&@]|(?<=\d),(?=\d))\w+)*"
    r"|[^\w\s.?!,:;'`\"()\[\]{}-]"  # signs with a meaning, such as $ and %
)


def words(caption: str) -> list[str]:
    """Split a caption into lower-case words, without punctuation.

    Much like the Penn Treebank rules that the COCO toolkit calls a Java program for: "isn't" and "dog's" are two words
    each, "black-and-white" and "2.5" one.
    """
    plain = caption.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").replace("cannot", "can not")
    return _WORD.findall(_ENDING.sub(r" \1", plain))


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Score the caption of each picture against its references; from 0 to 1000.

    A word counts by how rare it is among the pictures given, so scores of sets of different size cannot be compared: a
    single picture always gets 0. A perfect caption reaches 1000 only with one reference of at least four words, and
    only if each order of its n-grams has one that other pictures lack.

    Raises ValueError for lists of different length and for a picture without references.
    """
    described = [[_grams(words(text)) for text in texts] for texts in references]
    if not all(described):
        raise ValueError("every picture needs at least one reference caption")
    rarity = _rarity(described)
    return [
        SCALE * math.fsum(_similarity(_weighted(_grams(words(said)), rarity), other) for other in others) / len(others)
        for said, others in zip(
            predictions, ([_weighted(text, rarity) for text in one] for one in described), strict=True
        )
    ]


@dataclass(frozen=True)
class Captions:
    """CIDEr under way. It is no sum over batches: what a word weighs depends on all references, so texts are kept.

    The result does not depend on the order in which captions were taken in.
    """

    pairs: tuple[tuple[str, tuple[str, ...]], ...]

    @classmethod
    def of(cls, predictions: Iterable[str], references: Iterable[Sequence[str]]) -> Captions:
        """Take in one caption and its references per picture."""
        return cls(tuple((said, tuple(texts)) for said, texts in zip(predictions, references, strict=True)))

    @property
    def samples(self) -> float:
        """Number of captions taken in."""
        return float(len(self.pairs))

    def __add__(self, other: Captions, /) -> Captions:
        return Captions(self.pairs + other.pairs)

    def result(self) -> float | None:
        """Return the mean score; None without captions."""
        if not self.pairs:
            return None
        # fsum rounds once, whatever the order
        return math.fsum(cider(*zip(*self.pairs, strict=True))) / len(self.pairs)


def _grams(sentence: Sequence[str]) -> Counter[Gram]:
    orders = range(1, ORDERS + 1)
    return Counter(tuple(sentence[i : i + n]) for n in orders for i in range(len(sentence) - n + 1))


def _rarity(described: Iterable[Iterable[Counter[Gram]]]) -> _Rarity:
    pictures = [set().union(*texts) for texts in described]
    return _Rarity(Counter(gram for grams in pictures for gram in grams), math.log(max(len(pictures), 1)))


@dataclass(frozen=True)
class _Rarity:
    """The logarithm of the number of pictures over those that have the n-gram in a reference (at least one)."""

    pictures: Counter[Gram]
    everything: float

    def __call__(self, gram: Gram) -> float:
        return self.everything - math.log(max(self.pictures[gram], 1))


@dataclass(frozen=True)
class _Weighted:
    """A text's n-grams by order, each weighted by count and rarity; the vectors' lengths; the number of words."""

    orders: tuple[Vector, ...]
    norms: tuple[float, ...]
    length: int


def _weighted(grams: Counter[Gram], rarity: _Rarity) -> _Weighted:
    orders: tuple[Vector, ...] = tuple({} for _ in range(ORDERS))
    for gram, count in grams.items():
        orders[len(gram) - 1][gram] = count * rarity(gram)
    norms = tuple(math.sqrt(math.fsum(weight * weight for weight in order.values())) for order in orders)
    return _Weighted(orders, norms, sum(count for gram, count in grams.items() if len(gram) == 2))


def _similarity(said: _Weighted, other: _Weighted) -> float:
    """Mean over the orders of the cosine, where a repeated n-gram counts no more often than in the reference."""
    cosines = []
    for order in range(ORDERS):
        mine, theirs, norm = said.orders[order], other.orders[order], said.norms[order] * other.norms[order]
        shared = math.fsum(min(weight, theirs[gram]) * theirs[gram] for gram, weight in mine.items() if gram in theirs)
        cosines.append(shared / norm if norm else 0.0)
    penalty = math.exp(-((said.length - other.length) ** 2) / (2 * SIGMA**2))
    return penalty * math.fsum(cosines) / ORDERS
