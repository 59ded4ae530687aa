"""How large the model of a client's step is: what it is made of, what of that is trained, and what travels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from polyfed.engine.steps import FitParts
from polyfed.engine.wire import owner_of
from polyfed.method.protocol import Order
from polyfed.model.architecture import Tensors
from polyfed.scenario.federation import Card

MOST_MODELS = 64
"""Kinds of step and client whose models are told."""


def model_sizes(order: Order, card: Card, fits: Sequence[FitParts], initial: Tensors) -> dict[str, Any]:
    """Count the parameters of a step, by component.

    ``present`` in the models that were trained, and ``trained`` in them; ``down`` what the order holds, and ``up`` what
    a reply must hold. What belongs to no component counts under the name of its group. A frozen base is no component.
    """
    sizes = counted(((name, value.numel()) for name, value in initial.items()), card, "")
    present: set[str] = set()
    trained: set[str] = set()
    for components, moved in fits:
        held = set(card.components if components is None else components)
        present |= held
        trained |= held if moved is None else held & set(moved)
    down: dict[str, int] = {}
    up: dict[str, int] = {}
    for group, tensors in order.tensors.items():
        down |= counted(((name, value.numel()) for name, value in tensors.items()), card, group)
    for group, expects in order.expects.items():
        up |= counted(((name, math.prod(wanted.shape)) for name, wanted in expects.items()), card, group)
    return {
        "step": order.step,
        "client": card.id,
        "present": {name: sizes.get(name, 0) for name in sorted(present)},
        "trained": {name: sizes.get(name, 0) for name in sorted(trained)},
        "down": down,
        "up": up,
    }


def counted(values: Iterable[tuple[str, int]], card: Card, group: str) -> dict[str, int]:
    """Sum numbers of parameters by component; those of others under the name of the group."""
    found: dict[str, int] = {}
    for name, count in values:
        owner = owner_of(name, card.components) or group
        found[owner] = found.get(owner, 0) + count
    return dict(sorted(found.items()))
