"""Numbers as people read them, and what the metrics mean."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable

LOWER_IS_BETTER = frozenset({"loss", "mse", "mae", "rmse", "nll", "perplexity", "error"})
NAMES = {"cider": "CIDEr", "iou": "mean overlap (IoU)"}
"""Metrics whose name is not the word that stands for them."""
FRACTIONS = frozenset({"accuracy", "balanced_accuracy", "f1", "macro_f1", "auc", "precision", "recall"})
"""Metrics between 0 and 1 that are shown in percent."""
UNITS = {**dict.fromkeys(FRACTIONS, "%"), "psnr": "dB"}
DECIMALS = {**dict.fromkeys(FRACTIONS, 1), "psnr": 2, "ssim": 3, "pearson": 3, "cider": 1, "iou": 3}
"""Digits behind the point, in the unit the metric is shown in; of the others as many as four digits take."""


def lower_is_better(metric: str) -> bool:
    """Tell whether a smaller value of the metric is the better one (loss, mse, mae, ...)."""
    return metric.split(".", maxsplit=1)[0] in LOWER_IS_BETTER


def main_metric(metrics: Iterable[str]) -> str | None:
    """Choose the metric a task is judged by: accuracy or mse, else the first that is not a loss, else the first."""
    names = list(metrics)
    preferred = sorted(name for name in names if name in ("accuracy", "mse"))
    chosen = preferred or [name for name in names if not name.startswith("loss")] or names
    return chosen[0] if chosen else None


def gain(metric: str, value: float, reference: float) -> float:
    """Return by how much ``value`` is better than ``reference`` (positive: better)."""
    return reference - value if lower_is_better(metric) else value - reference


def named(metric: str, length: int = 28) -> str:
    """Name a metric as people write it: ``CIDEr``."""
    return NAMES.get(metric) or short(metric, length)


def scaled(metric: str, value: float) -> float:
    """Return the value in the unit it is shown in: percent for fractions."""
    return 100 * value if metric in FRACTIONS else value


def unit(metric: str) -> str:
    """Return the unit a metric is shown in, ready to stand behind its name."""
    return f" ({UNITS[metric]})" if metric in UNITS else ""


def gain_unit(metric: str) -> str:
    """Return the unit gains are shown in: ``points`` (of percent), ``dB``, or nothing."""
    return "points" if metric in FRACTIONS else UNITS.get(metric, "")


def plain(metric: str, value: float) -> str:
    """Write a metric's value without its unit, as tables do."""
    if not math.isfinite(value):
        return "n/a"
    return f"{scaled(metric, value):.{DECIMALS[metric]}f}" if metric in DECIMALS else f"{value:.4g}"


def shown(metric: str, value: float) -> str:
    """Write a metric's value with its unit: ``93.4 %``, ``21.35 dB``, ``0.0512``."""
    behind = f" {UNITS[metric]}" if metric in UNITS and math.isfinite(value) else ""
    return plain(metric, value) + behind


def shown_gain(metric: str, difference: float) -> str:
    """Write a gain with its sign: ``+2.1 points`` (of percent), ``+0.62 dB``, ``−0.04``."""
    if not math.isfinite(difference):
        return "n/a"
    digits = f".{DECIMALS[metric]}f" if metric in DECIMALS else ".3g"
    text = f"{scaled(metric, difference):+{digits}} {gain_unit(metric)}"
    return text.rstrip().replace("-", "\N{MINUS SIGN}")


def size(count: float) -> str:
    """Write a number of bytes: ``1.2 MB`` (1 MB is 1,000,000 bytes)."""
    if not math.isfinite(count):
        return "n/a"
    steps = ("B", "kB", "MB", "GB", "TB")
    power = min(int(math.log10(count) // 3), len(steps) - 1) if count >= 1 else 0
    return f"{count:.0f} B" if power == 0 else f"{count / 1000**power:.3g} {steps[power]}"


def duration(seconds: float) -> str:
    """Write a time: ``0.41 s``, ``12.3 s``, ``4 min 05 s``, ``2 h 07 min``."""
    if not math.isfinite(seconds):
        return "n/a"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def count(value: float) -> str:
    """Write a count with separators: ``21,012``."""
    return f"{value:,.0f}" if math.isfinite(value) else "n/a"


def plural(number: int, noun: str, many: str = "") -> str:
    """Write a count and its noun: ``1 client``, ``12 clients``; ``many`` is the plural where it does not end in s."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {many or f'{noun}s'}"


def listed(items: Iterable[str]) -> str:
    """Join words as a sentence does: ``a, b and c``."""
    *front, last = list(items) or [""]
    return f"{', '.join(front)} and {last}" if front else last


def whole(text: str) -> str:
    """Put a name on one line, whole: tables fold long names, for cut ones may look alike."""
    return " ".join(text.split())


def span(numbers: Iterable[int]) -> str:
    """Write the one number there is, or the range they lie in: ``20``, ``4–30``."""
    found = sorted(set(numbers)) or [0]
    ends = (f"{number:,}" for number in dict.fromkeys((found[0], found[-1])))
    return "\N{EN DASH}".join(ends)


def short(text: str, length: int = 28) -> str:
    """Cut a long name and put it on one line."""
    name = whole(text)
    return name if len(name) <= length else f"{name[: length - 1]}\N{HORIZONTAL ELLIPSIS}"


def label(text: str, length: int = 28) -> str:
    """Prepare a name for a plot: plotly reads a few HTML tags in text, so they are escaped."""
    return html.escape(short(text, length), quote=False)
