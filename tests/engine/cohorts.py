"""Small cohorts to be trained stacked and one by one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from polyfed.data.columns import TensorColumn
from polyfed.data.samples import Batch, Samples, Table
from polyfed.data.schema import Modality, Task
from polyfed.engine.batching import Rule
from polyfed.engine.trainer import Pending, Trainer
from polyfed.method.objective import supervised
from polyfed.method.protocol import Fit, Fitted, Groups, Objective, Recipe
from polyfed.model.architecture import Architecture, Outputs
from polyfed.rng import seeded
from polyfed.scenario.federation import Card
from tests.model.examples import DIGIT, VECTOR, target_of, values_of

Start = Callable[[int], dict[str, Tensor]]
Extra = Callable[[int], Groups]


def table_of(modalities: Sequence[Modality], tasks: Sequence[Task], rows: int) -> Table:
    """Random rows; in some of them a modality or a target is missing, in none all modalities."""
    numbers = torch.arange(rows)
    return Table(
        {m.name: TensorColumn(values_of(m, rows, seed)) for seed, m in enumerate(modalities)},
        {t.name: TensorColumn(target_of(t, rows, seed + 7)) for seed, t in enumerate(tasks)},
        present={m.name: numbers % 5 != place for place, m in enumerate(modalities) if len(modalities) > 1},
        labelled={t.name: numbers % 7 != place for place, t in enumerate(tasks)},
    )


def dealt(table: Table, counts: Sequence[int]) -> list[Samples]:
    """Deal the first rows of a table to clients."""
    everything = table.everything()
    held, start = [], 0
    for count in counts:
        held.append(everything.span(start, start + count))
        start += count
    return held


def cohort(
    architecture: Architecture,
    counts: Sequence[int],
    recipe: Recipe,
    *,
    objective: Objective = supervised,
    trains: frozenset[str] | None = None,
    start: Start | None = None,
    extra: Extra | None = None,
) -> list[Pending]:
    """Fits of clients that hold all modalities and tasks, with so many samples each."""
    modalities, tasks = tuple(sorted(architecture.modalities)), tuple(sorted(architecture.tasks))
    table = table_of(list(architecture.modalities.values()), list(architecture.tasks.values()), sum(counts))
    components = architecture.components(modalities, tasks)
    first = architecture.initial(0)
    pending = []
    for client, data in enumerate(dealt(table, counts)):
        card = Card(client, f"client {client}", modalities, tasks, len(data), components)
        values = first if start is None else start(client)
        constants = {} if extra is None else extra(client)
        request = Fit(objective, values, data, recipe, frozenset(modalities), trains, constants)
        pending.append(Pending(card, request, ("key", client)))
    return pending


def fit_of(pending: Pending) -> Fit:
    """Return the fit that is asked for."""
    assert isinstance(pending.request, Fit)
    return pending.request


def answers(trainer: Trainer, pending: Sequence[Pending]) -> list[Fitted]:
    """Train a cohort."""
    found = trainer.answer(pending)
    assert all(isinstance(answer, Fitted) for answer in found)
    return [answer for answer in found if isinstance(answer, Fitted)]


def alone(architecture: Architecture, pending: Sequence[Pending]) -> list[Fitted]:
    """Train a cohort one by one."""
    return answers(Trainer(architecture, rule=Rule("off")), pending)


def together(architecture: Architecture, pending: Sequence[Pending], memory: int = 2**29) -> list[Fitted]:
    """Train a cohort stacked."""
    trainer = Trainer(architecture, rule=Rule("on", memory))
    found = answers(trainer, pending)
    assert dict(trainer.paths) == {"stacked": len(pending)}
    return found


def assert_agree(found: Sequence[Fitted], expected: Sequence[Fitted]) -> None:
    """Hold two trained cohorts against each other: all is equal up to rounding, names and steps are equal."""
    for one, other in zip(found, expected, strict=True):
        assert one.steps == other.steps
        assert one.numbers == {name: pytest.approx(value, rel=1e-4, abs=1e-5) for name, value in other.numbers.items()}
        assert list(one.parameters) == list(other.parameters)
        for name, value in other.parameters.items():
            torch.testing.assert_close(one.parameters[name], value, rtol=1e-4, atol=1e-5)


class Net(nn.Module):
    """A linear layer, times a number; and parameters that the predictions do not use."""

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.linear = build()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.left = nn.Parameter(torch.ones(3))
        self.right = nn.Parameter(torch.ones(3))

    def forward(self, values: Tensor) -> Tensor:
        """(batch, features) -> (batch, classes)."""
        predicted: Tensor = self.linear(values) * self.scale
        return predicted


class ToyModel(nn.Module):
    """One component, ``net``."""

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.net = Net(build)

    def forward(self, batch: Batch) -> Outputs:
        """Predict the digit."""
        values = batch.inputs["vector"]
        return Outputs({}, values, {"digit": self.net(values)})


@dataclass(frozen=True)
class Toy:
    """An architecture of one small component with whatever a test needs in it."""

    build: Callable[[], nn.Module] = lambda: nn.Linear(5, 10)

    @property
    def modalities(self) -> Mapping[str, Modality]:
        """A vector."""
        return {"vector": VECTOR}

    @property
    def tasks(self) -> Mapping[str, Task]:
        """A digit."""
        return {"digit": DIGIT}

    def components(self, modalities: Collection[str], tasks: Collection[str]) -> tuple[str, ...]:
        """One."""
        return ("net",)

    def assemble(self, components: Collection[str]) -> nn.Module:
        """Build it."""
        with seeded(0):
            return ToyModel(self.build)

    def initial(self, seed: int) -> dict[str, Tensor]:
        """Return first values."""
        with seeded(seed):
            return {name: value.detach() for name, value in ToyModel(self.build).named_parameters()}
