from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from polyfed.data.schema import Task
from polyfed.model.metrics import Sums, add_sums, finish, metric_sums, primary
from polyfed.model.tallies import Mean
from tests.model.examples import DIGIT, PICTURE, PULSE, target_of

PAIR = Task("pair", "classification", classes=2)
LARGE = Task("large", "generation", shape=(2, 13, 11))
SERIES = Task("series", "generation", shape=(6,))
TASKS = [DIGIT, PULSE, PICTURE, LARGE, SERIES]
NAMES = {
    "digit": {"accuracy", "loss"},
    "pulse": {"mae", "mse", "pearson"},
    "picture": {"mae", "mse", "psnr"},
    "large": {"mae", "mse", "psnr", "ssim"},
    "series": {"mae", "mse", "psnr"},
}


def some(task: Task, rows: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions, targets (those of generation in [0, 1]) and who is labelled: two of three."""
    shape = (task.classes,) if task.kind == "classification" else task.shape
    prediction = torch.randn(rows, *shape, generator=torch.Generator().manual_seed(0))
    target = target_of(task, rows, 1)
    return prediction, target.sigmoid() if task.kind == "generation" else target, torch.arange(rows) % 3 > 0


def test_classification_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)], [9.0, 0.0]])
    sums = metric_sums(PAIR, logits, torch.tensor([1, 0, 0]), torch.tensor([True, True, False]))
    assert sums.keys() == {"accuracy", "loss"}
    assert sums["accuracy"] == Mean(1.0, 2.0)
    assert finish(sums) == {"accuracy": 0.5, "loss": pytest.approx(math.log(4 / 3) / 2 + math.log(4) / 2, abs=1e-6)}


def test_regression_by_hand() -> None:
    prediction = torch.tensor([[1.0, 2.0], [0.0, 4.0], [torch.nan, 0.0]])
    target = torch.tensor([[0.0, 0.0], [0.0, 0.0], [5.0, 5.0]])
    sums = metric_sums(PULSE, prediction, target, torch.tensor([True, True, False]))
    # |1|,|2| -> 1.5 and 2.5;  |0|,|4| -> 2 and 8
    assert (sums["mae"], sums["mse"]) == (Mean(3.5, 2.0), Mean(10.5, 2.0))
    assert finish(sums) == {"mae": 1.75, "mse": 5.25}  # the labelled targets are all zero: no correlation


def test_generation_by_hand() -> None:
    prediction = torch.tensor([[0.5] * 6, [2.0] * 6, [torch.nan] * 6])
    target = torch.tensor([[0.4] * 6, [1.0] * 6, [0.0] * 6])
    found = finish(metric_sums(SERIES, prediction, target, torch.tensor([True, True, False])))
    # errors 0.1 and, not clipped, 1;  clipped, the second is perfect: (20 dB + 100 dB) / 2
    assert found == {"mae": pytest.approx(0.55), "mse": pytest.approx(0.505), "psnr": pytest.approx(60)}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_names(task: Task) -> None:
    assert finish(metric_sums(task, *some(task))).keys() == NAMES[task.name]


@given(cuts=st.lists(st.integers(0, 12), max_size=4), task=st.sampled_from(TASKS))
def test_batches_add_up_to_the_whole(cuts: list[int], task: Task) -> None:
    prediction, target, labelled = some(task)
    total: Sums = {}
    for part in (slice(start, end) for start, end in pairwise([0, *sorted(cuts), 12])):
        total = add_sums(total, metric_sums(task, prediction[part], target[part], labelled[part]))
    whole = metric_sums(task, prediction, target, labelled)
    assert finish(total) == pytest.approx(finish(whole), rel=1e-12)
    assert {tally.samples for tally in total.values()} == {tally.samples for tally in whole.values()} == {8.0}


@given(order=st.permutations(range(12)), task=st.sampled_from(TASKS))
def test_the_order_of_samples_is_irrelevant(order: list[int], task: Task) -> None:
    prediction, target, labelled = some(task)
    shuffled = metric_sums(task, prediction[order], target[order], labelled[order])
    assert finish(shuffled) == pytest.approx(finish(metric_sums(task, prediction, target, labelled)), rel=1e-12)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_what_is_not_labelled_cannot_matter(task: Task) -> None:
    prediction, target, labelled = some(task)
    before = finish(metric_sums(task, prediction, target, labelled))
    prediction[~labelled] = torch.nan
    if task.kind != "classification":
        target[~labelled] = torch.nan
    assert finish(metric_sums(task, prediction, target, labelled)) == before


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_metric_of_no_sample_is_left_out(task: Task) -> None:
    prediction, target, labelled = some(task)
    nobody = metric_sums(task, prediction, target, torch.zeros_like(labelled))
    assert finish(nobody) == {}
    assert all(tally.samples == 0 for tally in nobody.values())


def test_a_model_that_diverged_shows() -> None:
    prediction, target, labelled = some(LARGE)
    prediction[1] = torch.nan
    assert all(math.isnan(value) for value in finish(metric_sums(LARGE, prediction, target, labelled)).values())


@pytest.mark.parametrize("value", [1.001, -0.001, torch.nan])
def test_quality_is_only_told_of_targets_between_0_and_1(value: float) -> None:
    prediction, target, labelled = some(LARGE)
    target[1, 0, 0, 0] = value
    assert finish(metric_sums(LARGE, prediction, target, labelled)).keys() == {"mae", "mse"}


def test_no_graph_is_kept() -> None:
    prediction = torch.rand(2, 2, requires_grad=True)
    correlation = metric_sums(PULSE, prediction, torch.eye(2), torch.ones(2, dtype=torch.bool))["pearson"]
    assert not any(isinstance(part, Tensor) and part.requires_grad for part in vars(correlation).values())


@pytest.mark.parametrize(
    ("task", "judged"), [(DIGIT, ("accuracy", True)), (PULSE, ("mse", False)), (PICTURE, ("mse", False))]
)
def test_primary(task: Task, judged: tuple[str, bool]) -> None:
    assert primary(task) == judged
    sums = metric_sums(task, torch.zeros(1, *(task.shape or (10,))), target_of(task, 1), torch.tensor([True]))
    assert judged[0] in sums
