"""What a metric needs to know of a batch, in a form that adds up over batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

RESOLUTION = 2.0**-23
"""Relative distance of neighbouring float32 numbers: what varies by less than this is taken as constant."""


class Tally(Protocol):
    """A metric under way."""

    @property
    def samples(self) -> float:
        """Number of samples taken in."""

    def __add__(self, other: Self, /) -> Self:
        """Return the tally of both sets of samples."""

    def result(self) -> float | None:
        """Return the metric; None where it is not defined."""


@dataclass(frozen=True)
class Mean:
    """A mean over samples: the sum of their values and their number.

    ``undefined`` counts samples for which the metric means nothing; with any of them there is no result.
    """

    total: float
    samples: float
    undefined: float = 0.0

    @classmethod
    def of(cls, values: Tensor) -> Mean:
        """Take in the values (samples,), summed in double precision."""
        return cls(float(values.double().sum()), float(len(values)))

    def __add__(self, other: Mean, /) -> Mean:
        return Mean(self.total + other.total, self.samples + other.samples, self.undefined + other.undefined)

    def result(self) -> float | None:
        """Return the mean; None without samples, or where the metric means nothing for one of them."""
        return self.total / self.samples if self.samples and not self.undefined else None


@dataclass(frozen=True)
class Correlation:
    """Pearson's correlation coefficient of each entry of a target with its prediction.

    For both, by entry and in double precision: the ``mean`` (2, entries), the summed squares of the differences from it
    ``spread`` (2, entries), and the summed products of these differences ``joint`` (entries,). Sums of raw squares
    would lose the digits that count where a mean is large against the spread.
    """

    samples: float
    mean: Tensor
    spread: Tensor
    joint: Tensor

    @classmethod
    def of(cls, prediction: Tensor, target: Tensor) -> Correlation:
        """Take in predictions and targets (samples, ...)."""
        count = len(target)
        pair = torch.stack((prediction, target)).double().reshape(2, count, math.prod(target.shape[1:]))
        # the sum over nobody is zero, their mean would be NaN
        mean = pair.sum(1) / max(count, 1)
        apart = pair - mean.unsqueeze(1)
        return cls(float(count), mean.cpu(), apart.square().sum(1).cpu(), apart.prod(0).sum(0).cpu())

    def __add__(self, other: Correlation, /) -> Correlation:
        """Join as Chan, Golub and LeVeque do ("Updating formulae and a pairwise algorithm", 1979)."""
        if not (self.samples and other.samples):
            return self if self.samples else other
        samples = self.samples + other.samples
        step = other.mean - self.mean
        weight = self.samples * other.samples / samples
        return Correlation(
            samples,
            self.mean + step * (other.samples / samples),
            self.spread + other.spread + step.square() * weight,
            self.joint + other.joint + step.prod(0) * weight,
        )

    def result(self) -> float | None:
        """Return the mean over the entries of which both target and prediction vary; None if there are none.

        An entry varies if its standard deviation is above float32's resolution at its mean.
        """
        varies = (self.spread > self.samples * (RESOLUTION * self.mean).square()).all(0)
        if not varies.any():
            return None
        first, second = self.spread[:, varies].sqrt()
        return float((self.joint[varies] / first / second).clamp(-1, 1).mean())
