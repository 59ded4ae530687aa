from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from polyfed.data.samples import Batch
from polyfed.data.schema import Modality, Task
from polyfed.engine.stacked import STACKED_BATCH
from polyfed.errors import UserError
from polyfed.model import parts
from polyfed.model.architecture import component_of
from polyfed.model.catalog import MODELS
from polyfed.model.losses import total_loss
from polyfed.model.modular import Modular, modular
from polyfed.model.size import parameter_count
from polyfed.registry import Registry
from tests.model.examples import AUDIO, DIGIT, IMAGE, PICTURE, PULSE, TEXT, batch_of

MODALITIES = {m.name: m for m in (IMAGE, AUDIO, TEXT)}
TASKS = {t.name: t for t in (DIGIT, PULSE, PICTURE)}
WIDTH = 8
FUSIONS = parts.FUSIONS.names()


def small(fusion: str = "concat", **options: Any) -> Modular:
    return modular(MODALITIES, TASKS, width=WIDTH, fusion={"name": fusion}, **options)


def loaded(model: Modular, modalities: list[str], tasks: list[str]) -> nn.Module:
    """The assembled model of a client with the first values of seed 0."""
    module = model.assemble(model.components(modalities, tasks))
    first = model.initial(0)
    module.load_state_dict({name: first[name] for name in module.state_dict()})
    return module


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry[nn.Module]]:
    """An encoder registry of the test's own, with the built-in ``bag`` and ``cnn``."""
    registry: Registry[nn.Module] = Registry("encoder")
    for name in ("bag", "cnn"):
        registry.add(name, parts.ENCODERS.builder(name))
    monkeypatch.setattr(parts, "ENCODERS", registry)
    yield registry


def test_components_are_those_of_the_modalities_and_tasks() -> None:
    assert small().components(["image"], ["digit", "pulse"]) == (
        "encoder.image",
        "fusion.image",
        "head.digit",
        "head.pulse",
    )
    assert small("attention").components(["text", "image"], []) == (
        "encoder.image",
        "encoder.text",
        "fusion.attention",
        "fusion.image",
        "fusion.text",
    )
    assert small("attention").components([], ["digit"]) == ("head.digit",)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_parameters_are_named_after_components(fusion: str) -> None:
    model = small(fusion)
    components = model.components(["image", "text"], ["digit"])
    module = model.assemble(frozenset(components))
    names = [name for name, _ in module.named_parameters()]
    assert {component_of(name, components) for name in names} == set(components)
    assert set(module.state_dict()) == set(names)
    first = model.initial(0)
    assert {name: first[name].shape for name in names} == {k: v.shape for k, v in module.named_parameters()}
    assert {component_of(name, model.builders) for name in first} == set(model.builders)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_forward(fusion: str) -> None:
    module = loaded(small(fusion), ["image", "text"], ["digit", "picture"])
    outputs = module(batch_of([IMAGE, AUDIO, TEXT], [DIGIT], rows=3))
    assert {name: tuple(z.shape) for name, z in outputs.features.items()} == {"image": (3, WIDTH), "text": (3, WIDTH)}
    assert outputs.fused.shape == (3, WIDTH)
    shapes = {name: tuple(prediction.shape) for name, prediction in outputs.predictions.items()}
    assert shapes == {"digit": (3, 10), "picture": (3, 1, 9, 7)}


