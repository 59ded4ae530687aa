from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfed.data.schema import Task
from polyfed.errors import UserError
from polyfed.model.heads import FITTING, decoder_sizes, default_head, prediction_shape
from polyfed.model.parts import HEADS
from tests.model.examples import DIGIT, PICTURE, PULSE, assert_batched_equals_looped

WIDTH = 6
NUMBER = Task("number", "regression")
EVERY = [(name, task) for task in (DIGIT, PULSE, NUMBER, PICTURE) for name in FITTING[task.kind]]


@pytest.mark.parametrize(("name", "task"), EVERY)
def test_predictions_have_the_shape_of_the_task(name: str, task: Task) -> None:
    head = HEADS.build(name, {}, task, WIDTH)
    prediction = head(torch.randn(3, WIDTH))
    assert prediction.shape == (3, *prediction_shape(task))
    assert list(head.buffers()) == []


@pytest.mark.parametrize(
    ("task", "shape"), [(DIGIT, (10,)), (PULSE, (2,)), (NUMBER, ()), (PICTURE, (1, 9, 7))], ids=str
)
def test_prediction_shape(task: Task, shape: tuple[int, ...]) -> None:
    assert prediction_shape(task) == shape


@pytest.mark.parametrize(("name", "task"), EVERY)
def test_models_of_many_clients_can_be_stacked(name: str, task: Task) -> None:
    assert_batched_equals_looped(lambda: HEADS.build(name, {}, task, WIDTH), torch.randn(2, 3, WIDTH))


def test_linear_is_a_linear_layer() -> None:
    head, fused = HEADS.build("linear", {}, Task("grid", "regression", shape=(2, 3)), WIDTH), torch.randn(4, WIDTH)
    flat = fused @ head.get_parameter("weight").T + head.get_parameter("bias")
    torch.testing.assert_close(head(fused), flat.reshape(4, 2, 3))


def test_mlp_options() -> None:
    head = HEADS.build("mlp", {"hidden": [5, 3]}, DIGIT, WIDTH)
    assert [tuple(p.shape) for p in head.parameters() if p.dim() == 2] == [(5, 6), (3, 5), (10, 3)]


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        ((28, 28), [(7, 7), (14, 14), (28, 28)]),
        ((20, 24), [(5, 6), (10, 12), (20, 24)]),
        ((8, 9), [(4, 5), (8, 9)]),
        ((5, 3), [(3, 2), (5, 3)]),
        ((1, 1), [(1, 1), (1, 1)]),
        ((4, 20), [(4, 5), (4, 10), (4, 20)]),
    ],
)
def test_decoder_sizes(size: tuple[int, int], sizes: list[tuple[int, int]]) -> None:
    assert decoder_sizes(*size) == sizes


@settings(max_examples=15, deadline=None)
@given(channels=st.integers(1, 3), height=st.integers(1, 40), width=st.integers(1, 40))
def test_decoder_draws_any_size(channels: int, height: int, width: int) -> None:
    task = Task("picture", "generation", shape=(channels, height, width))
    head = HEADS.build("decoder", {"channels": 8}, task, WIDTH)
    assert head(torch.randn(2, WIDTH)).shape == (2, channels, height, width)


def test_decoder_can_draw_values_outside_0_and_1() -> None:
    head = HEADS.build("decoder", {}, PICTURE, WIDTH)
    drawn = head(100 * torch.randn(8, WIDTH))
    assert drawn.min() < 0


@pytest.mark.parametrize(("task", "name"), [(DIGIT, "linear"), (PULSE, "linear"), (PICTURE, "decoder")])
def test_default_by_kind(task: Task, name: str) -> None:
    assert default_head(task) == name


@pytest.mark.parametrize("task", [DIGIT, PULSE])
def test_decoder_refuses_what_it_cannot_draw(task: Task) -> None:
    with pytest.raises(UserError, match=rf"task '{task.name}': head 'decoder' .*{task.kind}.* Choices: linear, mlp$"):
        HEADS.build("decoder", {}, task, WIDTH)
