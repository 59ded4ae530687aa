"""The bare loop: one resident model, one thread, no federation, no messages, no checks. It is the yardstick (1.00)."""

from __future__ import annotations

import time

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.workloads import Workload, bare_model

LR = 0.05


def bare_rounds(workload: Workload, inputs: Tensor, labels: Tensor, rounds: int) -> list[float]:
    """Run FedAvg rounds in a plain loop and return the seconds of each."""
    model = bare_model(workload)
    parameters = list(model.parameters())
    state = [value.detach().clone() for value in parameters]
    generator = torch.Generator().manual_seed(0)
    seconds = []
    for _ in range(rounds):
        cohort = torch.randperm(workload.clients, generator=generator)[: workload.cohort].tolist()
        started = time.perf_counter()
        total = [torch.zeros_like(value) for value in state]
        for client in cohort:
            train(model, parameters, state, inputs[client], labels[client], workload.batch_size)
            with torch.no_grad():
                for summed, value in zip(total, parameters, strict=True):
                    summed.add_(value)
        state = [value / len(cohort) for value in total]
        seconds.append(time.perf_counter() - started)
    return seconds


def train(
    model: torch.nn.Module,
    parameters: list[torch.nn.Parameter],
    state: list[Tensor],
    inputs: Tensor,
    labels: Tensor,
    batch_size: int,
) -> None:
    """Copy the global state in and take the SGD steps of one client."""
    with torch.no_grad():
        for value, shared in zip(parameters, state, strict=True):
            value.copy_(shared)
    for start in range(0, len(inputs), batch_size):
        loss = cross_entropy(model(inputs[start : start + batch_size]), labels[start : start + batch_size])
        for value in parameters:
            value.grad = None
        loss.backward()
        with torch.no_grad():
            for value in parameters:
                value.sub_(LR * value.grad)
