"""Means of what objectives log, kept as tensors until the end so that no step waits for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from polyfed.model.losses import Logged, Share


class LoggedMeans:
    """Means over the batches of one client."""

    def __init__(self) -> None:
        self._totals: dict[str, list[Tensor]] = {}
        self._samples: dict[str, list[Tensor | int]] = {}

    def add(self, logged: Logged, samples: int) -> None:
        """Take in what was logged for one batch."""
        for name, value in logged.items():
            total, counted = value if isinstance(value, Share) else (value * samples, samples)
            self._totals.setdefault(name, []).append(total.detach())
            self._samples.setdefault(name, []).append(counted)

    def means(self) -> dict[str, float]:
        """Return the means; a name of which no sample counted has none."""
        counts = {name: sum(int(counted) for counted in held) for name, held in self._samples.items()}
        return {name: float(torch.stack(self._totals[name]).sum()) / count for name, count in counts.items() if count}


class StackedMeans:
    """Means over the batches of ``clients`` stacked clients."""

    def __init__(self, clients: int) -> None:
        self._clients = clients
        self._shares: dict[str, Share] = {}

    def add(self, logged: Logged, sizes: Tensor) -> None:
        """Take in what was logged for one batch of the first clients; values and ``sizes`` are (clients,)."""
        for name, value in logged.items():
            share = value if isinstance(value, Share) else Share(value * sizes, sizes)
            held = self._shares.get(name)
            if held is None:
                held = self._shares[name] = Share(*(part.new_zeros(self._clients) for part in share))
            for total, part in zip(held, share, strict=True):
                total[: len(sizes)] += part.detach()

    def means(self) -> list[dict[str, float]]:
        """Return each client's means; a name of which no sample counted has none."""
        lists = {name: (held.total.tolist(), held.samples.tolist()) for name, held in self._shares.items()}
        return [
            {name: totals[client] / samples[client] for name, (totals, samples) in lists.items() if samples[client]}
            for client in range(self._clients)
        ]
