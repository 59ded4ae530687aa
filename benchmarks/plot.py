"""Line plots as SVG, drawn by hand: a static picture needs no browser and no further package."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import NamedTuple

from polyfed.report.palette import COLOURS

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 84, 24, 64, 56
INK, FAINT = "#24292f", "#d8dde3"


class Point(NamedTuple):
    """A median with its quartiles."""

    x: float
    y: float
    low: float
    high: float


class Axis(NamedTuple):
    """Title, ticks (value and text) and the mapping from values to pixels."""

    title: str
    ticks: Sequence[tuple[float, str]]
    place: Callable[[float], float]


def lines(
    title: str,
    x_title: str,
    y_title: str,
    series: Mapping[str, Sequence[Point]],
    *,
    logarithmic: bool = True,
) -> str:
    """Draw one line per series with its quartiles as a band; both axes logarithmic, or both from zero."""
    points = [point for held in series.values() for point in held]
    ends = [value for point in points for value in (point.low, point.high)]
    steps = sorted({point.x for point in points})
    x = axis(x_title, steps, steps, LEFT, WIDTH - RIGHT, logarithmic=logarithmic)
    y = axis(y_title, ends, None, HEIGHT - BOTTOM, TOP, logarithmic=logarithmic)
    parts = [text(LEFT, 24, title, size=16, weight="bold"), *frame(x, y)]
    for number, (label, held) in enumerate(series.items()):
        parts += line(held, x, y, COLOURS[number % len(COLOURS)])
        parts += legend(label, number, COLOURS[number % len(COLOURS)], list(series))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    style = 'font-family="system-ui, sans-serif" role="img"'
    background = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>'
    return "\n".join([f'{head} {style} aria-label="{escape(title)}">', background, *parts, "</svg>", ""])


def axis(
    title: str, values: Sequence[float], ticks: Sequence[float] | None, start: float, end: float, *, logarithmic: bool
) -> Axis:
    """Lay an axis through values, from pixel ``start`` to pixel ``end``."""
    if logarithmic:
        low, high = min(values) / 1.15, max(values) * 1.15
        marks = ticks or decades(low, high)
        scale: Callable[[float], float] = math.log
    else:
        low, high = 0.0, max(values) * 1.1
        marks = ticks or evenly(high)
        scale = float
    bottom, span = scale(low), scale(high) - scale(low)
    return Axis(
        title,
        [(mark, short(mark)) for mark in marks],
        lambda value: start + (end - start) * (scale(value) - bottom) / span,
    )


def decades(low: float, high: float) -> list[float]:
    """Ticks 1, 2, 5 of every decade between two values; powers of ten alone where that is too many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    full = [factor * 10.0**power for power in powers for factor in (1, 2, 5) if low <= factor * 10.0**power <= high]
    whole = [10.0**power for power in powers if low <= 10.0**power <= high]
    return full if len(full) <= 8 or len(whole) < 2 else whole


def evenly(high: float) -> list[float]:
    """About five round ticks from zero."""
    rough = high / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough)
    return [step * number for number in range(int(high / step) + 1)]


def short(value: float) -> str:
    """A number for a tick."""
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.4g}"


def frame(x: Axis, y: Axis) -> list[str]:
    """Draw grid, ticks and titles."""
    right, floor = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for value, label in y.ticks:
        at = y.place(value)
        parts.append(f'<path d="M{LEFT} {at:.1f}H{right}" stroke="{FAINT}"/>')
        parts.append(text(LEFT - 8, at + 4, label, anchor="end"))
    for value, label in x.ticks:
        at = x.place(value)
        parts.append(f'<path d="M{at:.1f} {floor}v5" stroke="{INK}"/>')
        parts.append(text(at, floor + 20, label, anchor="middle"))
    parts.append(f'<path d="M{LEFT} {floor}H{right}" stroke="{INK}"/>')
    parts.append(text((LEFT + right) / 2, HEIGHT - 12, x.title, anchor="middle"))
    middle = (TOP + floor) / 2
    turned = f'<g transform="rotate(-90 18 {middle})">{text(18, middle, y.title, anchor="middle")}</g>'
    return [*parts, turned]


def line(points: Sequence[Point], x: Axis, y: Axis, colour: str) -> list[str]:
    """Draw one series: its band of quartiles, line and dots."""
    upper = [f"{x.place(point.x):.1f},{y.place(point.high):.1f}" for point in points]
    lower = [f"{x.place(point.x):.1f},{y.place(point.low):.1f}" for point in reversed(points)]
    middle = [(x.place(point.x), y.place(point.y)) for point in points]
    path = " ".join(f"{across:.1f},{up:.1f}" for across, up in middle)
    return [
        f'<polygon points="{" ".join(upper + lower)}" fill="{colour}" opacity="0.15"/>',
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>',
        *(f'<circle cx="{across:.1f}" cy="{up:.1f}" r="3.5" fill="{colour}"/>' for across, up in middle),
    ]


def legend(label: str, number: int, colour: str, labels: Sequence[str]) -> list[str]:
    """Draw a legend entry above the plot."""
    at = LEFT + sum(34 + 7 * len(before) for before in labels[:number])
    return [
        f'<path d="M{at} 44h18" stroke="{colour}" stroke-width="3"/>',
        text(at + 24, 48, label),
    ]


def text(x: float, y: float, content: str, *, anchor: str = "start", size: int = 12, weight: str = "normal") -> str:
    """Draw a piece of text."""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-size="{size}" font-weight="{weight}" fill="{INK}">{escape(content)}</text>'