@pytest.mark.parametrize("fusion", FUSIONS)
def test_only_modalities_in_the_batch_are_used(fusion: str) -> None:
    both, one = (loaded(small(fusion), held, ["digit"]) for held in (["image", "text"], ["image"]))
    batch = batch_of([IMAGE], [DIGIT])
    torch.testing.assert_close(both(batch).predictions, one(batch).predictions)
    assert list(both(batch).features) == ["image"]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_absent_samples_change_nothing_and_get_no_gradient(fusion: str) -> None:
    module = loaded(small(fusion), ["image", "audio"], ["digit"])
    batch = batch_of([IMAGE, AUDIO], [DIGIT], rows=3)
    mask = torch.tensor([True, False, False])
    batch.present["audio"] = mask
    rows = mask.reshape(3, 1, 1, 1)

    def gradients(filler: float) -> dict[str, Tensor]:
        module.zero_grad()
        inputs = {**batch.inputs, "audio": torch.where(rows, batch.inputs["audio"], filler)}
        total_loss(TASKS, module(batch._replace(inputs=inputs)), batch)[0].backward()
        return {
            name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None
        }

    clean = gradients(0.0)
    torch.testing.assert_close(gradients(torch.nan), clean, rtol=0, atol=0)
    assert all(value.isfinite().all() for value in clean.values())
    assert (clean["fusion.audio.weight"] != 0).any()
    batch.present["audio"] = torch.zeros(3, dtype=torch.bool)
    absent = {name: value for name, value in gradients(torch.nan).items() if ".audio." in name}
    assert absent
    assert all((value == 0).all() for value in absent.values())


def test_without_any_modality_the_fused_vector_is_zero() -> None:
    model = loaded(small(), ["image"], ["digit"])
    nothing = Batch({}, {}, {}, {"digit": torch.ones(3, dtype=torch.bool)})
    outputs = model(nothing)
    assert outputs.features == {}
    assert torch.equal(outputs.fused, torch.zeros(3, WIDTH))
    torch.testing.assert_close(outputs.predictions["digit"], model.get_parameter("head.digit.bias").expand(3, 10))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_whole_models_can_be_stacked(fusion: str) -> None:
    model = small(fusion)
    module = model.assemble(model.components(["image", "audio"], ["digit", "pulse"]))
    names = [name for name, _ in module.named_parameters()]
    each = [{name: model.initial(seed)[name] for name in names} for seed in range(2)]
    batches = [batch_of([IMAGE, AUDIO], [DIGIT, PULSE], rows=3, seed=seed) for seed in range(2)]
    batches[1].present["audio"][1] = False
    batches[0].labelled["pulse"][:] = False

    def loss(parameters: dict[str, Tensor], batch: Batch) -> Tensor:
        return total_loss(TASKS, functional_call(module, parameters, (batch,)), batch)[0]

    stacked = {name: torch.stack([parameters[name] for parameters in each]) for name in names}
    parts_of = zip(*(one[:4] for one in batches), strict=True)
    batch = Batch(*({k: torch.stack([one[k] for one in part]) for k in part[0]} for part in parts_of))
    together = vmap(grad(loss), (0, STACKED_BATCH))(stacked, batch)
    for place in range(2):
        for name, gradient in grad(loss)(each[place], batches[place]).items():
            torch.testing.assert_close(together[name][place], gradient, rtol=1e-4, atol=1e-5)


def test_first_values_depend_on_seed_and_component_alone() -> None:
    first, again, other = small().initial(1), small().initial(1), small().initial(2)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first["encoder.text.embedding.weight"], other["encoder.text.embedding.weight"])
    assert not torch.equal(first["fusion.text.weight"], first["fusion.image.weight"])
    fewer = modular({"text": TEXT}, {"digit": DIGIT}, width=WIDTH).initial(1)
    assert set(fewer) < set(first)
    torch.testing.assert_close(fewer, {name: first[name] for name in fewer}, rtol=0, atol=0)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    model = small()
    model.initial(3)
    model.assemble(model.components(["image"], ["digit"]))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_parameter_count() -> None:
    model = modular({"text": TEXT}, {"digit": DIGIT}, width=WIDTH)
    counts = parameter_count(model, model.components(["text"], ["digit"]))
    assert counts == {"encoder.text": 11 * 8, "fusion.text": 8 * 8 + 8, "head.digit": 8 * 10 + 10}


