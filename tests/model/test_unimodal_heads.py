"""Heads on single modalities beside the fused head: names, first values, what they see, who has them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyfed.data.schema import Modality, Task
from polyfed.errors import UserError
from polyfed.model.architecture import Outputs, component_of
from polyfed.model.modular import Modular, modular
from tests.model.examples import AUDIO, DIGIT, IMAGE, PULSE, TEXT, batch_of

MODALITIES = {m.name: m for m in (IMAGE, AUDIO, TEXT)}
TASKS = {t.name: t for t in (DIGIT, PULSE)}
WIDTH = 8


def small(unimodal_heads: bool | None = True, **options: Any) -> Modular:
    return modular(MODALITIES, TASKS, width=WIDTH, unimodal_heads=unimodal_heads, **options)


def loaded(model: Modular, modalities: list[str], tasks: list[str]) -> nn.Module:
    """The assembled model of a client with the first values of seed 0."""
    module = model.assemble(model.components(modalities, tasks))
    first = model.initial(0)
    module.load_state_dict({name: first[name] for name in module.state_dict()})
    return module


def predicted(outputs: Outputs) -> dict[tuple[str, str], tuple[int, ...]]:
    return {(m, t): tuple(value.shape) for m, heads in outputs.unimodal.items() for t, value in heads.items()}


def test_components_name_a_head_per_modality_and_task() -> None:
    assert small().components(["image", "text"], ["digit", "pulse"]) == (
        "encoder.image",
        "encoder.text",
        "fusion.image",
        "fusion.text",
        "head.digit",
        "head.pulse",
        "unimodal.image.digit",
        "unimodal.image.pulse",
        "unimodal.text.digit",
        "unimodal.text.pulse",
    )
    assert small().components([], ["digit"]) == ("head.digit",)
    assert small().components(["image"], []) == ("encoder.image", "fusion.image")


@pytest.mark.parametrize("off", [None, False])
def test_without_the_option_there_are_none(off: bool | None) -> None:
    model = small(off)
    assert not [name for name in model.builders if name.startswith("unimodal")]
    module = loaded(model, ["image"], ["digit"])
    assert module(batch_of([IMAGE], [DIGIT])).unimodal == {}
    assert not [name for name in module.state_dict() if name.startswith("unimodal")]


def test_parameters_are_named_after_components() -> None:
    model = small()
    components = model.components(MODALITIES, TASKS)
    module = model.assemble(components)
    names = [name for name, _ in module.named_parameters()]
    assert {component_of(name, components) for name in names} == set(components)
    assert set(names) == set(model.initial(0))


@pytest.mark.parametrize("fusion", ["concat", "attention"])
def test_first_values_of_all_else_are_as_without_the_heads(fusion: str) -> None:
    plain = small(False, fusion={"name": fusion}).initial(5)
    headed = small(True, fusion={"name": fusion}).initial(5)
    assert all(torch.equal(headed[name], value) for name, value in plain.items())
    assert {name.split(".")[0] for name in headed.keys() - plain.keys()} == {"unimodal"}


def test_heads_of_one_task_start_from_different_values() -> None:
    first = small().initial(5)
    values = [first[f"unimodal.{m}.digit.weight"] for m in MODALITIES] + [first["head.digit.weight"]]
    assert all(not torch.equal(one, other) for k, one in enumerate(values) for other in values[:k])


def test_predictions_use_only_the_features_of_their_modality() -> None:
    module = loaded(small(), ["image", "audio"], ["digit", "pulse"])
    batch = batch_of([IMAGE, AUDIO], [DIGIT, PULSE], rows=3)
    before = module(batch)
    other = batch._replace(inputs={**batch.inputs, "audio": batch.inputs["audio"] + 1.0})
    after = module(other)
    for task in TASKS:
        assert torch.equal(before.unimodal["image"][task], after.unimodal["image"][task])
        assert not torch.equal(before.unimodal["audio"][task], after.unimodal["audio"][task])
        assert not torch.equal(before.predictions[task], after.predictions[task])
    by_hand = module.get_submodule("unimodal.audio.digit")(before.features["audio"])
    assert torch.equal(before.unimodal["audio"]["digit"], by_hand)


def test_gradients_of_a_head_reach_its_own_encoder_and_nothing_else() -> None:
    module = loaded(small(), ["image", "audio"], ["digit"])
    loss = module(batch_of([IMAGE, AUDIO], [DIGIT])).unimodal["audio"]["digit"].square().sum()
    loss.backward()
    reached = {name for name, value in module.named_parameters() if value.grad is not None}
    assert {".".join(name.split(".")[:2]) for name in reached} == {"encoder.audio", "unimodal.audio"}


def test_a_client_has_the_heads_of_its_own_modalities_and_tasks() -> None:
    module = loaded(small(), ["image", "text"], ["pulse"])
    batch = batch_of([IMAGE, AUDIO, TEXT], [DIGIT, PULSE], rows=3)
    assert predicted(module(batch)) == {("image", "pulse"): (3, 2), ("text", "pulse"): (3, 2)}


def test_a_modality_that_the_batch_lacks_is_not_predicted_from() -> None:
    module = loaded(small(), ["image", "audio"], ["digit"])
    assert predicted(module(batch_of([IMAGE], [DIGIT], rows=3))) == {("image", "digit"): (3, 10)}


def test_clients_compute_the_same_from_the_same_parameters() -> None:
    """However much else a client's model holds."""
    batch = batch_of([IMAGE], [DIGIT])
    one, all_of_it = (loaded(small(), held, ["digit"]) for held in (["image"], list(MODALITIES)))
    found: list[Tensor] = [module(batch).unimodal["image"]["digit"] for module in (one, all_of_it)]
    torch.testing.assert_close(*found)


