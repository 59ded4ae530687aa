"""What kind of part a component is: there may be dozens of components, but few kinds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from polyfed.model.expert_names import GENERAL
from polyfed.report.records import RunData

EXPERT = "expert"
ARROW = "\N{RIGHTWARDS ARROW}"


def kinds_of(run: RunData, components: Iterable[str]) -> Mapping[str, list[str]]:
    """Return components by kind, kinds and components in alphabetical order.

    A kind is the first part of the name. Those of experts tell besides what the expert knows, such as
    ``expert modality → general``.
    """
    by_axis = run.setting("model", "expert_grid") == "axes"
    found: dict[str, list[str]] = {}
    for component in sorted(components):
        found.setdefault(_kind(component, by_axis), []).append(component)
    return {kind: found[kind] for kind in sorted(found)}


def is_expert(component: str) -> bool:
    """Whether a component is an expert of the model ``experts``."""
    return component == EXPERT or component.startswith(f"{EXPERT}.")


def _kind(component: str, by_axis: bool) -> str:
    first, *rest = component.split(".")
    if first != EXPERT or len(rest) != 2:
        return first.replace("_", " ")
    one, other = rest
    if by_axis:
        return f"{EXPERT}, {one} {_scope(other, 'modality' if one == 'input' else 'task')}"
    return f"{EXPERT} {_scope(one, 'modality')} {ARROW} {_scope(other, 'task')}"


def _scope(name: str, what: str) -> str:
    return GENERAL if name == GENERAL else what
