"""Several datasets as one: names, shared tasks, masks, lazy columns, units, and one clear error per misfit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyfed.data.catalog import DATASETS
from polyfed.data.columns import Column, JoinedColumn, TensorColumn
from polyfed.data.dataset import Dataset
from polyfed.data.samples import Table
from polyfed.data.schema import Modality, Task
from polyfed.data.several import NOWHERE, joined
from polyfed.errors import UserError
from polyfed.experiment import config
from polyfed.experiment.world import build_world
from polyfed.scenario.federation import Federation

SCENARIO_1 = Path(__file__).parents[2] / "examples/disentafl/scenario1.yaml"
DIGIT = Task("digit", "classification", classes=3)


def small(
    rows: int, *modalities: str, first: float = 1.0, width: int = 2, unit: list[int] | None = None, **targets: Task
) -> Dataset:
    """A dataset whose rows count up from ``first``, with the digit and more tasks, and a test table of two rows."""
    tasks = {"digit": DIGIT, **targets}
    return Dataset(
        "small",
        {name: Modality(name, "vector", (width,)) for name in modalities},
        tasks,
        table(rows, modalities, tasks, first, width, unit),
        table(2, modalities, tasks, first + 100, width, None if unit is None else [90, 91]),
        unit=None if unit is None else "clip",
        field_labels={} if unit is None else {"clip": tuple(map(str, range(100)))},
    )


def table(
    rows: int, modalities: tuple[str, ...], tasks: dict[str, Task], first: float, width: int, unit: list[int] | None
) -> Table:
    values = first + torch.arange(rows).float().unsqueeze(1).repeat(1, width)
    return Table(
        {name: TensorColumn(values.clone()) for name in modalities},
        {
            name: TensorColumn(torch.arange(rows) % 3 if task.kind == "classification" else values[:, 0].clone())
            for name, task in tasks.items()
        },
        {} if unit is None else {"clip": torch.tensor(unit)},
    )


TWO = {
    "av": small(4, "image", "audio", unit=[5, 5, 7, 9]),
    "fm": small(3, "image", first=11.0, width=3, age=Task("age", "regression")),
}


def test_modalities_bear_the_name_of_their_part_and_keep_their_family() -> None:
    modalities = joined(TWO).modalities
    assert list(modalities) == ["av_image", "av_audio", "fm_image"]
    assert [(m.name, m.family, m.shape) for m in modalities.values()] == [
        ("av_image", "image", (2,)),
        ("av_audio", "audio", (2,)),
        ("fm_image", "image", (3,)),
    ]
    assert Modality("image", "vector", (1,)).family == "image"


def test_tasks_of_one_name_and_form_are_one_task() -> None:
    dataset = joined(TWO)
    assert dataset.tasks == {"digit": DIGIT, "age": Task("age", "regression")}
    everything = dataset.train.everything()
    assert everything.target("digit").tolist() == [0, 1, 2, 0, 0, 1, 2]
    assert everything.target("digit").dtype == torch.int64
    assert everything.labelled["digit"].all()
    assert everything.labelled["age"].tolist() == [False] * 4 + [True] * 3
    assert everything.target("age").tolist() == [0.0] * 4 + [11.0, 12.0, 13.0]


def test_rows_lack_what_only_other_parts_have() -> None:
    batch = joined(TWO).train.everything().batch()
    assert batch.present["av_image"].tolist() == batch.present["av_audio"].tolist() == [True] * 4 + [False] * 3
    assert batch.present["fm_image"].tolist() == [False] * 4 + [True] * 3
    assert batch.inputs["av_audio"][:, 1].tolist() == [1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0]
    assert batch.inputs["fm_image"][:, 2].tolist() == [0.0] * 4 + [11.0, 12.0, 13.0]


def test_gaps_of_a_part_stay_gaps() -> None:
    gaps = torch.tensor([True, False, True, True])
    table = replace(TWO["av"].train, present={"audio": gaps}, labelled={"digit": ~gaps})
    everything = joined({**TWO, "av": replace(TWO["av"], train=table)}).train.everything()
    assert everything.present["av_audio"].tolist() == [True, False, True, True, False, False, False]
    assert everything.labelled["digit"].tolist() == [False, True, False, False, True, True, True]


def test_fields_tell_the_part_and_keep_rows_of_one_unit_together() -> None:
    dataset = joined(TWO)
    fields = dataset.train.fields
    assert fields["domain"].tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert fields["av_clip"].tolist() == [5, 5, 7, 9, NOWHERE, NOWHERE, NOWHERE]
    assert dataset.field_labels["domain"] == ("av", "fm")
    assert dataset.field_labels["av_clip"][7] == "7"
    assert dataset.unit == "unit"
    one, again, *others = fields["unit"].tolist()
    assert one == again
    assert dataset.test is not None
    numbers = [one, *others, *dataset.test.fields["unit"].tolist()]
    assert len(set(numbers)) == len(numbers), "no unit is in two parts, or in training and test"


def test_a_unit_of_a_part_that_is_in_training_and_test_is_one_unit() -> None:
    part = small(2, "image", unit=[3, 4])
    assert part.test is not None
    shared = replace(part, test=replace(part.test, fields={"clip": torch.tensor([4, 8])}))
    dataset = joined({"a": small(3, "image"), "b": shared})
    assert dataset.test is not None
    assert dataset.train.fields["unit"][-1] == dataset.test.fields["unit"][2]


def test_units_are_of_one_part_whatever_their_numbers() -> None:
    parts = {"a": small(3, "image", unit=[0, 1, 1]), "b": small(3, "image", unit=[-92, -92, 5])}
    first, second, _, third, again, fourth = joined(parts).train.fields["unit"].tolist()
    assert third == again
    assert len({first, second, third, fourth}) == 4
    assert third > 90, "the test rows of the first part have the numbers up to 91"


def test_without_units_in_any_part_there_are_none() -> None:
    dataset = joined({"a": small(2, "image"), "b": small(2, "image")})
    assert dataset.unit is None
    assert "unit" not in dataset.train.fields


def test_test_tables_are_joined_like_training_tables() -> None:
    test = joined(TWO).test
    assert test is not None
    batch = test.everything().batch()
    assert batch.inputs["av_image"][:, 0].tolist() == [101.0, 102.0, 0.0, 0.0]
    assert batch.inputs["fm_image"][:, 0].tolist() == [0.0, 0.0, 111.0, 112.0]
    none = joined({name: replace(part, test=None) for name, part in TWO.items()})
    assert none.test is None


@dataclass(frozen=True)
class Watched:
    """A column that lists which rows it was asked for."""

    base: Column
    asked: list[int]
    resident: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def __len__(self) -> int:
        return len(self.base)

    def gather(self, rows: Tensor) -> Tensor:
        assert len(rows), "asked for nothing"
        self.asked.extend(rows.tolist())
        return self.base.gather(rows)


def test_columns_are_fetched_from_their_part_and_only_there() -> None:
    asked: list[int] = []
    part = TWO["av"]
    watched = replace(part.train, inputs={**part.train.inputs, "audio": Watched(part.train.inputs["audio"], asked)})
    dataset = joined({"fm": TWO["fm"], "av": replace(part, train=watched)})
    assert asked == []
    everything = dataset.train.everything()
    assert not everything.resident
    assert everything.only(["av_image", "fm_image"], ["digit"]).resident
    column = dataset.train.inputs["av_audio"]
    assert column.gather(torch.tensor([0, 2])).tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert column.gather(torch.tensor([], dtype=torch.int64)).shape == (0, 2)
    assert asked == []
    assert column.gather(torch.tensor([6, 1, 3]))[:, 0].tolist() == [4.0, 0.0, 1.0]
    assert asked == [3, 0]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_a_joined_column_is_its_pieces_one_below_the_other(sizes: list[int], data: st.DataObject) -> None:
    values = torch.arange(1, sum(sizes) + 1).float()
    pieces, start = [], 0
    for size in sizes:
        pieces.append((start, TensorColumn(values[start : start + size])))
        start += size
    covered = [piece for piece in pieces if data.draw(st.booleans())] or pieces
    expected = torch.zeros(start)
    for first, column in covered:
        expected[first : first + len(column)] = column.values
    rows = torch.tensor(data.draw(st.lists(st.integers(0, start - 1), max_size=8)), dtype=torch.int64)
    found = JoinedColumn(tuple(covered), start, torch.float32).gather(rows)
    assert torch.equal(found, expected[rows])


# ------------------------------------------------------------------------------------------------ from options

TWICE = {"a": {"name": "avdigits"}, "b": {"name": "avdigits", "seed": 1}}


def test_parts_are_built_with_their_options_and_root(small_root: Path) -> None:
    parts = {"fm": {"name": "multi-fmnist"}, "written": {"name": "mnist"}, "digits": {"name": "avdigits"}}
    dataset = DATASETS.build("several", {"parts": parts}, small_root)
    assert list(dataset.modalities) == ["fm_image", "written_image", "digits_image", "digits_audio"]
    assert list(dataset.tasks) == ["digit", "garment", "parity"]
    assert len(dataset.train) == 60 + 60 + 1437
    assert dataset.test is not None
    assert len(dataset.test) == 30 + 30 + 360
    alone = DATASETS.build("multi-fmnist", {}, small_root)
    rows = torch.tensor([3, 59])
    assert torch.equal(dataset.train.inputs["fm_image"].gather(rows), alone.train.inputs["image"].gather(rows))


def test_tasks_of_a_part_can_have_another_name() -> None:
    dataset = DATASETS.build("several", {"parts": TWICE, "rename": {"b": {"digit": "heard"}}}, None)
    assert list(dataset.tasks) == ["digit", "parity", "heard"]
    assert dataset.tasks["heard"].name == "heard"
    labelled = dataset.train.everything().labelled
    assert labelled["digit"].sum() == labelled["heard"].sum() == 1437
    assert labelled["parity"].all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": {"a": {"name": "mnits"}}}, r"data\.parts\.a: unknown dataset 'mnits'; did you mean 'mnist'"),
        ({"parts": {"a": {"name": "several", "parts": TWICE}}}, r"data\.parts\.a: unknown dataset 'several'"),
        ({"parts": {"a": {"name": "avdigits", "size": 3}}}, r"data\.parts\.a: dataset 'avdigits': size: unknown key"),
        ({"parts": {"a": {"name": "folder", "path": "no/where"}}}, r"data\.parts\.a: dataset folder: path: .*no/where"),
        ({"parts": {}}, "dataset 'several': parts: "),
        ({"parts": {"A b": {"name": "avdigits"}}}, "dataset 'several': parts.A b: 'A b' is not allowed"),
        ({"parts": TWICE, "rename": {"c": {}}}, r"data\.rename: unknown part 'c'. Choices: a, b"),
        ({"parts": TWICE, "rename": {"a": {"digits": "x"}}}, r"data\.rename\.a: unknown task 'digits'; did you mean"),
        (
            {"parts": TWICE, "rename": {"a": {"digit": "parity"}}},
            r"data\.rename\.a: two tasks would be called 'parity'",
        ),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DATASETS.build("several", options, None)


def test_tasks_of_one_name_but_another_form_are_refused() -> None:
    other = Task("digit", "classification", classes=3, labels=("a", "b", "c"))
    parts = {"x": TWO["av"], "y": replace(small(3, "image"), tasks={"digit": other})}
    message = (
        r"the task 'digit' is classification of 3 classes in 'x', but classification of 3 classes \(a, b, c\) in 'y'; "
        r".* rename: \{y: \{digit: y_digit\}\}"
    )
    with pytest.raises(UserError, match=message):
        joined(parts)


def test_generation_targets_of_other_sizes_are_refused_until_renamed(small_root: Path) -> None:
    parts = {
        "av": {"name": "av-mnist", "generation": True, "size": 8},
        "fm": {"name": "multi-fmnist", "generation": True, "size": 9},
    }
    with pytest.raises(
        UserError, match=r"'clean_audio' is generation \(audio\) of shape \(1, 8, 8\) in 'av', but .*\(1, 9, 9\)"
    ):
        DATASETS.build("several", {"parts": parts}, small_root)
    dataset = DATASETS.build("several", {"parts": parts, "rename": {"fm": {"clean_audio": "spoken"}}}, small_root)
    assert dataset.tasks["spoken"].shape == (1, 9, 9)


def test_test_splits_in_some_parts_only_are_refused() -> None:
    with pytest.raises(UserError, match="'av' has a test split, but 'fm' has none; all parts must have one, or none"):
        joined({**TWO, "fm": replace(TWO["fm"], test=None)})


def test_modalities_that_would_have_one_name_are_refused() -> None:
    with pytest.raises(UserError, match="two modalities would be called 'a_b_image'; give the part 'a_b' another name"):
        joined({"a": small(2, "b_image"), "a_b": small(2, "image")})


# ------------------------------------------------------------------------------------------------ in an experiment

EXPERIMENT = {"data": {"name": "several", "parts": TWICE}, "scenario": {"clients": 3}, "model": {"width": 8}}


def test_options_of_parts_are_checked_when_the_experiment_is_loaded() -> None:
    loaded = config.parse(EXPERIMENT)
    parts = loaded.resolved["data"]["parts"]
    assert parts["a"] == {"name": "avdigits", "pairs_per_image": 1, "seed": 0}
    assert config.parse(loaded.resolved).resolved == loaded.resolved
    assert loaded.with_({"data.parts.b.seed": 7}).resolved["data"]["parts"]["b"]["seed"] == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.parts.a.size": 3}, r"data\.parts\.a\.size: unknown key 'size'. Choices: name, pairs_per_image, seed"),
        ({"data.parts.b.seed": -1}, r"data\.parts\.b\.seed: -1 is not allowed"),
        ({"data.parts.mnist": {"name": "mnist", "x": 1}}, r"data\.parts\.mnist\.x: unknown key 'x'. Choices: name"),
        ({"data.parts.seed": {"name": "avdigits", "seed": -1}}, r"data\.parts\.seed\.seed: -1 is not allowed"),
        ({"data.parts.a": {"seed": 1}}, r"data\.parts\.a: a name is missing"),
        ({"data.parts.a": "avdigits"}, r"data\.parts\.a: 'avdigits' is a text where a table belongs"),
        ({"data.parts.a": {"name": "several", "parts": {}}}, r"data\.parts\.a: unknown name 'several'"),
        ({"data.parts": {"A b": {"name": "mnist"}}}, r"data\.parts\.A b: 'A b' is not allowed: string should match"),
        ({"data": {"name": "several"}}, r"data\.parts: is missing"),
    ],
)
def test_a_wrong_option_of_a_part_is_named_with_its_whole_path(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=f"^experiment: {message}"):
        config.parse(config.changed(EXPERIMENT, changes))


def test_clients_may_have_rows_of_several_parts_or_be_the_parts() -> None:
    mixed = build_world(config.parse(EXPERIMENT)).federation
    assert [card.modalities for card in mixed.cards.values()] == [("a_audio", "a_image", "b_audio", "b_image")] * 3
    natural = {"scenario": {"clients": None, "partition": {"name": "natural", "field": "domain"}}}
    parts = build_world(config.parse({**EXPERIMENT, **natural})).federation
    assert [(card.name, card.group) for card in parts.cards.values()] == [
        ("domain a", "a_audio+a_image"),
        ("domain b", "b_audio+b_image"),
    ]
    assert [len(client.test) for client in parts.clients()] == [360, 360]
    voices = {"scenario": {"clients": None, "partition": {"name": "natural", "field": "a_voice"}}}
    names = {card.name for card in build_world(config.parse({**EXPERIMENT, **voices})).federation.cards.values()}
    assert f"a_voice {NOWHERE}" in names


# ------------------------------------------------------------------------------------------------ scenario 1


def scenario_1(root: Path, limit: int | None) -> Federation:
    changes = {"data.root": str(root), "data.parts.av.size": 8, "data.parts.fm.size": 8, "model.width": 8}
    return build_world(
        config.load(SCENARIO_1, {**changes, "data.parts.av.limit": limit, "data.parts.fm.limit": limit})
    ).federation


def check_scenario_1(federation: Federation) -> None:
    """P21: 27 clients, disjoint training parts, no recording and no picture in both training and test."""
    assert len(federation.cards) == 27
    assert list(federation.tasks) == ["digit", "clean_image", "clean_audio", "garment"]
    held = [(card.modalities, card.tasks) for card in federation.cards.values()]
    assert (
        held[::3]
        == held[1::3]
        == held[2::3]
        == [
            (("av_image",), ("digit",)),
            (("av_audio",), ("digit",)),
            (("av_audio", "av_image"), ("digit",)),
            (("av_audio",), ("clean_image", "digit")),
            (("av_image",), ("clean_audio",)),
            (("av_audio", "av_image"), ("clean_audio", "clean_image")),
            (("fm_image",), ("digit", "garment")),
            (("fm_image",), ("clean_audio", "garment")),
            (("fm_image",), ("clean_image", "digit", "garment")),
        ]
    )
    rows: list[int] = []
    tested: list[int] = []
    clips: dict[str, list[set[int]]] = {"train": [], "test": []}
    for client in federation.clients():
        domain = 0 if client.card.id < 18 else 1
        assert len(client.train)
        assert len(client.test)
        for part in (client.train, client.validation, client.test):
            assert (part.field("domain") == domain).all()
            assert all(mask.all() for mask in [*part.present.values(), *part.labelled.values()])
        rows += [*client.train.rows.tolist(), *client.validation.rows.tolist()]
        tested += client.test.rows.tolist()
        if domain == 0:
            clips["train"].append(
                {*client.train.field("av_clip").tolist(), *client.validation.field("av_clip").tolist()}
            )
            clips["test"].append(set(client.test.field("av_clip").tolist()))
    assert len(set(rows)) == len(rows), "nobody trains on another's row"
    assert len(set(tested)) == len(tested), "nobody is tested on another's row"
    assert sum(map(len, clips["train"])) == len(set().union(*clips["train"])), "recordings stay whole"
    assert not set().union(*clips["train"]) & set().union(*clips["test"])
    spoken = {
        split: {
            target.numpy().tobytes()
            for client in federation.clients()
            if "clean_audio" in client.card.tasks
            for target in client.samples(split).target("clean_audio")
        }
        for split in ("train", "test")
    }
    assert not spoken["train"] & spoken["test"], "no clean recording of either set is in training and test"


def test_scenario_1_on_files_of_the_same_layout(small_root: Path) -> None:
    check_scenario_1(scenario_1(small_root, None))


def test_scenario_1_on_the_real_files(published: Path) -> None:
    check_scenario_1(scenario_1(published, 2700))
