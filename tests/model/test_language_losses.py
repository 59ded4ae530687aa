"""Losses of language tasks, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from polyfed.data.samples import Batch
from polyfed.data.schema import IGNORED, Task
from polyfed.model.architecture import Outputs
from polyfed.model.losses import sample_losses, summed_loss, task_loss, total_loss

TASK = Task("vqa", "language", (4,), metric="vqa")
# Two words. Of the first sample's three predictions the last two are for its answer, of the second's one.
TARGET = torch.tensor([[IGNORED, IGNORED, 0, 1], [IGNORED, IGNORED, IGNORED, 1]])
EVEN, SURE = [0.0, 0.0], [math.log(3), 0.0]
LOGITS = torch.tensor([[[9.0, -9.0], SURE, EVEN, [1.0, 2.0]], [EVEN, [3.0, 1.0], SURE, EVEN]])
FIRST, SECOND = math.log(4 / 3) + math.log(2), math.log(4)


def both(labelled: Tensor, task: Task) -> tuple[float, float]:
    batch = Batch({}, {}, {"vqa": TARGET}, {"vqa": labelled})
    outputs = Outputs({}, torch.zeros(2, 1), {"vqa": LOGITS})
    total, logged = total_loss({"vqa": task}, outputs, batch)
    assert logged["loss.vqa"].total == pytest.approx(total * logged["loss.vqa"].samples)
    assert summed_loss({"vqa": task}, outputs, batch) == pytest.approx(total)
    return float(total), float(task_loss(task, LOGITS, TARGET, labelled))


@pytest.mark.parametrize(
    ("reduction", "expected"), [("token_mean", (FIRST + SECOND) / 3), ("sample_sum", (FIRST + SECOND) / 2)]
)
def test_answer_tokens_by_hand(reduction: str, expected: float) -> None:
    task = replace(TASK, reduction=reduction)  # type: ignore[arg-type]  # both are reductions
    assert both(torch.tensor([True, True]), task) == pytest.approx((expected, expected), rel=1e-6)


def test_samples_that_are_not_labelled_do_not_count() -> None:
    assert both(torch.tensor([True, False]), TASK) == pytest.approx((FIRST / 2, FIRST / 2), rel=1e-6)
    assert both(torch.tensor([True, False]), replace(TASK, reduction="sample_sum"))[0] == pytest.approx(FIRST)
    assert both(torch.tensor([False, False]), TASK) == (0.0, 0.0)


def test_a_sample_has_the_mean_of_its_tokens() -> None:
    found = sample_losses(TASK, LOGITS, TARGET, torch.tensor([True, True]))
    torch.testing.assert_close(found, torch.tensor([FIRST / 2, SECOND]))


def test_predictions_may_be_shorter_than_padded_targets() -> None:
    longer = torch.cat([TARGET, torch.full((2, 3), IGNORED)], 1)
    labelled = torch.tensor([True, True])
    assert torch.equal(task_loss(TASK, LOGITS, longer, labelled), task_loss(TASK, LOGITS, TARGET, labelled))


def test_a_sample_without_answer_gives_no_nan() -> None:
    nothing = torch.full_like(TARGET, IGNORED)
    assert task_loss(TASK, LOGITS, nothing, torch.tensor([True, True])) == 0.0
