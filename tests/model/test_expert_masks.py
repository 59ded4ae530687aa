"""The ``experts`` model: latents of its paths, absent samples, gradients. P14 ... are those of the specification."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from polyfed.data.samples import Batch
from polyfed.data.schema import Modality
from polyfed.engine.stacked import STACKED_BATCH
from polyfed.model.architecture import Outputs, component_of, latent_type
from polyfed.model.losses import total_loss
from polyfed.model.size import feature_widths
from tests.model.examples import AUDIO, DIGIT, IMAGE, PICTURE, PULSE, TEXT, batch_of
from tests.model.expert_examples import GRIDS, MODALITIES, PHOTO, TASKS, VARIANTS, loaded, small

# ------------------------------------------------------------------------------------------------ paths


def pairs_of_types(outputs: Outputs) -> int:
    return sum(latent_type(one) != latent_type(other) for one, other in combinations(outputs.latents, 2))


@pytest.mark.parametrize("grid", ["pairs", "axes"])
def test_every_path_has_one_latent(grid: str) -> None:
    """P14: 2 |M| (1 + |T|) latents; pairs of different types."""
    outputs = loaded(small(expert_grid=grid), ["image"], ["digit"])(batch_of([IMAGE], [DIGIT]))
    kinds = ["general|general", "image|general", "general|digit", "image|digit"]
    assert list(outputs.latents) == [f"image|{kind}" for kind in kinds]
    assert (len(outputs.latents), pairs_of_types(outputs)) == (4, 6)
    more = loaded(small(expert_grid=grid), ["image", "audio"], ["digit", "pulse"])(
        batch_of([IMAGE, AUDIO], [DIGIT, PULSE])
    )
    assert (len(more.latents), pairs_of_types(more)) == (12, 63)
    assert {tuple(value.shape) for value in more.latents.values()} == {(4, 6)}
    values = list(more.latents.values())
    assert not any(torch.allclose(one, other) for one, other in combinations(values, 2))


def test_paths_without_a_task_are_the_same_whatever_the_tasks() -> None:
    batch = batch_of([IMAGE], list(TASKS.values()))
    one, more = (loaded(small(), ["image"], tasks)(batch).latents for tasks in (["digit"], list(TASKS)))
    assert len(more) == 2 * len(one)
    torch.testing.assert_close({name: more[name] for name in one}, dict(one))


def test_domains_of_a_family_share_experts_but_not_stems() -> None:
    outputs = loaded(small(), ["image", "photo"], ["digit"])(batch_of([IMAGE, PHOTO], [DIGIT]))
    assert {latent_type(name) for name in outputs.latents} == {
        (scope, other) for scope in ("general", "image") for other in ("general", "digit")
    }
    first = small().initial(0)
    assert first["stem.photo.positions"].shape == first["stem.image.positions"].shape  # padded to 8 x 8, patches of 2


def test_shapes() -> None:
    module = loaded(small(), ["image", "text"], list(TASKS))
    batch = batch_of([IMAGE, AUDIO, TEXT], list(TASKS.values()), rows=3)
    outputs = module(batch)
    assert {name: tuple(z.shape) for name, z in outputs.features.items()} == {"image": (3, 6), "text": (3, 6)}
    assert outputs.fused.shape == (3, 6)
    shapes = {name: tuple(prediction.shape) for name, prediction in outputs.predictions.items()}
    assert shapes == {"digit": (3, 10), "picture": (3, 1, 9, 7), "pulse": (3, 2)}
    assert set(module(batch_of([IMAGE], [DIGIT])).predictions) == {"digit"}
    assert set(module(batch._replace(targets={}, labelled={})).predictions) == set(TASKS)


@pytest.mark.parametrize("grid", GRIDS)
def test_widths_of_features_are_known(grid: str) -> None:
    assert feature_widths(small(expert_grid=grid)) == dict.fromkeys(MODALITIES, 6)


# ------------------------------------------------------------------------------------------------ masks


@pytest.mark.parametrize(("grid", "gate"), VARIANTS)
def test_absent_samples_change_nothing_and_get_no_gradient(grid: str, gate: str) -> None:
    module = loaded(small(expert_grid=grid, gate=gate), ["image", "audio"], ["digit", "picture"])
    batch = batch_of([IMAGE, AUDIO], [DIGIT, PICTURE], rows=3)
    mask = torch.tensor([True, False, False])
    batch.present["audio"] = mask

    def gradients(filler: float) -> dict[str, Tensor]:
        module.zero_grad()
        inputs = {**batch.inputs, "audio": torch.where(mask.view(3, 1, 1, 1), batch.inputs["audio"], filler)}
        outputs = module(batch._replace(inputs=inputs))
        (total_loss(TASKS, outputs, batch)[0] + sum(z.sum() for z in outputs.latents.values())).backward()
        return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}

    clean = gradients(0.0)
    torch.testing.assert_close(gradients(torch.nan), clean, rtol=0, atol=0)
    assert all(value.isfinite().all() for value in clean.values())
    assert (clean["stem.audio.embed.weight"] != 0).any()
    batch.present["audio"] = mask = torch.zeros(3, dtype=torch.bool)
    absent = {name: value for name, value in gradients(torch.nan).items() if ".audio." in name}
    assert absent
    assert all((value == 0).all() for value in absent.values())


@pytest.mark.parametrize(("grid", "gate"), VARIANTS)
def test_a_sample_without_a_modality_is_as_a_client_without_it(grid: str, gate: str) -> None:
    """P16: what is left renormalises, in the decoder as well."""
    model = small(expert_grid=grid, gate=gate)
    both, one = (loaded(model, held, ["digit", "picture"], gates=1.0) for held in (["image", "text"], ["image"]))
    one.load_state_dict({name: both.state_dict()[name] for name in one.state_dict()})
    batch = batch_of([IMAGE, TEXT], [DIGIT, PICTURE], rows=3)
    batch.present["text"] = torch.tensor([True, False, False])
    lacking = both(batch)
    alone = one(batch_of([IMAGE], [DIGIT, PICTURE], rows=3))
    assert set(lacking.predictions) == set(alone.predictions) == {"digit", "picture"}
    both_of = [(lacking.predictions[task], alone.predictions[task]) for task in alone.predictions]
    for found, expected in ((lacking.fused, alone.fused), *both_of):
        torch.testing.assert_close(found[1:], expected[1:])
        assert not torch.allclose(found[0], expected[0])
    assert all((value[1:] == 0).all() for name, value in lacking.latents.items() if name.startswith("text|"))


@pytest.mark.parametrize(("grid", "gate"), VARIANTS)
def test_a_sample_without_any_modality_is_mixed_to_zeros(grid: str, gate: str) -> None:
    module = loaded(small(expert_grid=grid, gate=gate), ["image", "text"], ["digit", "picture"], gates=1.0)
    batch = batch_of([IMAGE, TEXT], [DIGIT, PICTURE], rows=2)
    for name in batch.present:
        batch.present[name] = torch.tensor([True, False])
    lacking, nothing = module(batch), module(Batch({}, {}, {}, batch.labelled))
    assert (lacking.fused[1] == 0).all()
    assert (nothing.fused == 0).all()
    assert nothing.features == {}
    for task, prediction in nothing.predictions.items():
        torch.testing.assert_close(lacking.predictions[task][1], prediction[1])


@pytest.mark.parametrize("grid", GRIDS)
def test_padding_of_a_text_changes_nothing(grid: str) -> None:
    modalities = [{"text": Modality("text", "tokens", (length,), vocabulary=11)} for length in (4, 6)]
    short, long = (loaded(small(held, expert_grid=grid), ["text"], ["digit"]) for held in modalities)
    ids = torch.tensor([[3, 7, 2, 9], [5, 1, 0, 0]])
    state = short.state_dict()
    positions = torch.cat([state["stem.text.positions"], torch.randn(2, 6)])
    long.load_state_dict({**state, "stem.text.positions": positions})
    here = {"text": torch.ones(2, dtype=torch.bool)}
    padded = torch.cat([ids, torch.zeros(2, 2, dtype=torch.int64)], 1)
    torch.testing.assert_close(
        long(Batch({"text": padded}, here, {}, {})).predictions, short(Batch({"text": ids}, here, {}, {})).predictions
    )


# ------------------------------------------------------------------------------------------------ gradients, stacking


@pytest.mark.parametrize(("grid", "gate"), VARIANTS)
def test_parts_that_are_not_called_for_get_no_gradient_at_all(grid: str, gate: str) -> None:
    """P17: in a union model they are None, so that no optimiser moves them."""
    model = small(expert_grid=grid, gate=gate)
    union = loaded(model, list(MODALITIES), list(TASKS))
    batch = batch_of([IMAGE], [DIGIT])
    total_loss(TASKS, union(batch), batch)[0].backward()
    everything = model.components(list(MODALITIES), list(TASKS))
    reached = {component_of(name, everything) for name, p in union.named_parameters() if p.grad is not None}
    assert reached == set(model.components(["image"], ["digit"]))


@pytest.mark.parametrize(("grid", "gate"), VARIANTS)
def test_whole_models_can_be_stacked(grid: str, gate: str) -> None:
    model = small(expert_grid=grid, gate=gate)
    module = model.assemble(model.components(["image", "text"], ["digit", "picture"]))
    names = [name for name, _ in module.named_parameters()]
    firsts = [model.initial(seed) for seed in range(2)]
    each = [{name: first[name] for name in names} for first in firsts]
    batches = [batch_of([IMAGE, TEXT], [DIGIT, PICTURE], rows=3, seed=seed) for seed in range(2)]
    batches[1].present["text"][1] = False

    def loss(parameters: dict[str, Tensor], batch: Batch) -> Tensor:
        return total_loss(TASKS, functional_call(module, parameters, (batch,)), batch)[0]

    stacked = {name: torch.stack([parameters[name] for parameters in each]) for name in names}
    parts_of = zip(*(one[:4] for one in batches), strict=True)
    batch = Batch(*({k: torch.stack([one[k] for one in part]) for k in part[0]} for part in parts_of))
    together = vmap(grad(loss), (0, STACKED_BATCH))(stacked, batch)
    for place in range(2):
        for name, gradient in grad(loss)(each[place], batches[place]).items():
            torch.testing.assert_close(together[name][place], gradient, rtol=1e-4, atol=1e-5)