def test_components_that_lack_a_head_make_no_model() -> None:
    components = set(small().components(["image"], ["digit"]))
    with pytest.raises(UserError, match=r"make no model; with these encoders and heads: .*unimodal\.image\.digit"):
        small().assemble(components - {"unimodal.image.digit"})
    with pytest.raises(UserError, match=r"unknown component 'unimodal\.image\.digit'"):
        small(False).assemble(components)


def test_a_chosen_head_applies_to_all_heads_of_its_task() -> None:
    first = small(heads={"digit": {"name": "mlp", "hidden": [3]}}).initial(0)
    for component in ("head.digit", "unimodal.image.digit", "unimodal.text.digit"):
        assert first[f"{component}.0.weight"].shape == (3, WIDTH)
    assert "unimodal.image.pulse.weight" in first


def test_the_fused_width_may_differ_from_that_of_the_features() -> None:
    """Uni-modal heads read features, the fused head what the fusion makes of them."""
    model = small()
    assert model.builders["unimodal.image.digit"]().get_parameter("weight").shape == (10, WIDTH)
    assert model.builders["head.digit"]().get_parameter("weight").shape == (10, model.fusion.width)


@pytest.mark.parametrize("name", ["left.eye", "", "type"])
def test_names_that_cannot_be_used_are_refused_with_the_heads_too(name: str) -> None:
    with pytest.raises(UserError, match=f"modality name '{name}'"):
        modular({name: Modality(name, "vector", (3,))}, {"digit": DIGIT}, unimodal_heads=True)
    with pytest.raises(UserError, match=f"task name '{name}'"):
        modular({"image": IMAGE}, {name: Task(name, "regression")}, unimodal_heads=True)


@pytest.mark.parametrize("name", ["unimodal", "head", "encoder", "image"])
def test_a_task_or_modality_named_like_a_kind_of_component_does_no_harm(name: str) -> None:
    vector = Modality(name, "vector", (3,))
    model = modular({name: vector}, {name: Task(name, "classification", classes=4)}, width=WIDTH, unimodal_heads=True)
    module = loaded(model, [name], [name])
    names = {component_of(parameter, model.components([name], [name])) for parameter in module.state_dict()}
    assert names == {f"encoder.{name}", f"fusion.{name}", f"head.{name}", f"unimodal.{name}.{name}"}
    assert predicted(module(batch_of([vector], [], rows=2))) == {(name, name): (2, 4)}
