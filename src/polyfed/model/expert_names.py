"""Which components an ``experts`` model of given modalities and tasks has, and what they are called."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Literal

Grid = Literal["pairs", "axes", "module"]

GENERAL = "general"
"""The scope that all clients share: no modality in particular, or no task."""

GATE = "gate"
"""First part of the names of components that are meant to stay with the client."""


def called_for(
    grid: Grid, gated: bool, families: Mapping[str, str], modalities: Collection[str], tasks: Collection[str]
) -> Iterator[str]:
    """Yield the components for these modalities, whose families are given, and these tasks."""
    yield from (f"head.{task}" for task in tasks)
    if not modalities:
        return
    yield from (f"stem.{modality}" for modality in modalities)
    owned = {families[modality] for modality in modalities}
    if grid == "module":
        yield from (f"input_stack.{family}" for family in owned)
        yield from (f"output_stack.{task}" for task in tasks)
        return
    inputs, outputs = [GENERAL, *owned], [GENERAL, *tasks]
    yield "projection"
    yield from (f"self_attention.{scope}" for scope in inputs)
    yield from (f"cross_attention.{scope}" for scope in outputs)
    if grid == "pairs":
        yield from (expert(one, other) for one in inputs for other in outputs)
    else:
        yield from (expert("input", scope) for scope in inputs)
        yield from (expert("output", scope) for scope in outputs)
    if gated:
        yield from (gate(modality, task) for modality in modalities for task in tasks)


def expert(first: str, second: str) -> str:
    """Name an expert: of an input and an output scope, or (by axis) of "input" or "output" and a scope."""
    return f"expert.{first}.{second}"


def gate(modality: str, task: str) -> str:
    """Name the gate of a modality's paths for a task."""
    return f"{GATE}.{modality}.{task}"
