"""Colours that people with colour blindness can tell apart, the same for one thing in every plot of a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from polyfed.report.history import NO_REPLY
from polyfed.report.records import RunData

COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#AA4499",
    "#999933",
    "#44AA99",
    "#CC6677",
)
"""Okabe and Ito (2008), continued with colours of Paul Tol's muted scheme."""

GREY = "#8A9099"
OTHER = "other groups"


@dataclass(frozen=True)
class Palette:
    """One colour per name. Names beyond the palette share ``OTHER``.

    ``fleeting`` are sets of modalities that clients took part with at times, but that are all that nobody holds.
    """

    colours: Mapping[str, str]
    folded: int = 0
    fleeting: frozenset[str] = frozenset()

    def entry(self, name: str) -> str:
        """Return the name under which ``name`` is shown: itself or ``OTHER``."""
        return name if name in self.colours else OTHER

    def belongs(self, shown: str) -> Callable[[str], bool]:
        """Return the test whether a name is shown under ``shown``."""
        return lambda name: self.entry(name) == shown


def group_palette(run: RunData) -> Palette:
    """Give every modality group of a run a colour; the largest groups come first where colours run out."""
    members = Counter(client.group for client in run.clients)
    active = {group for rounds in run.history.active.values() for group in set(rounds.values())} - {NO_REPLY}
    evaluated = {key.group for key in run.history.evaluations}
    palette = palette_of(members | Counter(dict.fromkeys(active | evaluated, 1)))
    return replace(palette, fleeting=frozenset(active - members.keys() - evaluated))


def palette_of(members: Mapping[str, int]) -> Palette:
    """Give every group a colour, given how many members each has."""
    names = sorted(members, key=lambda name: (-members[name], name))
    kept = names if len(names) <= len(COLOURS) else names[: len(COLOURS) - 1]
    ordered = sorted(kept, key=lambda name: (name.count("+"), name))
    colours = dict(zip(ordered, COLOURS, strict=False))
    folded = len(names) - len(kept)
    return Palette(colours | {OTHER: GREY} if folded else colours, folded)
