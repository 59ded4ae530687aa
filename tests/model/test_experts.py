"""The ``experts`` model: components and sizes. P3 ... P5 are properties of the method's specification."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from polyfed.data.schema import Modality, Task
from polyfed.model.architecture import component_of
from polyfed.model.catalog import MODELS
from polyfed.model.size import parameter_count
from tests.model.examples import DIGIT, TEXT
from tests.model.expert_examples import GATES, GRIDS, MODALITIES, TASKS, small

# ------------------------------------------------------------------------------------------------ components


def test_a_client_has_exactly_what_its_modalities_and_tasks_call_for() -> None:
    """P5: (1 + 1)(1 + 1) experts."""
    assert small().components(["photo"], ["digit"]) == (
        "cross_attention.digit",
        "cross_attention.general",
        "expert.general.digit",
        "expert.general.general",
        "expert.image.digit",
        "expert.image.general",
        "gate.photo.digit",
        "head.digit",
        "projection",
        "self_attention.general",
        "self_attention.image",
        "stem.photo",
    )
    assert small(expert_grid="axes", gate="uniform").components(["photo"], ["digit"]) == (
        "cross_attention.digit",
        "cross_attention.general",
        "expert.input.general",
        "expert.input.image",
        "expert.output.digit",
        "expert.output.general",
        "head.digit",
        "projection",
        "self_attention.general",
        "self_attention.image",
        "stem.photo",
    )
    plain = small(expert_grid="module").components(["photo", "image"], ["digit"])
    assert plain == ("head.digit", "input_stack.image", "output_stack.digit", "stem.image", "stem.photo")
    assert small().components([], ["digit"]) == ("head.digit",)


@pytest.mark.parametrize("modalities", [["text"], ["text", "audio"], ["image", "photo", "text"], sorted(MODALITIES)])
@pytest.mark.parametrize("tasks", [["digit"], ["digit", "pulse"], sorted(TASKS)])
def test_experts_are_counted_by_families_and_tasks(modalities: list[str], tasks: list[str]) -> None:
    """P5."""
    experts = [name for name in small().components(modalities, tasks) if name.startswith("expert.")]
    families = {MODALITIES[name].family for name in modalities}
    assert len(experts) == (len(families) + 1) * (len(tasks) + 1)


def test_clients_with_nothing_in_common_share_the_general_parts_alone() -> None:
    """P3."""
    one, other = (set(small().components(*held)) for held in ((["image"], ["digit"]), (["audio", "text"], ["pulse"])))
    general = {"projection", "self_attention.general", "cross_attention.general", "expert.general.general"}
    assert one & other == general


def test_a_client_with_more_modalities_and_tasks_holds_all_that_another_holds() -> None:
    """P4."""
    fewer, more = (
        set(small().components(*held)) for held in ((["image"], ["digit"]), (["image", "text"], list(TASKS)))
    )
    assert fewer < more


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("gate", GATES)
def test_parameters_are_named_after_components(grid: str, gate: str) -> None:
    model = small(expert_grid=grid, gate=gate)
    everything = model.components(list(MODALITIES), list(TASKS))
    first = model.initial(0)
    assert {component_of(name, everything) for name in first} == set(everything)
    components = model.components(["image", "text"], ["digit", "picture"])
    names = dict(model.assemble(frozenset(components)).named_parameters())
    assert {component_of(name, components) for name in names} == set(components)
    assert {name: first[name].shape for name in names} == {name: value.shape for name, value in names.items()}


def test_first_values_depend_on_seed_and_component_alone() -> None:
    first, again, other = small().initial(1), small().initial(1), small().initial(2)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    weight = "expert.image.digit.input.layers.0.1.weight"
    assert not torch.equal(first[weight], other[weight])
    assert not torch.equal(first[weight], first["expert.image.pulse.input.layers.0.1.weight"])
    fewer = small({"text": TEXT}, {"digit": DIGIT}).initial(1)
    assert set(fewer) < set(first)
    torch.testing.assert_close(fewer, {name: first[name] for name in fewer}, rtol=0, atol=0)
    assert all((value == 0).all() for name, value in first.items() if name.startswith("gate."))


# ------------------------------------------------------------------------------------------------ published sizes

SCENARIO1 = (
    {
        "av_image": Modality("av_image", "image", (1, 28, 28), family="image"),
        "fm_image": Modality("fm_image", "image", (1, 36, 36), family="image"),
        "av_audio": Modality("av_audio", "audio", (1, 112, 112), family="audio"),
    },
    {
        "digits": Task("digits", "classification", classes=10),
        "objects": Task("objects", "classification", classes=10),
        "draw": Task("draw", "generation", (1, 28, 28)),
        "speak": Task("speak", "generation", (1, 112, 112)),
    },
)
ROWS1 = (
    ("av_image", "digits", 29.0),
    ("av_audio", "digits", 29.2),
    ("av_image av_audio", "digits", 42.2),
    ("av_audio", "digits draw", 42.9),
    ("av_image", "speak", 30.0),
    ("av_image av_audio", "draw speak", 62.6),
    ("fm_image", "digits objects", 41.9),
    ("fm_image", "objects speak", 42.9),
    ("fm_image", "digits objects draw", 55.6),
)
SCENARIO2 = (
    {
        "text": Modality("text", "sensor", (300, 50)),
        "speech": Modality("speech", "sensor", (74, 50), family="audio"),
        "video": Modality("video", "sensor", (35, 50)),
        "acoustic": Modality("acoustic", "vector", (50,), family="audio"),
        "seismic": Modality("seismic", "vector", (50,)),
    },
    {
        "sentiment": Task("sentiment", "classification", classes=9),
        "emotions": Task("emotions", "regression", (3,)),
        "vehicle": Task("vehicle", "classification", classes=2),
    },
)
ROWS2 = (
    ("video", "sentiment"),
    ("speech", "sentiment"),
    ("text", "sentiment"),
    ("video speech", "sentiment"),
    ("speech text", "sentiment"),
    ("video text", "sentiment"),
    ("video text", "sentiment emotions"),
    ("text", "emotions"),
    ("speech text", "emotions"),
    ("speech text", "sentiment emotions"),
    ("acoustic", "vehicle"),
    ("seismic", "vehicle"),
)

World = tuple[Mapping[str, Modality], Mapping[str, Task]]


def sizes(world: World, grid: str, rows: list[tuple[str, str]]) -> tuple[int, list[float]]:
    """Parameters of the server without gates, and the share of them in per cent that a client of each row has."""
    model = MODELS.build("experts", {"expert_grid": grid, "gate": "uniform"}, *world)
    counts = parameter_count(model, model.components(list(world[0]), list(world[1])))
    total = sum(counts.values())
    shares = [sum(counts[name] for name in model.components(m.split(), t.split())) / total for m, t in rows]
    return total, [100 * share for share in shares]


def test_the_default_model_has_the_sizes_of_the_specification() -> None:
    total, shares = sizes(SCENARIO1, "pairs", [row[:2] for row in ROWS1])
    assert total == 20_664_676
    assert [round(share, 1) for share in shares] == [row[2] for row in ROWS1]
    assert round(sum(shares) / len(shares), 1) == 41.8
    total, shares = sizes(SCENARIO1, "axes", [row[:2] for row in ROWS1])
    assert total == 7_629_412
    assert round(sum(shares) / len(shares), 1) == 59.7


def test_the_sizes_of_the_second_scenario() -> None:
    for grid, expected, average in (("pairs", 26_534_222, 30.2), ("axes", 8_166_350, 52.0)):
        total, shares = sizes(SCENARIO2, grid, list(ROWS2))
        assert total == expected
        assert round(sum(shares) / len(shares), 1) == average


def test_components_that_make_no_model_together_are_counted_all_the_same() -> None:
    """Clients with (image, digit) and (text, pulse): nobody has the expert of (image, pulse)."""
    held = {*small().components(["image"], ["digit"]), *small().components(["text"], ["pulse"])}
    counts = parameter_count(small(), held)
    assert set(counts) == held
    assert counts["gate.image.digit"] == 4
    assert counts["expert.image.digit"] == 4 * (2 * 6 + (6 * 9 + 9) + (9 * 6 + 6))
