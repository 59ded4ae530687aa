from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyfed.data.schema import Task
from polyfed.model.metrics import Sums, add_sums, finish, metric_sums, primary
from tests.model.examples import DIGIT, PICTURE, PULSE, target_of

PAIR = Task("pair", "classification", classes=2)


def test_classification_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)], [9.0, 0.0]])
    sums = metric_sums(PAIR, logits, torch.tensor([1, 0, 0]), torch.tensor([True, True, False]))
    assert sums == {"accuracy": (1.0, 2.0), "loss": (pytest.approx(math.log(4 / 3) + math.log(4), abs=1e-6), 2.0)}
    assert finish(sums)["accuracy"] == 0.5


def test_regression_by_hand() -> None:
    prediction = torch.tensor([[1.0, 2.0], [0.0, 4.0], [torch.nan, 0.0]])
    sums = metric_sums(PULSE, prediction, torch.zeros(3, 2), torch.tensor([True, True, False]))
    # |1|,|2| -> 1.5 and 2.5;  |0|,|4| -> 2 and 8
    assert sums == {"mae": (3.5, 2.0), "mse": (10.5, 2.0)}
    assert finish(sums) == {"mae": 1.75, "mse": 5.25}


@given(cut=st.integers(0, 12), task=st.sampled_from([DIGIT, PULSE, PICTURE]))
def test_batches_add_up_to_the_whole(cut: int, task: Task) -> None:
    shape = (task.classes,) if task.kind == "classification" else task.shape
    prediction = torch.randn(12, *shape, generator=torch.Generator().manual_seed(0))
    target, labelled = target_of(task, 12, 1), torch.arange(12) % 3 > 0
    total: Sums = {}
    for part in (slice(None, cut), slice(cut, None)):
        total = add_sums(total, metric_sums(task, prediction[part], target[part], labelled[part]))
    whole = metric_sums(task, prediction, target, labelled)
    assert finish(total) == pytest.approx(finish(whole), rel=1e-12)
    assert {count for _, count in whole.values()} == {8.0}


def test_a_metric_of_no_sample_is_left_out() -> None:
    nobody = metric_sums(DIGIT, torch.zeros(2, 10), torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.bool))
    assert nobody == {"accuracy": (0.0, 0.0), "loss": (0.0, 0.0)}
    assert finish(nobody) == {}


def test_no_graph_is_kept() -> None:
    prediction = torch.zeros(2, 2, requires_grad=True)
    sums = metric_sums(PULSE, prediction, torch.ones(2, 2), torch.ones(2, dtype=torch.bool))
    assert all(isinstance(part, float) for pair in sums.values() for part in pair)


@pytest.mark.parametrize(
    ("task", "judged"), [(DIGIT, ("accuracy", True)), (PULSE, ("mse", False)), (PICTURE, ("mse", False))]
)
def test_primary(task: Task, judged: tuple[str, bool]) -> None:
    assert primary(task) == judged
    sums = metric_sums(task, torch.zeros(1, *(task.shape or (10,))), target_of(task, 1), torch.tensor([True]))
    assert judged[0] in sums
