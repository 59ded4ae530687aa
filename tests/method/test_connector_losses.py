"""The two parts of image tokens are to differ; the router is to be even, its logits small."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from polyfed.method.connector_losses import DifferenceNorm, difference, load_balance, small_logits, squared_product

NORMS: tuple[DifferenceNorm, ...] = ("fro", "raw", "dsn")


def tokens(seed: int, images: int = 2, count: int = 5, width: int = 4) -> Tensor:
    return torch.randn(images, count, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("norm", NORMS)
def test_it_is_symmetric_not_negative_and_a_mean_over_images(norm: DifferenceNorm) -> None:
    one, other = tokens(0), tokens(1)
    value = difference(one, other, norm)
    assert float(value) >= 0
    assert float(value) == pytest.approx(float(difference(other, one, norm)), rel=1e-5)
    single = [float(difference(one[[k]], other[[k]], norm)) for k in range(2)]
    assert float(value) == pytest.approx(sum(single) / 2, rel=1e-5)
    assert float(value) == pytest.approx(float(difference(one.flip(0), other.flip(0), norm)), rel=1e-6)


def test_golden_values() -> None:
    one = torch.tensor([[[1.0, 0.0], [2.0, 1.0]]])
    other = torch.tensor([[[3.0, 1.0], [0.0, 1.0]]])
    # X'Y = [[1*3 + 2*0, 1*1 + 2*1], [0*3 + 1*0, 0*1 + 1*1]] = [[3, 3], [0, 1]]: squares sum to 19
    assert float(difference(one, other, "raw")) == pytest.approx(19.0)
    assert float(difference(one, other, "fro")) == pytest.approx(19 / (6 * 11))


def test_scaling() -> None:
    one, other = tokens(0), tokens(1)
    assert float(difference(-3 * one, 0.1 * other, "fro")) == pytest.approx(float(difference(one, other, "fro")))
    assert float(difference(3 * one, other, "raw")) == pytest.approx(9 * float(difference(one, other, "raw")))
    assert 0 <= float(difference(one, other, "fro")) <= 1


def test_zero_on_disjoint_tokens_but_not_on_disjoint_channels() -> None:
    left, right = torch.zeros(1, 6, 6), torch.zeros(1, 6, 6)
    values = tokens(2, 1, 6, 6)
    left[:, :3], right[:, 3:] = values[:, :3], values[:, 3:]
    assert float(difference(left, right, "fro")) == 0.0
    assert float(difference(left, torch.zeros_like(left), "fro")) == 0.0
    left, right = torch.zeros(1, 6, 6), torch.zeros(1, 6, 6)
    left[..., :3], right[..., 3:] = values[..., :3], values[..., 3:]
    assert float(difference(left, right, "fro")) > 1e-3


def test_one_when_all_tokens_are_equal() -> None:
    constant = tokens(3, 2, 1, 4).expand(2, 7, 4)
    assert float(difference(constant, constant, "fro")) == pytest.approx(1.0)


def test_gram_form_and_direct_form_agree() -> None:
    few, many = (tokens(4, 3, count, 6) for count in (3, 9))
    direct = (few.transpose(1, 2) @ few.roll(1, 0)).square().sum((1, 2))
    assert torch.allclose(squared_product(few, few.roll(1, 0)), direct, rtol=1e-5)
    direct = (many.transpose(1, 2) @ many.roll(1, 0)).square().sum((1, 2))
    assert torch.allclose(squared_product(many, many.roll(1, 0)), direct, rtol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_reach_both_parts(norm: DifferenceNorm) -> None:
    one, other = tokens(5).requires_grad_(), tokens(6).requires_grad_()
    slopes = torch.autograd.grad(difference(one, other, norm), (one, other))
    assert all(bool(slope.any()) for slope in slopes)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("images", [0, 1])
def test_nothing_is_nan_without_images_or_with_zeros(norm: DifferenceNorm, images: int) -> None:
    one, other = torch.zeros(images, 3, 2, requires_grad=True), tokens(7, 1, 3, 2)[:images].requires_grad_()
    loss = difference(one, other, norm)
    slopes = torch.autograd.grad(loss, (one, other))
    assert all(bool(torch.isfinite(value).all()) for value in (loss, *slopes))


def test_an_even_router_has_balance_one_whatever_is_largest() -> None:
    assert float(load_balance(torch.zeros(2, 3, 4))) == pytest.approx(1.0)


def test_all_tokens_to_one_adapter() -> None:
    logits = torch.tensor([100.0, 0.0, 0.0]).expand(2, 5, 3)
    assert float(load_balance(logits)) == pytest.approx(3.0)


def test_golden_balance_of_two_tokens() -> None:
    # probabilities (3/4, 1/4) and (1/4, 3/4): D = R = (1/2, 1/2), so 2 (1/4 + 1/4) = 1; twice the first: 2 (1 · 3/4)
    first, second = torch.tensor([math.log(3), 0.0]), torch.tensor([0.0, math.log(3)])
    assert float(load_balance(torch.stack([first, second]).unsqueeze(0))) == pytest.approx(1.0)
    assert float(load_balance(torch.stack([first, first]).unsqueeze(0))) == pytest.approx(1.5)


def test_no_gradient_goes_through_the_counts() -> None:
    logits = tokens(8, 2, 6, 3).requires_grad_()
    flat = logits.flatten(0, 1)
    counted = torch.nn.functional.one_hot(flat.argmax(-1), 3).float().mean(0)
    by_hand = 3 * (counted * flat.softmax(-1).mean(0)).sum()
    ours, theirs = (torch.autograd.grad(loss, logits)[0] for loss in (load_balance(logits), by_hand))
    assert torch.allclose(ours, theirs)


def test_small_logits() -> None:
    zero = torch.zeros(2, 3, 5)
    assert float(small_logits(zero)) == pytest.approx(math.log(5) ** 2)
    assert float(small_logits(zero - math.log(5))) == pytest.approx(0.0, abs=1e-12)
    logits = tokens(9, 2, 4, 3)
    assert float(load_balance(logits + 2)) == pytest.approx(float(load_balance(logits)))
    assert float(small_logits(logits + 2)) != pytest.approx(float(small_logits(logits)))


def test_without_tokens_both_are_zero_with_a_graph() -> None:
    nothing = torch.zeros(0, 4, 3, requires_grad=True)
    for loss in (load_balance(nothing), small_logits(nothing)):
        assert float(loss.detach()) == 0.0
        assert loss.requires_grad
