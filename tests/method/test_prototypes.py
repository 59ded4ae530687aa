"""Class prototypes: means by class, and classification by the nearest of them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional

from polyfed.method.prototypes import class_means, class_sums, distances, known, log_probabilities, nearest
from polyfed.rng import torch_generator

CLASSES, WIDTH = 5, 7
PROTOTYPES = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 1.0]])  # class 1 is unknown

sizes = st.integers(1, 40)
seeds = st.integers(0, 10**6)


def drawn(seed: int, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw features, labels and which of them count; class 4 has no sample."""
    generator = torch_generator(seed, "prototypes")
    features = 10 * torch.randn(samples, WIDTH, generator=generator)
    labels = torch.randint(CLASSES - 1, (samples,), generator=generator)
    return features, labels, torch.rand(samples, generator=generator) < 0.8


def means(features: Tensor, labels: Tensor, counted: Tensor) -> Tensor:
    return class_means(*class_sums(features, labels, counted, CLASSES))


@settings(deadline=None)
@given(seeds, sizes)
def test_prototypes_are_the_means_of_each_class(seed: int, samples: int) -> None:
    features, labels, counted = drawn(seed, samples)
    sums, counts = class_sums(features, labels, counted, CLASSES)
    found = class_means(sums, counts)
    assert (sums.dtype, counts.dtype, found.dtype) == (torch.float64, torch.float64, torch.float32)
    for label in range(CLASSES):
        held = features[counted & (labels == label)]
        assert counts[label] == len(held)
        expected = held.mean(0) if len(held) else torch.zeros(WIDTH)
        torch.testing.assert_close(found[label], expected, rtol=1e-5, atol=1e-5)
        assert known(found)[label] == (len(held) > 0)


@settings(deadline=None)
@given(seeds, sizes, st.data())
def test_order_and_batches_do_not_matter(seed: int, samples: int, data: st.DataObject) -> None:
    features, labels, counted = drawn(seed, samples)
    whole = means(features, labels, counted)
    order = torch.randperm(samples, generator=torch_generator(seed, "order"))
    torch.testing.assert_close(means(features[order], labels[order], counted[order]), whole, rtol=1e-6, atol=1e-6)
    cut = data.draw(st.integers(0, samples))
    parts = [class_sums(features[s], labels[s], counted[s], CLASSES) for s in (slice(cut), slice(cut, None))]
    joined = class_means(parts[0][0] + parts[1][0], parts[0][1] + parts[1][1])
    torch.testing.assert_close(joined, whole, rtol=1e-6, atol=1e-6)


def test_what_is_not_counted_may_hold_anything() -> None:
    features = torch.tensor([[1.0, 2.0], [math.nan, math.inf], [3.0, 4.0]])
    labels, counted = torch.tensor([0, -1, 0]), torch.tensor([True, False, True])
    sums, counts = class_sums(features, labels, counted, 2)
    assert sums.tolist() == [[4, 6], [0, 0]]
    assert counts.tolist() == [2, 0]


def test_many_samples_far_from_the_origin_keep_their_digits() -> None:
    """In single precision the sum of so many equal numbers would be off by more than this."""
    features = torch.full((3, 1), 16777.215)
    sums, counts = class_sums(features, torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.bool), 1)
    for _ in range(12):
        sums, counts = sums + sums, counts + counts
    assert class_means(sums, counts).item() == features[0].item()


def test_distances_by_hand() -> None:
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    expected = torch.tensor([[5.0, 1e-3, 1.0], [1e-3, 5.0, math.sqrt(18)]])
    torch.testing.assert_close(distances(features, PROTOTYPES), expected)


def test_small_distances_far_from_the_origin_are_right() -> None:
    """The expanded square gives 0 or rounding errors of about 1 here."""
    found = distances(torch.tensor([[4096.0, 1.0]]), torch.tensor([[4096.0, 1.5]]))
    assert found.item() == pytest.approx(0.5, rel=1e-5)


@settings(deadline=None)
@given(seeds, sizes)
def test_log_probabilities_are_those_of_minus_the_distance(seed: int, samples: int) -> None:
    features, labels, _ = drawn(seed, samples)
    prototypes = torch.randn(CLASSES, WIDTH, generator=torch_generator(seed, "c"))
    chosen = log_probabilities(features, prototypes)[torch.arange(samples), labels]
    expected = functional.cross_entropy(-distances(features, prototypes), labels)
    torch.testing.assert_close(-chosen.mean(), expected)


