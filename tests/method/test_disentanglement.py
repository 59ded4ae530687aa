"""Losses between latents of different types. P13 ... are properties of the method's specification."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from polyfed.data.samples import Batch
from polyfed.engine.batching import Rule
from polyfed.engine.resident import Resident
from polyfed.engine.screen import MOST_NUMBERS
from polyfed.engine.stacked import Bound
from polyfed.engine.trainer import Trainer
from polyfed.method.disentanglement import (
    LOSSES,
    Disentangled,
    Variant,
    disentanglement,
    norms,
    pairs_of,
)
from polyfed.method.objective import supervised
from polyfed.method.protocol import MOST_NAMED, Groups, Recipe
from polyfed.model.architecture import latent_key, latent_type
from polyfed.model.losses import Share
from tests.engine.cohorts import alone, answers, cohort
from tests.model.examples import AUDIO, DIGIT, IMAGE, PULSE, TEXT, batch_of
from tests.model.expert_examples import TASKS, loaded, small

VARIANTS: tuple[Variant, ...] = ("orth_all_pairs", "orth_paired", "hsic")
ORTHOGONAL: tuple[Variant, ...] = ("orth_all_pairs", "orth_paired")
every_variant = pytest.mark.parametrize("variant", VARIANTS)

TYPES = [("image", "general", "general"), ("image", "general", "digit"), ("image", "image", "general")]
TWINS = [*TYPES, ("audio", "general", "general")]  # the last is of the first one's type


def weighted(beta: float) -> Groups:
    return {"disentanglement": {"beta": torch.tensor(beta)}}


def drawn(types: list[tuple[str, str, str]], batch: int = 5, width: int = 4, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {latent_key(*one): torch.randn(batch, width, generator=generator) for one in types}


def everywhere(latents: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: torch.ones(len(value), dtype=torch.bool) for key, value in latents.items()}


# ------------------------------------------------------------------------------------------------ formulas


def by_hand(latents: dict[str, Tensor], rows: dict[str, Tensor], variant: Variant) -> float:
    """The formulas of the specification, in float64 and one pair of samples at a time."""
    values = []
    for one, other in combinations(latents, 2):
        if latent_type(one) == latent_type(other):
            continue
        both = rows[one] & rows[other]
        if variant == "orth_all_pairs":
            pairs = [(s, z) for s in torch.nonzero(rows[one]) for z in torch.nonzero(rows[other])]
            found = [cosine(latents[one][s], latents[other][z]) ** 2 for s, z in pairs]
        elif variant == "orth_paired":
            found = [cosine(latents[one][s], latents[other][s]) ** 2 for s in torch.nonzero(both)]
        else:
            count = int(both.sum())
            centring = torch.eye(count, dtype=torch.float64) - 1 / count
            first, second = (kernel(latents[key], rows[key])[both][:, both] for key in (one, other))
            found = [float(torch.trace(first @ centring @ second @ centring)) / (count - 1) ** 2]
        if found:
            values.append(sum(found) / len(found))
    return sum(values) / len(values)


def cosine(one: Tensor, other: Tensor) -> float:
    one, other = one.double().flatten(), other.double().flatten()
    return float(one @ other / math.sqrt(one @ one) / math.sqrt(other @ other))


def kernel(values: Tensor, rows: Tensor) -> Tensor:
    distances = torch.cdist(values.double(), values.double())
    held = torch.nonzero(rows).flatten().tolist()
    median = torch.stack([distances[i, j] for i, j in combinations(held, 2)]).median()
    return torch.exp(-distances.square() / (2 * median**2))


@every_variant
def test_the_loss_is_that_of_the_formula(variant: Variant) -> None:
    latents = drawn(TWINS, batch=6)
    assert float(disentanglement(latents, everywhere(latents), variant)) == pytest.approx(
        by_hand(latents, everywhere(latents), variant), rel=1e-5
    )


@every_variant
def test_only_rows_that_count_count(variant: Variant) -> None:
    latents = drawn(TWINS, batch=7)
    rows = {**everywhere(latents), "audio|general|general": torch.tensor([True, False] * 3 + [True])}
    rows = {key: mask & (torch.arange(7) != 2) for key, mask in rows.items()}
    expected = by_hand(latents, rows, variant)
    for filler in (0.0, 7.0, torch.nan):
        filled = {key: torch.where(rows[key].unsqueeze(1), value, filler) for key, value in latents.items()}
        assert float(disentanglement(filled, rows, variant)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("variant", ORTHOGONAL)
def test_orthogonal_latents_and_latents_of_one_direction_are_the_two_ends(variant: Variant) -> None:
    """P13: in [0, 1], and no matter how long a latent is."""
    axes = {latent_key(*one): torch.eye(3)[place].repeat(5, 1) for place, one in enumerate(TYPES)}
    assert float(disentanglement(axes, everywhere(axes), variant)) == 0
    constant = {key: torch.ones(5, 3) for key in axes}
    assert float(disentanglement(constant, everywhere(constant), variant)) == pytest.approx(1)
    random = drawn(TYPES)
    value = disentanglement(random, everywhere(random), variant)
    assert 0 < float(value) < 1
    longer = {**random, "image|general|digit": 50 * random["image|general|digit"]}
    torch.testing.assert_close(disentanglement(longer, everywhere(longer), variant), value)


def test_dependence_tells_copies_from_independent_latents() -> None:
    independent = drawn(TYPES[:2], batch=40)
    copies = {key: next(iter(independent.values())) for key in independent}
    apart, alike = (float(disentanglement(one, everywhere(one), "hsic")) for one in (independent, copies))
    assert 0 <= apart < alike / 2


@every_variant
def test_latents_of_one_type_are_not_pushed_apart(variant: Variant) -> None:
    twins = drawn([TWINS[0], TWINS[3]])
    for value in twins.values():
        value.requires_grad_()
    loss = disentanglement(twins, everywhere(twins), variant)
    assert float(loss.detach()) == 0
    slopes = torch.autograd.grad(loss, list(twins.values()), allow_unused=True)
    assert all(slope is None or (slope == 0).all() for slope in slopes)
    more = drawn(TWINS)
    kept = [key for key in more if key != "audio|general|general"]
    assert pairs_of(kept) == ([0, 0, 1], [1, 2, 2])
    assert pairs_of(list(more)) == ([0, 0, 1, 1, 2], [1, 2, 2, 3, 3])


@every_variant
def test_zero_and_equal_latents_have_finite_gradients(variant: Variant) -> None:
    for value in (torch.zeros(5, 4), torch.ones(5, 4), torch.full((5, 4), 1e-15)):
        latents = {latent_key(*one): value.clone().requires_grad_() for one in TYPES}
        loss = disentanglement(latents, everywhere(latents), variant)
        slopes = torch.autograd.grad(loss, list(latents.values()))
        assert loss.isfinite()
        assert all(slope.isfinite().all() for slope in slopes)


@every_variant
def test_without_rows_there_is_no_loss(variant: Variant) -> None:
    latents = {key: value.requires_grad_() for key, value in drawn(TYPES).items()}
    loss = disentanglement(latents, {key: torch.zeros(5, dtype=torch.bool) for key in latents}, variant)
    assert float(loss.detach()) == 0
    assert all((slope == 0).all() for slope in torch.autograd.grad(loss, list(latents.values())))


# ------------------------------------------------------------------------------------------------ objective


def bound(modalities: list[str], tasks: list[str], grid: str = "pairs") -> Bound:
    module = loaded(small(expert_grid=grid), modalities, tasks)
    model = Resident(module, TASKS)
    return Bound(model, {name: value.detach().clone().requires_grad_() for name, value in model.parameters.items()})


@pytest.mark.parametrize("grid", ["pairs", "axes"])
def test_one_modality_and_one_task_have_four_paths_and_six_pairs(grid: str) -> None:
    """P14: and the loss is not zero at the start; two of each have 12 latents and 63 pairs."""
    model, batch = bound(["image"], ["digit"], grid), batch_of([IMAGE], [DIGIT])
    latents = model(batch).latents
    assert (len(latents), len(pairs_of(list(latents))[0])) == (4, 6)
    _, logged = Disentangled()(model, batch, weighted(0.5))
    entangled = logged["disentanglement"]
    assert isinstance(entangled, Tensor)
    assert float(entangled) > 1e-4
    more = bound(["image", "audio"], ["digit", "pulse"], grid)(batch_of([IMAGE, AUDIO], [DIGIT, PULSE])).latents
    assert (len(more), len(pairs_of(list(more))[0])) == (12, 63)


@every_variant
def test_the_gradient_reaches_every_path(variant: Variant) -> None:
    """P13: through the loss alone."""
    model, batch = bound(["image", "audio"], ["digit"]), batch_of([IMAGE, AUDIO], [DIGIT], rows=6)
    _, logged = Disentangled(variant)(model, batch, weighted(1.0))
    one, other = (Disentangled(variant)(model, batch, weighted(beta))[0] for beta in (0.0, 1.0))
    entangled = logged["disentanglement"]
    assert isinstance(entangled, Tensor)
    assert float((other - one).detach()) == pytest.approx(float(entangled), rel=1e-3)
    slopes = dict(zip(model.parameters, torch.autograd.grad(other - one, list(model.parameters.values())), strict=True))
    experts = {name for name in slopes if name.startswith("expert.")}
    assert len({name.split(".")[1] + name.split(".")[2] for name in experts}) == 6
    assert all((slopes[name] != 0).any() for name in experts if name.endswith("3.weight"))


@every_variant
def test_absent_and_padded_rows_change_nothing(variant: Variant) -> None:
    model, batch = bound(["image", "audio"], ["digit"]), batch_of([IMAGE, AUDIO], [DIGIT], rows=8)
    objective = Disentangled(variant)
    absent = torch.tensor([True, True, False, True, True, True, True, True])
    batch.present["audio"] = absent
    batch.labelled["digit"] = torch.tensor([True] * 6 + [False] * 2)
    first = batch.each(lambda value: value[:6])

    def found(given: Batch) -> tuple[Tensor, dict[str, Tensor | Share], list[Tensor]]:
        loss, logged = objective(model, given, weighted(0.5))
        slopes = torch.autograd.grad(loss, list(model.parameters.values()), allow_unused=True)
        return loss, logged, [slope for slope in slopes if slope is not None]

    (loss, logged, slopes), (other, others, ends) = found(first), found(batch)
    torch.testing.assert_close(loss, other)
    torch.testing.assert_close(slopes, ends, rtol=1e-4, atol=1e-6)
    assert all(slope.isfinite().all() for slope in slopes)
    assert set(logged) == set(others)
    torch.testing.assert_close(logged["disentanglement"], others["disentanglement"])
    torch.testing.assert_close(logged["norm.audio.general.digit"], others["norm.audio.general.digit"])
    assert int(logged["norm.audio.general.digit"][1]) == 5


def test_without_a_label_it_is_the_supervised_loss() -> None:
    model, batch = bound(["image"], ["digit"]), batch_of([IMAGE], [DIGIT])
    for none in (batch._replace(targets={}, labelled={}), Batch({}, {}, batch.targets, batch.labelled)):
        loss, logged = Disentangled()(model, none, weighted(0.5))
        torch.testing.assert_close(loss, supervised(model, none, {})[0])
        assert "disentanglement" not in logged


def test_norms_are_means_by_path_and_not_too_many() -> None:
    latents = {f"image|general|{number:03}": torch.full((4, 9), float(number)) for number in range(300)}
    rows = {key: torch.tensor([True, True, False, True]) for key in latents}
    logged = norms(latents, rows)
    assert len(logged) == MOST_NAMED < MOST_NUMBERS / 2 + 1
    total, count = logged["norm.image.general.007"]
    assert (float(total), int(count)) == (63.0, 3)


@every_variant
def test_clients_are_trained_stacked_as_they_are_one_by_one(variant: Variant) -> None:
    model = small({"image": IMAGE, "text": TEXT}, TASKS)
    recipe = Recipe(lr=0.05, momentum=0.5, epochs=1, batch_size=4)
    pending = cohort(
        model, (9, 4, 6), recipe, objective=Disentangled(variant), extra=lambda client: weighted(0.1 * client + 0.2)
    )
    trainer = Trainer(model, rule=Rule("on"))
    stacked = answers(trainer, pending)
    assert dict(trainer.paths) == {"stacked": 3}
    for one, other in zip(stacked, alone(model, pending), strict=True):
        torch.testing.assert_close(one.parameters, other.parameters, rtol=1e-4, atol=1e-5)
        assert one.numbers == pytest.approx(other.numbers, rel=1e-3, abs=1e-5)
        assert one.numbers["disentanglement"] > 0
    plain = answers(Trainer(model, rule=Rule("on")), cohort(model, (9, 4, 6), recipe))
    name = "expert.general.general.output.layers.0.3.weight"
    assert not torch.allclose(plain[0].parameters[name], stacked[0].parameters[name])


def test_the_loss_can_be_mapped() -> None:
    """Over clients, as when they are stacked."""
    held = [drawn(TWINS, seed=seed) for seed in range(3)]
    together = {key: torch.stack([one[key] for one in held]) for key in held[0]}
    for variant in LOSSES:
        found = vmap(lambda latents, v=variant: disentanglement(latents, everywhere(held[0]), v))(together)
        each = torch.stack([disentanglement(one, everywhere(one), variant) for one in held])
        torch.testing.assert_close(found, each)
