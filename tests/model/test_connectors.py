"""Connectors: one alone, a pair, a mixture across tasks."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from polyfed.model.connectors import COMMON, Connector, Mixture, Pair, Single

TASKS = ("caption", "vqa", "grounding")


def features() -> Tensor:
    return torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))


def connector(seed: int = 0) -> Connector:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Connector(3, 4)


def router(tasks: int = 3, seed: int = 9) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(3, tasks, bias=False)


def mixture(same: bool = False) -> Mixture:
    tasks = {name: connector(0 if same else place) for place, name in enumerate(TASKS)}
    cross = {name: connector(0 if same else 10 + place) for place, name in enumerate(TASKS[1:])}
    return Mixture(tasks, cross, router(), connector(99))


def test_shapes() -> None:
    held = features()
    pair = Pair(connector(), connector(1))(held)
    assert pair.task is not None
    assert pair.client is not None
    assert pair.image.shape == pair.task.shape == pair.client.shape == (2, 5, 4)
    assert torch.equal(pair.image, pair.task + pair.client)
    assert Single(connector())(held).image.shape == (2, 5, 4)
    found = mixture()(held)
    assert found.image.shape == (2, 5, 4)
    assert found.logits is not None
    assert found.logits.shape == (2, 5, 3)


@pytest.mark.parametrize(("scale", "times"), [(1.0, 2.0), (0.5, 1.0)])
def test_two_copies_of_one_connector(scale: float, times: float) -> None:
    one = connector()
    assert torch.equal(Pair(deepcopy(one), deepcopy(one), scale)(features()).image, times * one(features()))


def test_the_formula_by_hand() -> None:
    held, model = features(), mixture()
    probabilities = torch.softmax(held @ router().weight.t(), -1)
    branches = [connector(0)(held), connector(1)(held) + connector(10)(held), connector(2)(held) + connector(11)(held)]
    expected = sum(probabilities[..., [place]] * branch for place, branch in enumerate(branches)) + connector(99)(held)
    assert torch.allclose(model(held).image, expected, atol=1e-6)


def test_with_equal_adapters_the_first_probability_scales() -> None:
    held = features()
    first = torch.softmax(held @ router().weight.t(), -1)[..., :1]
    found = mixture(same=True)(held)
    assert torch.allclose(found.task, (2 - first) * connector(0)(held), atol=1e-6)


def test_a_router_that_is_sure_of_the_own_task() -> None:
    sure, held = router(), features().abs()
    with torch.no_grad():
        sure.weight.copy_(torch.tensor([[1e4], [-1e4], [-1e4]]).expand(3, 3))
    model = mixture()
    model.router = sure
    assert torch.equal(model(held).task, connector(0)(held))


def test_probabilities_of_whole_images() -> None:
    tasks = {name: connector(place) for place, name in enumerate(TASKS)}
    model = Mixture(tasks, {}, router(), None, level="image")
    held = features()
    found = model(held)
    assert found.logits is not None
    assert found.logits.shape == (2, 1, 3)
    assert torch.allclose(found.logits, (held @ router().weight.t()).mean(1, keepdim=True), atol=1e-6)
    assert found.client is None


def test_one_task_is_the_first_stage() -> None:
    held = features()
    alone = Mixture({"vqa": connector(0)}, {}, None, connector(1), 0.5)(held)
    pair = Pair(connector(0), connector(1), 0.5)(held)
    assert torch.equal(alone.image, pair.image)
    assert alone.logits is None


def test_order_of_the_other_tasks_does_not_matter() -> None:
    held, model = features(), mixture()
    places = [0, 2, 1]
    turned = router()
    with torch.no_grad():
        turned.weight.copy_(router().weight[places])
    tasks = {TASKS[place]: model.tasks[TASKS[place]] for place in places}
    other = Mixture(tasks, dict(model.cross.items()), turned, connector(99))
    assert torch.allclose(other(held).image, model(held).image, atol=1e-6)


def test_one_cross_task_adapter_in_common_and_none() -> None:
    held = features()
    tasks = {name: connector(place) for place, name in enumerate(TASKS)}
    common = Mixture(tasks, {COMMON: connector(5)}, router(), None)(held).image
    apart = Mixture(tasks, {name: connector(5) for name in TASKS[1:]}, router(), None)(held).image
    assert torch.equal(common, apart)
    assert not torch.allclose(common, Mixture(tasks, {}, router(), None)(held).image)
