"""Coloured-and-gray MNIST."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch

from polyfed.data.catalog import DATASETS
from polyfed.data.cg_mnist import COLOUR_DEVIATION, COLOUR_MEAN, MEANS, PaintedColumn, around, cg_mnist
from polyfed.data.mnist import digits
from polyfed.errors import UserError


def test_mean_colours_are_well_separated() -> None:
    assert len(MEANS) == 10
    assert min(math.dist(first, second) for first, second in itertools.combinations(MEANS, 2)) >= 0.35


def test_gray_is_the_standardised_image(small_root: Path) -> None:
    batch = cg_mnist(small_root).train.everything().batch()
    expected = (torch.from_numpy(digits(small_root)[0].images) / 255 - 0.1307) / 0.3081
    assert torch.allclose(batch.inputs["gray"][:, 0], expected, atol=1e-5)
    assert batch.inputs["gray"].shape == (60, 1, 28, 28)


def test_without_variance_the_strokes_have_the_mean_colour(small_root: Path) -> None:
    dataset = cg_mnist(small_root, variance=0.0)
    for table, part in zip((dataset.train, dataset.test), digits(small_root), strict=True):
        assert table is not None
        batch = table.everything().batch()
        colour = torch.tensor(MEANS)[table.fields["colour"]]
        painted = torch.from_numpy(part.images)[:, None] / 255 * colour[:, :, None, None]
        mean, deviation = torch.tensor(COLOUR_MEAN), torch.tensor(COLOUR_DEVIATION)
        expected = (painted - mean[:, None, None]) / deviation[:, None, None]
        assert torch.allclose(batch.inputs["colour"], expected, atol=1e-5)


def test_colour_tells_the_digit_in_training_only(published: Path) -> None:
    dataset = DATASETS.build("cg-mnist", {}, published)
    assert dataset.test is not None
    assert (len(dataset.train), len(dataset.test)) == (60_000, 10_000)
    assert torch.equal(dataset.train.fields["colour"], dataset.train.everything().target("digit"))
    drawn = dataset.test.fields["colour"]
    agreement = (drawn == dataset.test.everything().target("digit")).float().mean()
    assert float(agreement) == pytest.approx(0.1, abs=0.012)  # four standard deviations
    assert drawn.bincount().min() > 850


def test_the_painted_image_is_clipped_not_the_colour(small_root: Path) -> None:
    """A colour brighter than 1 makes gray strokes brighter, a negative one makes them black."""
    strokes, rows = torch.tensor([[[0, 51, 255]]], dtype=torch.uint8), torch.tensor([0])
    column = PaintedColumn(strokes, torch.tensor([[1.5, -0.5, 0.5]]), (0.0, 0.0, 0.25), (1.0, 1.0, 0.5))
    expected = [[[0.0, 0.3, 1.0]], [[0.0, 0.0, 0.0]], [[-0.5, -0.3, 0.5]]]
    assert torch.allclose(column.gather(rows)[0], torch.tensor(expected), atol=1e-6)
    batch = cg_mnist(small_root, variance=1.0).train.everything().batch()
    mean, deviation = torch.tensor(COLOUR_MEAN)[:, None, None], torch.tensor(COLOUR_DEVIATION)[:, None, None]
    shown = batch.inputs["colour"] * deviation + mean
    assert (float(shown.min()), float(shown.max())) == pytest.approx((0, 1), abs=1e-6)


def test_colours_spread_with_the_variance() -> None:
    drawn = around(torch.full((20_000, 3), 0.5), 0.01, (0,))
    assert float(drawn.var()) == pytest.approx(0.01, rel=0.03)
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.005)
    wide = around(torch.full((20_000, 3), 0.9), 0.03, (0,))
    assert float(wide.mean()) == pytest.approx(0.9, abs=0.005), "not clipped, so not biased"


def test_the_seed_fixes_every_colour_and_a_limit_changes_none(small_root: Path) -> None:
    first, again = cg_mnist(small_root), cg_mnist(small_root)
    assert torch.equal(
        first.train.everything().batch().inputs["colour"], again.train.everything().batch().inputs["colour"]
    )
    other = cg_mnist(small_root, seed=1)
    assert first.test is not None
    assert other.test is not None
    assert not torch.equal(first.test.fields["colour"], other.test.fields["colour"])
    few = cg_mnist(small_root, limit=10).train.everything().batch()
    assert few.targets["digit"].sort().values.tolist() == list(range(10))
    pictures = {picture.numpy().tobytes() for picture in first.train.everything().batch().inputs["colour"]}
    assert all(picture.numpy().tobytes() in pictures for picture in few.inputs["colour"])


@pytest.mark.parametrize("options", [{"means": MEANS[:9]}, {"means": [(2, 0, 0), *MEANS[1:]]}, {"variance": -1}])
def test_impossible_options_are_refused(options: dict[str, object], small_root: Path) -> None:
    with pytest.raises(UserError, match=f"dataset 'cg-mnist': {next(iter(options))}"):
        DATASETS.build("cg-mnist", options, small_root)
