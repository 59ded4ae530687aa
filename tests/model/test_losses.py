from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from polyfed.data.samples import Batch
from polyfed.data.schema import Task
from polyfed.model.architecture import Outputs
from polyfed.model.losses import Share, summed_loss, task_loss, total_loss
from tests.model.examples import DIGIT, PICTURE, PULSE, target_of

PAIR = Task("pair", "classification", classes=2)
NUMBER = Task("number", "regression")


def bools(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


def random_case(task: Task, rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    shape = (task.classes,) if task.kind == "classification" else task.shape
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(seed)), target_of(task, rows, seed)


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [7.0, 1.0]])
    target = torch.tensor([1, 0, 1])
    # −log(1/2) and −log(3/4); the third sample is not labelled
    expected = (math.log(2) + math.log(4 / 3)) / 2
    assert task_loss(PAIR, logits, target, bools(1, 1, 0)).item() == pytest.approx(expected, abs=1e-6)


def test_squared_error_by_hand() -> None:
    prediction = torch.tensor([[1.0, 2.0], [0.0, 0.0], [5.0, 5.0]])
    target = torch.tensor([[0.0, 4.0], [1.0, 1.0], [0.0, 0.0]])
    # (1 + 4)/2 and (1 + 1)/2
    assert task_loss(PULSE, prediction, target, bools(1, 1, 0)).item() == pytest.approx((2.5 + 1.0) / 2)


def test_single_number_by_hand() -> None:
    assert task_loss(NUMBER, torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0]), bools(0, 1)).item() == 9.0


@pytest.mark.parametrize("task", [DIGIT, PULSE, NUMBER, PICTURE])
def test_padding_changes_nothing(task: Task) -> None:
    prediction, target = random_case(task, 5)
    padded, aim = (torch.cat([part, torch.zeros_like(part)[:3]]) for part in (prediction, target))

    def loss(values: Tensor, goal: Tensor, mask: Tensor) -> Tensor:
        return task_loss(task, values, goal, mask)

    mask = bools(1, 1, 1, 1, 1)
    padded_mask = torch.cat([mask, bools(0, 0, 0)])
    torch.testing.assert_close(loss(padded, aim, padded_mask), loss(prediction, target, mask), rtol=1e-6, atol=0)
    gradient = grad(loss)(padded, aim, padded_mask)
    torch.testing.assert_close(gradient[:5], grad(loss)(prediction, target, mask), rtol=1e-6, atol=1e-9)
    assert (gradient[5:] == 0).all()


@pytest.mark.parametrize("task", [DIGIT, PULSE, PICTURE])
def test_unlabelled_rows_may_hold_anything(task: Task) -> None:
    prediction, target = random_case(task, 4)
    mask = bools(1, 0, 1, 0)
    spoilt = torch.where(mask.reshape(-1, *[1] * (prediction.dim() - 1)), prediction, torch.nan).requires_grad_()
    junk = target.clone()
    junk[~mask] = -7 if task.kind == "classification" else torch.nan
    loss = task_loss(task, spoilt, junk, mask)
    torch.testing.assert_close(loss, task_loss(task, prediction[mask], target[mask], bools(1, 1)))
    loss.backward()
    assert spoilt.grad is not None
    assert (spoilt.grad[~mask] == 0).all()
    assert spoilt.grad.isfinite().all()


@pytest.mark.parametrize("task", [DIGIT, PULSE, PICTURE])
def test_nobody_labelled_is_zero_with_a_graph(task: Task) -> None:
    prediction, target = random_case(task, 3)
    prediction.requires_grad_()
    loss = task_loss(task, prediction, target, bools(0, 0, 0))
    loss.backward()
    assert loss.item() == 0
    assert prediction.grad is not None
    assert (prediction.grad == 0).all()


@pytest.mark.parametrize("task", [DIGIT, PULSE, NUMBER, PICTURE])
def test_clients_can_be_stacked(task: Task) -> None:
    cases = [random_case(task, 4, seed) for seed in range(3)]
    masks = torch.stack([bools(1, 1, 1, 1), bools(1, 0, 0, 1), bools(0, 0, 0, 0)])
    predictions, targets = (torch.stack(parts) for parts in zip(*cases, strict=True))

    def loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        return task_loss(task, prediction, target, mask)

    values = vmap(loss)(predictions, targets, masks)
    gradients = vmap(grad(loss))(predictions, targets, masks)
    for place, case in enumerate(cases):
        torch.testing.assert_close(values[place], loss(*case, masks[place]))
        torch.testing.assert_close(gradients[place], grad(loss)(*case, masks[place]))


def test_total_is_the_sum_over_tasks_predicted_and_in_the_batch() -> None:
    tasks = {task.name: task for task in (PAIR, NUMBER, PULSE)}
    predictions = {"pair": torch.zeros(2, 2, requires_grad=True), "number": torch.tensor([1.0, 3.0])}
    batch = Batch(
        inputs={},
        present={},
        targets={"pair": torch.tensor([0, 1]), "number": torch.zeros(2), "pulse": torch.zeros(2, 2)},
        labelled={"pair": bools(1, 1), "number": bools(1, 1), "pulse": bools(1, 1)},
    )
    total, logged = total_loss(tasks, Outputs({}, torch.zeros(2, 3), predictions), batch)
    assert total.item() == pytest.approx(math.log(2) + 5.0)
    shares = {name: share for name, share in logged.items() if isinstance(share, Share)}
    assert {name: (share.total.item(), share.samples.item()) for name, share in shares.items()} == {
        "loss.number": (10.0, 2),
        "loss.pair": (pytest.approx(2 * math.log(2)), 2),
    }
    assert not any(share.total.requires_grad for share in shares.values())
    total.backward()
    assert predictions["pair"].grad is not None


@pytest.mark.parametrize("task", [PAIR, NUMBER, PULSE], ids=lambda task: task.name)
def test_a_batch_known_to_be_whole_has_the_loss_and_gradient_of_its_masks(task: Task) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (task.classes,) if task.kind == "classification" else task.shape
    labels = torch.tensor([0, 1, 1]) if task.kind == "classification" else torch.randn(3, *shape, generator=generator)
    found = []
    for whole in (frozenset[str](), frozenset({task.name})):
        prediction = torch.linspace(-2, 3, 3 * math.prod(shape)).view(3, *shape).requires_grad_()
        batch = Batch({}, {}, {task.name: labels}, {task.name: bools(1, 1, 1)}, whole)
        loss, logged = total_loss({task.name: task}, Outputs({}, prediction, {task.name: prediction}), batch)
        unlogged = summed_loss({task.name: task}, Outputs({}, prediction, {task.name: prediction}), batch)
        assert torch.equal(unlogged, loss)
        loss.backward()
        share = logged[f"loss.{task.name}"]
        assert isinstance(share, Share) and not share.total.requires_grad
        found.append((loss.detach(), prediction.grad, share.total, share.samples))
    torch.testing.assert_close(found[0], found[1])


def test_total_without_any_task_is_zero_with_a_graph() -> None:
    fused = torch.ones(2, 3, requires_grad=True)
    total, logged = total_loss({}, Outputs({}, fused, {}), Batch({}, {}, {}, {}))
    total.backward()
    assert total.item() == 0
    assert logged == {}
