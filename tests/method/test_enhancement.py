"""The modal-enhancement loss: which modality it is of, how much it counts, and whom it reaches (methods sheet, 7.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import vmap

from polyfed.data.samples import Batch
from polyfed.data.schema import Task
from polyfed.method.balance import behind
from polyfed.method.enhancement import BEHIND, PROTOTYPES, Enhanced, weights
from polyfed.method.prototypes import log_probabilities
from polyfed.model.architecture import Outputs
from polyfed.rng import torch_generator

CLASSES = 3
TASKS = {"label": Task("label", "classification", classes=CLASSES), "size": Task("size", "regression")}
LINE = torch.tensor([[1.0], [2.0], [3.0]])
"""Prototypes on a line."""


@dataclass(frozen=True)
class Finished:
    """A model that computes given features, and predicts zeros."""

    features: Mapping[str, Tensor]
    tasks: Mapping[str, Task] = field(default_factory=lambda: TASKS)

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {}

    def __call__(self, batch: Batch) -> Outputs:
        samples = len(batch.targets["label"])
        predictions = {"label": torch.zeros(samples, CLASSES), "size": torch.zeros(samples)}
        return Outputs(dict(self.features), next(iter(self.features.values())), predictions)


def batch_of(names: Sequence[str], labels: Tensor, absent: Mapping[str, Sequence[int]] | None = None) -> Batch:
    """Return a batch without inputs; ``absent`` names samples that lack a modality, or that have no label."""
    masks = {name: torch.ones(len(labels), dtype=torch.bool) for name in (*names, "label", "size")}
    for name, places in (absent or {}).items():
        masks[name][list(places)] = False
    present = {name: masks[name] for name in names}
    labelled = {name: masks[name] for name in ("label", "size")}
    return Batch({}, present, {"label": labels, "size": torch.zeros(len(labels))}, labelled)


def loss_of(
    objective: Enhanced,
    features: Mapping[str, Tensor],
    labels: Tensor,
    prototypes: Mapping[str, Tensor],
    absent: Mapping[str, Sequence[int]] | None = None,
    ratios: Mapping[str, float] | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """Return the enhancement alone; the supervised loss of predictions that are all zero is log 3."""
    extra = {
        PROTOTYPES: {f"{name}.label": value for name, value in prototypes.items()},
        BEHIND: {name: torch.tensor(value) for name, value in (ratios or {}).items()},
    }
    loss, logged = objective(Finished(features), batch_of(tuple(features), labels, absent), extra)
    return loss - math.log(CLASSES), dict(logged)


def line(*values: float) -> Tensor:
    return torch.tensor(values)[:, None].requires_grad_()


def reached(loss: Tensor, features: Mapping[str, Tensor]) -> set[str]:
    """Return the modalities that the loss has a gradient for."""
    slopes = torch.autograd.grad(loss, list(features.values()), allow_unused=True, retain_graph=True)
    return {
        name for name, slope in zip(features, slopes, strict=True) if slope is not None and float(slope.abs().sum())
    }


def expected_loss(values: Tensor, labels: Tensor, prototypes: Tensor = LINE) -> Tensor:
    """Return the cross-entropy of minus the distances."""
    return torch.nn.functional.cross_entropy(-(values - prototypes.T).abs(), labels)


LABELS = torch.tensor([0, 1, 2, 0])
NEAR, FAR = (1.1, 2.1, 2.9, 0.9), (2.9, 1.1, 1.0, 3.2)


@pytest.mark.parametrize(("audio", "image", "weak"), [(NEAR, FAR, "image"), (FAR, NEAR, "audio"), (NEAR, NEAR, None)])
def test_only_the_weaker_modality_is_enhanced(
    audio: tuple[float, ...], image: tuple[float, ...], weak: str | None
) -> None:
    """Property 3: rho > 1 the second, rho < 1 the first, rho = 1 none; and 2: no gradient reaches the other."""
    features = {"audio": line(*audio), "image": line(*image)}
    loss, logged = loss_of(Enhanced(0.5), features, LABELS, dict.fromkeys(features, LINE))
    assert reached(loss, features) == ({weak} if weak else set())
    expected = expected_loss(features[weak], LABELS) if weak else torch.zeros(())
    torch.testing.assert_close(loss, 0.5 * expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logged["enhancement.label"], expected, rtol=1e-4, atol=1e-5)
    assert not logged["enhancement.label"].requires_grad


def test_no_gradient_reaches_the_prototypes_where_they_are_constants() -> None:
    """Property 2; and a small step against the gradient lowers the loss."""
    features = {"audio": line(*FAR)}
    prototypes = LINE.clone()
    loss, _ = loss_of(Enhanced(), features, LABELS, {"audio": prototypes})
    (slope,) = torch.autograd.grad(loss, list(features.values()))
    moved = {"audio": (features["audio"] - 0.01 * slope).detach().requires_grad_()}
    assert loss_of(Enhanced(), moved, LABELS, {"audio": prototypes})[0] < loss
    assert prototypes.grad is None and torch.equal(prototypes, LINE)


def test_limits_of_the_loss() -> None:
    """Property 2: log Y for equal prototypes; nothing where each sample is on its own and the others are far."""
    features = {"audio": line(*FAR)}
    equal, _ = loss_of(Enhanced(), features, LABELS, {"audio": torch.ones(CLASSES, 1)})
    assert equal.item() == pytest.approx(math.log(CLASSES))
    far = 1000 * LINE
    there = {"audio": far[LABELS].clone().requires_grad_()}
    assert loss_of(Enhanced(), there, LABELS, {"audio": far})[0].item() == pytest.approx(0, abs=1e-6)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_the_loss_is_not_negative_and_a_single_modality_is_always_enhanced(seed: int, samples: int) -> None:
    generator = torch_generator(seed, "enhancement")
    features = {"audio": torch.randn(samples, 4, generator=generator)}
    prototypes, labels = torch.randn(CLASSES, 4, generator=generator), torch.arange(samples) % CLASSES
    for coefficient in ("const", "clip"):
        loss, _ = loss_of(Enhanced(1, "weakest", coefficient), features, labels, {"audio": prototypes})
        expected = -log_probabilities(features["audio"], prototypes)[torch.arange(samples), labels].mean()
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
        assert loss >= -1e-5


def test_all_modalities_are_enhanced_on_request() -> None:
    features = {"audio": line(*NEAR), "image": line(*FAR)}
    loss, _ = loss_of(Enhanced(1, "all"), features, LABELS, dict.fromkeys(features, LINE))
    expected = sum(expected_loss(values, LABELS) for values in features.values())
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    assert reached(loss, features) == {"audio", "image"}


@pytest.mark.parametrize(("ratio", "size"), [(0.5, 0.0), (1.0, 0.0), (1.25, 0.25), (1.9, 0.9), (2.0, 1.0), (7.0, 1.0)])
def test_the_clipped_coefficient(ratio: float, size: float) -> None:
    """beta = min(1, max(0, rho - 1)) on I and gamma = min(1, max(0, 1 / rho - 1)) on A (methods sheet, 1.5)."""
    far = {name: torch.tensor(value) for name, value in behind(torch.tensor([ratio]), ("a", "i")).items()}
    found = weights(far, "weakest", "clip")
    assert found["i"].item() == pytest.approx(size)
    assert found["a"].item() == pytest.approx(min(1.0, max(0.0, 1 / ratio - 1)))
    const = weights(far, "weakest", "const")
    assert [const["a"].item(), const["i"].item()] == [float(ratio < 1), float(ratio > 1)]


def test_the_clipped_coefficient_takes_the_batch_ratio() -> None:
    features = {"audio": line(2.0, 2.0), "image": line(2.2, 2.2)}
    labels = torch.tensor([1, 1])
    own = {name: log_probabilities(value, LINE)[0, 1].exp().item() for name, value in features.items()}
    loss, _ = loss_of(Enhanced(1, "weakest", "clip"), features, labels, dict.fromkeys(features, LINE))
    size = own["audio"] / own["image"] - 1
    assert 0 < size < 1
    assert loss.item() == pytest.approx(size * -math.log(own["image"]), rel=1e-4)


def test_samples_of_unknown_classes_or_without_the_modality_or_the_label_do_not_count() -> None:
    """Neither in the loss nor in the ratio."""
    unknown = torch.tensor([[1.0], [2.0], [0.0]])  # class 2 is unknown
    features = {"audio": line(1.2, 2.1, 9.0, 77.0, 55.0), "image": line(1.5, 99.0, 9.0, 1.4, 55.0)}
    labels = torch.tensor([0, 1, 2, 0, 0])
    absent = {"audio": [3], "image": [1], "label": [4]}
    loss, _ = loss_of(Enhanced(), features, labels, dict.fromkeys(features, unknown), absent)
    counted = torch.tensor([1.5, 1.4])[:, None]
    torch.testing.assert_close(loss, expected_loss(counted, torch.tensor([0, 0]), unknown[:2]), rtol=1e-4, atol=1e-5)
    (slope,) = torch.autograd.grad(loss, features["image"])
    assert slope.isfinite().all() and slope.flatten()[[1, 2, 4]].abs().sum() == 0


@pytest.mark.parametrize("which", ["weakest", "all"])
@pytest.mark.parametrize("coefficient", ["const", "clip"])
def test_a_batch_without_a_sample_that_counts_has_no_enhancement(which: Any, coefficient: Any) -> None:
    features = {"audio": line(1.0, 2.0), "image": line(3.0, 4.0)}
    nothing = dict.fromkeys(features, torch.zeros(CLASSES, 1))
    labels = torch.tensor([0, 1])
    objective = Enhanced(1, which, coefficient)
    assert loss_of(objective, features, labels, nothing)[0].item() == 0
    assert loss_of(objective, features, labels, dict.fromkeys(features, LINE), {"audio": [0, 1], "image": [0, 1]})[
        0
    ].item() == pytest.approx(0, abs=1e-6)


def test_a_modality_that_no_sample_of_the_batch_has_is_not_compared() -> None:
    """Of three modalities the weaker of the two that are there is enhanced."""
    features = {"audio": line(*NEAR), "image": line(*FAR), "video": line(*FAR)}
    loss, _ = loss_of(Enhanced(), features, LABELS, dict.fromkeys(features, LINE), {"video": range(4)})
    assert reached(loss, features) == {"image"}


@settings(deadline=None)
@given(st.lists(st.integers(10, 1000).map(lambda score: score / 1000), min_size=2, max_size=5, unique=True))
def test_of_several_modalities_the_weakest_is_enhanced_if_it_is_strictly_weaker(scores: list[float]) -> None:
    """Section 4 of the sheet; with two modalities the ratio is the first over the second, as in section 1.4.

    Ratios are float32: scores that differ by less than that are equal.
    """
    names = [f"m{place}" for place in range(len(scores))]
    ratios = torch.tensor([scores[0] / other for other in scores[1:]])
    far = behind(ratios, names)
    for name, score in zip(names, scores, strict=True):
        best = max(other for place, other in enumerate(scores) if names[place] != name)
        assert far[name] == pytest.approx(best / score, rel=1e-3)
    found = weights({name: torch.tensor(value) for name, value in far.items()}, "weakest", "const")
    assert [name for name, value in found.items() if value] == [names[scores.index(min(scores))]]
    equal = behind(torch.ones(len(names) - 1), names)
    assert not any(weights({name: torch.tensor(value) for name, value in equal.items()}, "weakest", "const").values())


def test_ratios_of_the_client_take_the_place_of_the_batch() -> None:
    features = {"audio": line(*NEAR), "image": line(*FAR)}
    objective = Enhanced(1, by_client=True)
    loss, _ = loss_of(objective, features, LABELS, dict.fromkeys(features, LINE), None, {"audio": 2.0, "image": 0.5})
    assert reached(loss, features) == {"audio"}
    torch.testing.assert_close(loss, expected_loss(features["audio"], LABELS), rtol=1e-4, atol=1e-5)


def test_scores_that_underflow_do_not_make_the_ratio_undefined() -> None:
    far = {"audio": line(900.0, 900.0), "image": line(2000.0, 2000.0)}
    loss, _ = loss_of(Enhanced(1, "weakest", "clip"), far, torch.tensor([0, 1]), dict.fromkeys(far, 500 * LINE))
    slopes = torch.autograd.grad(loss, list(far.values()), allow_unused=True)
    assert loss.isfinite() and all(slope is None or slope.isfinite().all() for slope in slopes)


@pytest.mark.parametrize("which", ["weakest", "all"])
def test_clients_can_be_mapped_over(which: Any) -> None:
    generator = torch_generator(3, "mapped")
    audio, image = torch.randn(4, 5, 2, generator=generator), torch.randn(4, 5, 2, generator=generator)
    held = torch.randn(4, CLASSES, 2, generator=generator)
    held[2, 1] = 0
    labels = torch.randint(CLASSES, (4, 5), generator=generator)
    present = torch.rand(4, 5, generator=generator) < 0.7

    def loss(a: Tensor, i: Tensor, c: Tensor, y: Tensor, here: Tensor) -> Tensor:
        batch = batch_of(("audio", "image"), y)._replace(present={"audio": here, "image": ~here})
        prototypes = {PROTOTYPES: {"audio.label": c, "image.label": c}}
        return Enhanced(1, which, "clip")(Finished({"audio": a, "image": i}), batch, prototypes)[0]

    found = vmap(loss)(audio, image, held, labels, present)
    one_by_one = torch.stack([loss(*parts) for parts in zip(audio, image, held, labels, present, strict=True)])
    torch.testing.assert_close(found, one_by_one)
    assert len(set(found.tolist())) == 4