def test_equal_prototypes_make_all_classes_equally_likely() -> None:
    found = log_probabilities(torch.randn(4, WIDTH, generator=torch_generator(0)), torch.ones(CLASSES, WIDTH))
    torch.testing.assert_close(found, torch.full((4, CLASSES), -math.log(CLASSES)))


@settings(deadline=None)
@given(seeds, sizes, st.sets(st.integers(0, CLASSES - 1), min_size=1))
def test_a_masked_class_is_as_if_it_were_not_there(seed: int, samples: int, some: set[int]) -> None:
    features, _, _ = drawn(seed, samples)
    everything = torch.randn(CLASSES, WIDTH, generator=torch_generator(seed, "c"))
    here = torch.tensor([label in some for label in range(CLASSES)])
    masked = torch.where(here.unsqueeze(-1), everything, 0)
    assert torch.equal(known(masked), here)
    found = log_probabilities(features, masked)
    torch.testing.assert_close(found[:, here], log_probabilities(features, everything[here]))
    assert torch.equal(found[:, ~here], torch.full((samples, CLASSES - len(some)), -math.inf))
    names = torch.arange(CLASSES)[here]
    assert torch.equal(nearest(features, masked), names[nearest(features, everything[here])])


def test_the_nearest_known_class() -> None:
    features = torch.tensor([[0.1, 0.1], [3.0, 3.0], [1.5, 2.5]])  # the last one is equally far from 0 and 2
    assert nearest(features, PROTOTYPES).tolist() == [2, 0, 0]
    assert nearest(features, torch.zeros(3, 2)).tolist() == [-1, -1, -1]
    assert nearest(features, PROTOTYPES).dtype == torch.int64


def test_without_any_prototype_nothing_is_learnt() -> None:
    features = torch.randn(3, 2, requires_grad=True, generator=torch_generator(1))
    found = log_probabilities(features, torch.zeros(4, 2))
    torch.testing.assert_close(found, torch.full((3, 4), -math.log(4)))
    (slope,) = torch.autograd.grad(found.sum(), features)
    assert torch.equal(slope, torch.zeros(3, 2))


@pytest.mark.parametrize("label", [0, 1, 2])
def test_gradients_are_finite_everywhere(label: int) -> None:
    """On a prototype, at the origin, and of a class that is unknown, whose loss is infinite."""
    features = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 1.0], [9.0, 9.0]], requires_grad=True)
    loss = -log_probabilities(features, PROTOTYPES)[:, label].sum()
    assert math.isinf(loss.item()) == (label == 1)
    (slope,) = torch.autograd.grad(loss, features)
    assert slope.isfinite().all()


def test_a_step_against_the_gradient_draws_features_to_their_prototype() -> None:
    features = torch.tensor([[1.0, 1.0]], requires_grad=True)
    loss = -log_probabilities(features, PROTOTYPES)[0, 0]
    (slope,) = torch.autograd.grad(loss, features)
    moved = (features - 0.01 * slope).detach()
    assert -log_probabilities(moved, PROTOTYPES)[0, 0] < loss


def test_clients_can_be_mapped_over() -> None:
    """Each client with its own prototypes, of which one client knows none."""
    generator = torch_generator(2)
    features = torch.randn(3, 4, 2, generator=generator)
    prototypes = torch.stack([PROTOTYPES, torch.randn(3, 2, generator=generator), torch.zeros(3, 2)])
    for function in (distances, log_probabilities, nearest):
        one_by_one = torch.stack([function(*pair) for pair in zip(features, prototypes, strict=True)])
        torch.testing.assert_close(vmap(function)(features, prototypes), one_by_one)

    def loss(values: Tensor, held: Tensor) -> Tensor:
        return -log_probabilities(values, held)[:, 0].sum()

    slopes = vmap(grad(loss))(features, prototypes)
    one_by_one = torch.stack([grad(loss)(*pair) for pair in zip(features, prototypes, strict=True)])
    torch.testing.assert_close(slopes, one_by_one)
    assert slopes.isfinite().all()
    assert torch.equal(slopes[2], torch.zeros(4, 2))
