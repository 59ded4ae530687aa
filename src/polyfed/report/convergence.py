"""How many rounds a run takes: to its own plateau, or to a fixed value."""

from __future__ import annotations

from polyfed.report.history import Curve

WINDOW = 5
PLATEAU = 0.98


def smoothed(curve: Curve, window: int = WINDOW) -> Curve:
    """Return the mean of the last ``window`` values at each round (of fewer at the beginning)."""
    values = []
    for end in range(1, len(curve) + 1):
        last = curve.values[max(0, end - window) : end]
        values.append(sum(last) / len(last))
    return Curve(curve.rounds, tuple(values))


def rounds_to(curve: Curve, target: float, window: int = WINDOW) -> int | None:
    """Return the first round at which the smoothed values reach the target; None if they never do."""
    held = smoothed(curve, window)
    return next((number for number, value in zip(held.rounds, held.values, strict=True) if value >= target), None)


def convergence_rounds(curve: Curve, window: int = WINDOW, share: float = PLATEAU) -> int | None:
    """Return the first round at which the smoothed values reach a share of their own maximum; None without values."""
    held = smoothed(curve, window)
    return rounds_to(curve, share * max(held.values), window) if len(held) else None