def test_options_reach_the_parts() -> None:
    options = {
        "width": 6,
        "encoders": {"image": {"name": "mlp", "hidden": [5]}, "text": {}},
        "fusion": {"width": 4, "activation": "tanh"},
        "heads": {"digit": {"name": "mlp", "hidden": [3]}},
    }
    first = MODELS.build("modular", options, MODALITIES, TASKS).initial(0)
    assert first["encoder.image.1.weight"].shape == (5, 64)
    assert first["encoder.text.embedding.weight"].shape == (11, 6)
    assert first["fusion.image.weight"].shape == (4, 6)
    assert first["head.digit.0.weight"].shape == (3, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoders": {"imagee": {}}}, r"model\.encoders: unknown modality 'imagee'; did you mean 'image'\?"),
        ({"heads": {"digits": {}}}, r"model\.heads: unknown task 'digits'; did you mean 'digit'\?"),
        ({"encoders": {"image": {"name": "cn"}}}, r"model\.encoders\.image: unknown encoder 'cn'; .*'cnn'"),
        ({"encoders": {"text": {"name": "cnn"}}}, r"modality 'text': encoder 'cnn' cannot read tokens"),
        ({"fusion": {"name": "sum"}}, r"model\.fusion: unknown fusion 'sum'\. Choices: attention, concat"),
        ({"fusion": {"dropout": 1.5}}, r"model\.fusion: fusion 'concat': dropout: 1\.5 is not allowed"),
        ({"heads": {"digit": {"name": "decoder"}}}, r"task 'digit': head 'decoder'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        modular(MODALITIES, TASKS, **options)


@pytest.mark.parametrize("name", ["left.eye", "", "type"])
def test_names_that_cannot_be_used_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"modality name '{name}'"):
        modular({name: Modality(name, "vector", (3,))}, {"digit": DIGIT})
    with pytest.raises(UserError, match=f"task name '{name}'"):
        modular({"image": IMAGE}, {name: Task(name, "regression")})


def test_a_modality_named_like_a_shared_component_is_refused() -> None:
    with pytest.raises(UserError, match=r"'attention' is reserved for the component 'fusion\.attention'"):
        modular({"attention": Modality("attention", "vector", (3,))}, TASKS, fusion={"name": "attention"})


def test_unknown_modalities_tasks_and_components_are_refused() -> None:
    with pytest.raises(UserError, match="unknown modality 'smell'"):
        small().components(["smell"], [])
    with pytest.raises(UserError, match="unknown task 'smell'"):
        small().components([], ["smell"])
    with pytest.raises(UserError, match=r"unknown component 'head\.smell'"):
        small().assemble(["head.smell"])


def test_components_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(UserError, match=r"make no model; with these encoders and heads: .*fusion\.image"):
        small().assemble(["encoder.image", "head.digit"])


def test_a_users_own_encoder(own: Registry[nn.Module]) -> None:
    def mine(modality: Modality, width: int, *, scale: float = 1.0) -> nn.Module:
        """One linear layer."""
        return nn.Sequential(nn.Flatten(), nn.Linear(64, width))

    own.add("mine", mine)
    model = modular({"image": IMAGE}, {"digit": DIGIT}, encoders={"image": {"name": "mine", "scale": 2}})
    assert parameter_count(model, ["encoder.image", "fusion.image", "head.digit"])["encoder.image"] == 64 * 64 + 64


def test_running_statistics_are_refused(own: Registry[nn.Module]) -> None:
    def normalised(modality: Modality, width: int) -> nn.Module:
        """Uses BatchNorm."""
        return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.BatchNorm1d(width))

    own.add("normalised", normalised)
    with pytest.raises(UserError, match=r"component 'encoder\.image' keeps statistics .*running_mean.*GroupNorm"):
        modular({"image": IMAGE}, {"digit": DIGIT}, encoders={"image": {"name": "normalised"}})


def test_a_wrong_width_is_refused(own: Registry[nn.Module]) -> None:
    def narrow(modality: Modality, width: int) -> nn.Module:
        """Forgets about the width."""
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))

    own.add("narrow", narrow)
    with pytest.raises(UserError, match=r"'encoder\.image' returns shape \(2, 7\) for 2 samples, not \(2, 64\)"):
        modular({"image": IMAGE}, {"digit": DIGIT}, encoders={"image": {"name": "narrow"}})
