"""The bare loop: one resident model, one thread, no federation, no messages, no checks. It is the yardstick (1.00)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.turns import Turns
from benchmarks.workloads import LR, Data, Workload


class BareLoop:
    """FedAvg as one would write it by hand. ``state`` holds the global parameters in the model's order."""

    def __init__(self, workload: Workload, data: Data) -> None:
        self.data = data
        self.batch_size = workload.batch_size
        self.model = nn.Sequential(*workload.parts().values())
        self.parameters = list(self.model.parameters())
        self.state = [value.detach().clone() for value in self.parameters]

    def round(self, cohort: Iterable[int]) -> None:
        """Train each client of the cohort from the global parameters and average what they reach."""
        total, clients = [torch.zeros_like(value) for value in self.state], 0
        for client in cohort:
            self.train(*self.data.of(client))
            with torch.no_grad():
                for summed, value in zip(total, self.parameters, strict=True):
                    summed.add_(value)
            clients += 1
        self.state = [value / clients for value in total]

    def train(self, inputs: Tensor, labels: Tensor) -> None:
        """Copy the global parameters in and take the SGD steps of one client, its batches in fixed order."""
        with torch.no_grad():
            for value, shared in zip(self.parameters, self.state, strict=True):
                value.copy_(shared)
        for start in range(0, len(inputs), self.batch_size):
            batch = slice(start, start + self.batch_size)
            loss = cross_entropy(self.model(inputs[batch]), labels[batch])
            for value in self.parameters:
                value.grad = None
            torch.autograd.backward(loss)
            with torch.no_grad():
                for value in self.parameters:
                    assert value.grad is not None
                    value.sub_(LR * value.grad)


def run(workload: Workload, rounds: int, turns: Turns) -> None:
    """Run rounds with random cohorts, in turns."""
    data = workload.data()
    generator = torch.Generator().manual_seed(0)
    turns.begin()
    loop = BareLoop(workload, data)
    for _ in range(rounds):
        loop.round(torch.randperm(workload.clients, generator=generator)[: workload.cohort].tolist())
        turns.round_done()
