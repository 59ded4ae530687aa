"""Our optimisers against torch.optim, step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from polyfed.engine.optimizers import clip, clip_rows, optimizer
from polyfed.errors import UserError
from polyfed.method.protocol import Recipe

CASES: list[tuple[Recipe, type[torch.optim.Optimizer], dict[str, Any]]] = [
    (Recipe("sgd", lr=0.1), torch.optim.SGD, {"lr": 0.1}),
    (Recipe("sgd", lr=0.1, momentum=0.9), torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (
        Recipe("sgd", lr=0.1, momentum=0.9, weight_decay=0.01),
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    ),
    (Recipe("adam", lr=0.01), torch.optim.Adam, {"lr": 0.01}),
    (Recipe("adam", lr=0.01, weight_decay=0.1), torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1}),
    (Recipe("adamw", lr=0.01, weight_decay=0.1), torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
]


@pytest.mark.parametrize(("recipe", "reference", "options"), CASES)
def test_steps_agree_with_torch(
    recipe: Recipe, reference: type[torch.optim.Optimizer], options: dict[str, Any]
) -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(3, 2, generator=generator), torch.randn(4, generator=generator)]
    ours = [value.clone() for value in start]
    theirs = [value.clone().requires_grad_() for value in start]
    rule, torchs = optimizer(recipe, ours), reference(theirs, **options)
    for step in range(5):
        slopes = [torch.randn(value.shape, generator=generator) for value in start]
        # The second tensor has no gradient in one step: neither it nor its memory may move.
        given = [slopes[0], None if step == 2 else slopes[1]]
        rule.step(given)
        for value, slope in zip(theirs, given, strict=True):
            value.grad = slope
        torchs.step()
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other.detach(), rtol=1e-6, atol=1e-7)


def test_clipping_limits_the_joint_norm_and_leaves_small_gradients_alone() -> None:
    large, nothing, larger = clip([torch.tensor([3.0]), None, torch.tensor([4.0])], 1.0)
    assert large is not None and nothing is None and larger is not None
    torch.testing.assert_close(torch.cat([large, larger]), torch.tensor([0.6, 0.8]), rtol=1e-5, atol=0)
    small = [torch.tensor([0.3]), torch.tensor([0.4])]
    assert clip(small, 1.0) == small
    assert clip([None], 1.0) == [None]


def test_clipping_of_a_stack_limits_the_norm_of_each_client() -> None:
    large, nothing, larger = clip_rows([torch.tensor([[3.0], [0.3]]), None, torch.tensor([4.0, 0.4])], 1.0)
    assert large is not None and nothing is None and larger is not None
    torch.testing.assert_close(large, torch.tensor([[0.6], [0.3]]), rtol=1e-5, atol=0)
    torch.testing.assert_close(larger, torch.tensor([0.8, 0.4]), rtol=1e-5, atol=0)
    assert clip_rows([None], 1.0) == [None]


def test_an_unknown_optimizer_is_named_with_the_choices() -> None:
    with pytest.raises(UserError, match=r"unknown optimizer 'sdg'; did you mean 'sgd'\? Choices: adam, adamw, sgd"):
        optimizer(Recipe("sdg"), [])
