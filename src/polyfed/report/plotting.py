"""What all plots share: one look, safe embedding, and cards that hold several plots as tabs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from markupsafe import Markup

from polyfed.report.history import Curve

INK = {"ink": True}
"""Mark (a trace's ``meta``) of a line that takes the page's text colour, light or dark."""

MANY_ROUNDS = 400
"""Curves with more rounds are thinned to about this many points."""


@dataclass(frozen=True)
class Plot:
    """One plot: the label of its tab and plotly's figure as JSON that is safe inside a page."""

    label: str
    spec: Markup
    height: int


@dataclass(frozen=True)
class Chip:
    """A legend entry. Where ``group`` is set, a click hides or shows the traces of that legend group."""

    label: str
    colour: str
    group: str = ""


@dataclass(frozen=True)
class Table:
    """A table: the first ``texts`` columns hold words, the others numbers."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: int = 1
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A small picture: its address, empty where there is none, and what it shows in words."""

    address: str
    words: str


@dataclass(frozen=True)
class Strip:
    """Pictures side by side under a name, with the scale they are on where that is to be told."""

    label: str
    scale: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Gallery:
    """Strips one below the other, with a title."""

    title: str
    text: str
    strips: tuple[Strip, ...]


@dataclass(frozen=True)
class Frame:
    """A box on a picture, in percent of the padded square; ``kind`` is "right" or "written"."""

    kind: str
    left: str
    top: str
    width: str
    height: str


@dataclass(frozen=True)
class Example:
    """What a language model wrote: the picture's address (empty without one), boxes on it, texts, and the verdict.

    ``coarse``: the picture is drawn with its pixels. ``verdict`` is in words, ``mark`` "right", "wrong" or empty.
    """

    address: str
    coarse: bool
    frames: tuple[Frame, ...]
    question: str
    answers: tuple[str, ...]
    written: str
    verdict: str
    mark: str


@dataclass(frozen=True)
class Written:
    """The examples of one client, with its name and its figures."""

    title: str
    text: str
    examples: tuple[Example, ...]


Dash = Literal["solid", "dash", "dot"]


class Split(NamedTuple):
    """How the curves of a split of the samples are drawn."""

    name: str
    dash: Dash
    thin: bool = False


@dataclass(frozen=True)
class Card:
    """Plots under one heading, shown as tabs if there are several; a table without plots is shown as it is."""

    title: str
    text: str
    plots: tuple[Plot, ...]
    legend: tuple[Chip, ...] = ()
    note: str = ""
    splits: tuple[Split, ...] = ()
    wide: bool = False
    table: Table | None = None
    galleries: tuple[Gallery, ...] = ()
    written: tuple[Written, ...] = ()


def _unbreakable(text: str) -> Markup:
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - every character that HTML could read as markup is escaped above


def plot(label: str, traces: Sequence[Any], layout: Mapping[str, Any], *, height: int = 320) -> Plot:
    """Build a plot from plotly traces. ``layout`` is laid over the layout all plots share."""
    from plotly import graph_objects

    common = {
        "template": "none",
        "height": height,
        "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "hoverlabel": {"namelength": -1},
    }
    figure = graph_objects.Figure(data=list(traces), layout={**common, **layout})
    return Plot(label, _unbreakable(str(figure.to_json())), height)


def axis(title: str, **options: Any) -> dict[str, Any]:
    """Describe an axis that makes room for its own labels."""
    return {"title": {"text": title, "standoff": 8}, "automargin": True, "zeroline": False, **options}


def rounds_axis(rounds: Iterable[int]) -> dict[str, Any]:
    """Describe the axis of the rounds: whole numbers, each once."""
    few = {"dtick": 1} if max(rounds, default=0) <= 8 else {}
    return axis("round", tickformat="d", rangemode="tozero", **few)


def curve_trace(curve: Curve, *, name: str, **options: Any) -> Any:
    """Draw a curve over rounds; few points get markers, many are thinned."""
    from plotly import graph_objects

    shown = thinned(curve)
    options.setdefault("mode", "lines+markers" if len(shown) <= 30 else "lines")
    if len(shown) == 1:  # a line needs two points
        options["mode"] = "markers"
    options.setdefault("marker", {"size": 5})
    return graph_objects.Scatter(x=shown.rounds, y=[round(value, 6) for value in shown.values], name=name, **options)


def thinned(curve: Curve) -> Curve:
    """Keep about ``MANY_ROUNDS`` evenly spaced points of a long curve, and always the last one."""
    stride = -(-len(curve) // MANY_ROUNDS)
    if stride <= 1:
        return curve
    kept = sorted({*range(0, len(curve), stride), len(curve) - 1})
    return Curve(tuple(curve.rounds[i] for i in kept), tuple(curve.values[i] for i in kept))
