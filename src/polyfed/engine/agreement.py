"""How clients' updates relate: how far each goes, and whether those of one component point the same way.

An update is what a client sends back minus what it was sent. The agreement of a component is the mean, over pairs of
clients that trained it, of the cosine between their updates. With n unit updates u_i that is
(‖Σ u_i‖² − n) / (n (n − 1)), so that one sum per component is all that is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from polyfed.engine.screen import norms_by_part, part_of
from polyfed.method.protocol import Order, Reading, Reply, as_it_is, untrained
from polyfed.model.architecture import Tensors
from polyfed.scenario.federation import Card

PARAMETERS = "parameters"


@dataclass
class Agreement:
    """Unit updates of components under way; they are taken in one order, so that sums have the same bits."""

    sums: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    clients: dict[str, int] = field(default_factory=dict)

    def add(self, component: str, update: Tensors, length: float) -> None:
        """Take in one client's update, float64 tensors by name, of this Euclidean length; length 0 says nothing."""
        if not length > 0:
            return
        total = self.sums.setdefault(component, {})
        for name, value in update.items():
            total[name] = value / length if name not in total else total[name].add_(value, alpha=1 / length)
        self.clients[component] = self.clients.get(component, 0) + 1

    def cosines(self) -> dict[str, float]:
        """Return the mean cosine over pairs of clients of every component that at least two clients moved."""
        found = {}
        for component, count in sorted(self.clients.items()):
            if count > 1:
                square = sum(float(value.square().sum()) for value in self.sums[component].values())
                found[component] = min(max((square - count) / (count * (count - 1)), -1.0), 1.0)
        return found


@dataclass
class Updates:
    """The updates of one exchange; ``reading`` finds the values in tensors as they travel."""

    reading: Reading = as_it_is
    agreement: Agreement = field(default_factory=Agreement)

    def add(self, reply: Reply, order: Order, card: Card) -> dict[str, float]:
        """Take one client's update in; return its Euclidean length by component (of the group's name where none is).

        Only parameters that were sent and came back count, and for the agreement only components that were trained.
        """
        sent, came = (self.reading(groups).get(PARAMETERS, {}) for groups in (order.tensors, reply.tensors))
        moved = {name: value.double() - sent[name].double() for name, value in came.items() if name in sent}
        parts = {name: part_of(name, PARAMETERS, card.components) for name in moved}
        lengths = norms_by_part(moved, list(parts.values()))
        for component in lengths.keys() & set(card.components) - set(untrained(reply)):
            update = {name: value for name, value in moved.items() if parts[name] == component}
            self.agreement.add(component, update, lengths[component])
        return lengths

    def record(self, round_number: int, exchange: int, step: str) -> dict[str, Any] | None:
        """Return the line for the records; None where no component was trained by two clients."""
        cosines = self.agreement.cosines()
        if not cosines:
            return None
        clients: Mapping[str, int] = {component: self.agreement.clients[component] for component in cosines}
        line = {"kind": "agreement", "round": round_number, "exchange": exchange, "step": step}
        return {**line, "cosine": cosines, "clients": clients}
