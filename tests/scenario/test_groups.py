"""Groups of clients: so many of one domain with these modalities and tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_tables import ALL, IID, dataset_of, federation_of, often, table_of

from polyfed.data.dataset import Dataset
from polyfed.data.schema import Task
from polyfed.data.several import joined
from polyfed.errors import UserError
from polyfed.experiment import config
from polyfed.experiment.world import as_before, build_world
from polyfed.registry import Chosen
from polyfed.scenario.build import build
from polyfed.scenario.federation import Client, Federation
from polyfed.scenario.groups import Group, multiplied
from polyfed.scenario.store import fingerprint

LABELS = [0, 1, 2] * 20
MARK = Task("mark", "classification", classes=4)


def one(clips: Sequence[int] | None = None, rows: int = 60, tests: int = 30) -> Dataset:
    """A part with ``image`` and ``audio``, ``digit``, ``age`` and ``picture``; ``clips`` are its units."""
    fields = None if clips is None else {"clip": clips}
    test = None if tests == 0 else table_of(LABELS[:tests], fields=None if clips is None else {"clip": [99] * tests})
    return dataset_of(table_of(LABELS[:rows], fields=fields), test, None if clips is None else "clip")


def other(tests: int = 30) -> Dataset:
    """A part with ``image`` alone, and a task that no other part has."""
    tables = [table_of(LABELS[:count], modalities=["image"]) for count in (48, tests or 30)]
    marked = [
        replace(table, targets={"digit": table.targets["digit"], "mark": table.targets["digit"]}) for table in tables
    ]
    dataset = dataset_of(marked[0], marked[1] if tests else None)
    return replace(dataset, tasks={"digit": dataset.tasks["digit"], "mark": MARK})


def two(**options: Any) -> Dataset:
    return joined({"x": one(**options), "y": other(options.get("tests", 30))})


def group(clients: int, domain: str | None, modalities: list[str], tasks: list[str]) -> Group:
    return Group(clients=clients, domain=domain, modalities=modalities, tasks=tasks)


GROUPS = [
    group(2, "x", ["image"], ["digit"]),
    group(3, "y", ["image"], ["mark", "digit"]),
    group(2, "x", ["audio", "x_image"], ["digit", "picture"]),
]


def cast(
    dataset: Dataset,
    groups: Sequence[Group] = GROUPS,
    *,
    partition: Chosen = IID,
    seed: int = 1,
    only_tasks: Sequence[str] | None = None,
    validation: float = 0.1,
) -> Federation:
    return build(
        dataset,
        clients=groups,
        partition=partition,
        modalities=ALL,
        tasks=ALL,
        validation=validation,
        test=0.2,
        only_tasks=only_tasks,
        seed=seed,
    )


def all_rows(client: Client) -> list[int]:
    return [*client.train.rows.tolist(), *client.validation.rows.tolist()]


def test_clients_are_numbered_group_by_group_and_hold_what_their_group_says() -> None:
    federation = cast(two())
    x, y, both = (
        (("x_image",), ("digit",)),
        (("y_image",), ("digit", "mark")),
        (("x_audio", "x_image"), ("digit", "picture")),
    )
    assert [(card.modalities, card.tasks) for card in federation.cards.values()] == [x, x, y, y, y, both, both]
    assert list(federation.tasks) == ["digit", "picture", "mark"], "those that a group names, generation too"
    assert federation.modalities["x_image"].family == "image"
    for client in federation.clients():
        domain = int(client.card.modalities == ("y_image",))
        for part in (client.train, client.validation, client.test):
            assert len(part)
            assert (part.field("domain") == domain).all()
            batch = part.batch()
            assert batch.everywhere == set(client.card.modalities), "no mask is left where nothing is missing"
            assert batch.whole == set(client.card.tasks)


def test_each_domain_is_dealt_equally_and_whole_among_its_clients() -> None:
    clients = list(cast(two()).clients())
    x = [row for k in (0, 1, 5, 6) for row in all_rows(clients[k])]
    y = [row for k in (2, 3, 4) for row in all_rows(clients[k])]
    assert sorted(x) == list(range(60))
    assert sorted(y) == list(range(60, 108))
    assert [len(all_rows(client)) for client in clients] == [15, 15, 16, 16, 16, 15, 15]
    tested = [row for client in clients for row in client.test.rows.tolist()]
    assert sorted(tested) == list(range(60)), "so is each domain's test table"


@often
@given(st.integers(0, 99), st.sampled_from([IID, Chosen("dirichlet", {"alpha": 0.3}), Chosen("shards", {})]))
def test_parts_are_disjoint_and_of_the_right_domain(seed: int, partition: Chosen) -> None:
    clients = list(cast(two(), partition=partition, seed=seed).clients())
    for split in ("train", "test"):
        rows = [row for client in clients for row in client.samples(split).rows.tolist()]
        assert len(set(rows)) == len(rows)
        for client in clients:
            assert (client.samples(split).field("domain") == int(client.card.modalities == ("y_image",))).all()


def test_each_test_table_is_shared_among_its_own_domain() -> None:
    """Domain x has 60 rows for four clients and 30 to test on, y has 48 for three and 12 to test on."""
    clients = list(cast(joined({"x": one(), "y": other(12)})).clients())
    assert sorted(len(clients[k].test) for k in (0, 1, 5, 6)) == [7, 7, 8, 8]
    assert [len(clients[k].test) for k in (2, 3, 4)] == [4, 4, 4]


def test_label_shift_goes_into_the_test_part() -> None:
    groups = [group(2, "x", ["image"], ["digit"]), group(2, "y", ["image"], ["mark"])]
    for client in cast(two(), groups, partition=Chosen("dirichlet", {"alpha": 0.05}), validation=0.0).clients():
        (task,) = client.card.tasks
        trained = set(client.train.target(task).tolist())
        assert set(client.test.target(task).tolist()) <= trained


def test_labels_of_a_domain_are_those_of_its_own_first_task() -> None:
    """The first task in use is ``digit`` of x; a domain y without it is skewed by its own task."""
    y = other()
    alone = joined({"x": one(), "y": replace(y, tasks={"mark": MARK})})
    groups = [group(2, "x", ["image"], ["digit"]), group(3, "y", ["image"], ["mark"])]
    clients = list(cast(alone, groups, partition=Chosen("shards", {"shards_per_client": 1}), validation=0.0).clients())
    assert [len(set(client.train.target("mark").tolist())) for client in clients[2:]] == [1, 1, 1]


def test_units_stay_whole() -> None:
    clips = [row // 3 for row in range(60)]
    for seed in range(5):
        clients = list(cast(two(clips=clips), seed=seed).clients())
        held = [
            set(client.samples(split).field("x_clip").tolist())
            for client in clients
            for split in ("train", "validation")
        ]
        held = [clips - {-1} for clips in held]
        assert sum(map(len, held)) == 20 == len(set().union(*held))


def test_without_a_test_split_each_client_is_tested_on_samples_of_its_own() -> None:
    clients = list(cast(two(tests=0)).clients())
    rows = [row for client in clients for row in [*all_rows(client), *client.test.rows.tolist()]]
    assert sorted(rows) == list(range(108))
    assert all(len(client.test) for client in clients)


def test_the_same_seed_gives_the_same_clients_and_another_others() -> None:
    assert fingerprint(cast(two())) == fingerprint(cast(two()))
    assert fingerprint(cast(two())) != fingerprint(cast(two(), seed=2))


def test_domains_of_equal_size_are_not_dealt_alike() -> None:
    dataset = joined({"x": one(), "y": one()})
    clients = list(cast(dataset, [group(2, name, ["image"], ["digit"]) for name in "xy"], validation=0.0).clients())
    assert clients[0].train.rows.tolist() != [row - 60 for row in clients[2].train.rows.tolist()]


def test_on_a_dataset_without_domains_groups_are_lists_of_modalities_and_tasks() -> None:
    plain = one(clips=[row // 2 for row in range(60)])
    groups = [group(2, None, ["image"], ["digit"]), group(1, None, ["image", "audio"], ["age", "digit"])]
    listed = {
        "modalities": Chosen("listed", {"sets": [["image"], ["image"], ["audio", "image"]]}),
        "tasks": Chosen("listed", {"sets": [["digit"], ["digit"], ["age", "digit"]]}),
    }
    skewed = Chosen("dirichlet", {"alpha": 0.5, "minimum": 4})
    for partition in (IID, skewed):
        grouped = cast(plain, groups, partition=partition)
        assert fingerprint(grouped) == fingerprint(
            federation_of(plain, 3, partition=partition, only_tasks=["digit", "age"], **listed)
        )


def test_a_field_of_the_data_itself_can_tell_the_domains() -> None:
    places = table_of(LABELS, fields={"domain": [0, 1] * 30})
    dataset = replace(dataset_of(places), field_labels={"domain": ("north", "south")})
    groups = [group(1, "south", ["audio"], ["digit"]), group(2, "north", ["image"], ["digit"])]
    for client in cast(dataset, groups).clients():
        assert (client.train.field("domain") == int(client.card.id == 0)).all()


def test_a_domain_nobody_is_in_and_a_modality_nobody_holds_stay_out() -> None:
    federation = cast(two(), [group(2, "y", ["image"], ["mark"])])
    assert list(federation.modalities) == ["y_image"]
    assert list(federation.tasks) == ["mark"]
    assert sum(len(all_rows(client)) for client in federation.clients()) == 48


def test_pooled_groups_keep_who_held_what() -> None:
    pooled = cast(two()).pooled().client(0)
    assert len(pooled.train) == sum(len(client.train) for client in cast(two()).clients())
    held = pooled.train.present
    assert not (held["y_image"] & (held["x_image"] | held["x_audio"])).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"domain": "z"}, r"scenario\.groups\.1: unknown domain 'z'\. Choices: x, y"),
        ({"domain": None}, r"scenario\.groups\.1: say in which domain the clients are\. Choices: x, y"),
        (
            {"modalities": ["audio"]},
            r"scenario\.groups\.1, domain 'y': unknown modality 'audio'\. Choices: image, y_image",
        ),
        ({"modalities": ["x_image"]}, r"scenario\.groups\.1, domain 'y': unknown modality 'x_image'; did you mean"),
        ({"tasks": ["marks"]}, r"scenario\.groups\.1: unknown task 'marks'; did you mean 'mark'"),
        ({"tasks": ["picture"]}, r"scenario\.groups\.1, domain 'y': unknown task 'picture'\. Choices: digit, mark"),
        ({"clients": 50}, r"domain 'y': partition iid: 50 clients, but the pool has 48 samples"),
    ],
)
def test_a_group_that_cannot_be_is_refused_by_number(changes: dict[str, Any], message: str) -> None:
    groups = [GROUPS[0], Group(**{**GROUPS[1].model_dump(), **changes}), GROUPS[2]]
    with pytest.raises(UserError, match=message):
        cast(two(), groups)


def test_a_domain_of_a_dataset_without_domains_is_refused() -> None:
    with pytest.raises(UserError, match=r"scenario\.groups\.0: the dataset small has no domains; leave out domain: x"):
        cast(one(), [group(1, "x", ["image"], ["digit"])])


def test_a_task_that_is_not_in_use_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"scenario\.groups\.1, domain 'y': the task 'mark' is not in use; add it to data"
    ):
        cast(two(), only_tasks=["digit", "picture"])
    with pytest.raises(UserError, match="no client holds the task 'age'"):
        cast(two(), only_tasks=["digit", "picture", "mark", "age"])


def test_a_partition_that_leaves_a_client_empty_names_it_by_its_own_number() -> None:
    partition = Chosen("dirichlet", {"minimum": 0, "quantity_alpha": 0.001, "alpha": None})
    with pytest.raises(UserError, match=r"client \d gets no samples from the partition 'dirichlet' \(\d of 7 clients"):
        cast(two(), partition=partition)


# ------------------------------------------------------------------------------------------------ in an experiment

EXPERIMENT: dict[str, Any] = {
    "seed": 3,
    "rounds": 2,
    "data": {
        "name": "several",
        "parts": {"a": {"name": "avdigits"}, "b": {"name": "avdigits", "seed": 1}},
        "rename": {"b": {"parity": "b_parity"}},
    },
    "scenario": {
        "groups": [
            {"clients": 1, "domain": "a", "modalities": ["image"], "tasks": ["digit"]},
            {"clients": 2, "domain": "b", "modalities": ["image", "audio"], "tasks": ["digit", "b_parity"]},
            {"clients": 1, "domain": "a", "modalities": ["audio"], "tasks": ["parity"]},
        ],
        "partition": {"name": "dirichlet", "alpha": 1.0, "minimum": 20},
    },
    "model": {
        "width": 8,
        "encoders": {name: {"name": "mlp", "hidden": [16]} for name in ("a_image", "a_audio", "b_image", "b_audio")},
    },
    "method": {"name": "multi-fedavg"},
    "train": {"batch_size": 64},
    "engine": {"device": "cpu"},
}


def test_a_run_over_several_datasets_is_the_same_for_any_number_of_workers() -> None:
    digests = set()
    for workers in (1, 2):
        world = build_world(config.parse(config.changed(EXPERIMENT, {"engine.workers": workers})))
        outcome = world.loop().run()
        digests.add((outcome.digest, outcome.personal_digest))
        assert {record["client"] for record in outcome.progress.latest} == {0, 1, 2, 3}
    assert len(digests) == 1
    assert world.federation.cards[1].components == (
        "encoder.b_audio",
        "encoder.b_image",
        "fusion.b_audio",
        "fusion.b_image",
        "head.b_parity",
        "head.digit",
    )


def test_stacked_and_single_training_agree() -> None:
    values = []
    for batching in ("on", "off"):
        world = build_world(config.parse(config.changed(EXPERIMENT, {"engine.batching": batching, "rounds": 1})))
        state = world.loop().run().state
        values.append(world.method.deploy(state, world.federation.cards[1]))
    for name, value in values[0].items():
        torch.testing.assert_close(value, values[1][name], rtol=1e-4, atol=1e-6)


def test_groups_survive_being_resolved_and_read_again() -> None:
    experiment = config.parse(EXPERIMENT)
    assert experiment.scenario.clients is None
    assert experiment.scenario.groups == tuple(Group(**group) for group in EXPERIMENT["scenario"]["groups"])
    assert config.parse(experiment.resolved).resolved == experiment.resolved
    assert experiment.with_({"scenario.groups": None, "scenario.clients": 5}).scenario.clients == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scenario.clients": 4}, "scenario: clients and groups are both given, but groups say what clients there are"),
        ({"scenario.tasks": {"name": "rates", "rates": 0.5}}, "scenario: tasks and groups are both given"),
        (
            {"scenario.modalities": {"name": "all", "only": ["a_image"]}},
            "scenario: modalities and groups are both given",
        ),
        ({"scenario.groups": []}, r"scenario\.groups: \[\] is not allowed"),
        ({"scenario.groups": [{"clients": 0}]}, r"scenario\.groups\.0\.clients: 0 is not allowed"),
        (
            {"scenario.groups": [{"client": 1}]},
            r"scenario\.groups\.0\.client: unknown key 'client'; did you mean 'clients'",
        ),
        ({"select": {"name": "random", "clients": 5}}, "select.clients is 5, but the clients of scenario.groups are 4"),
    ],
)
def test_wrong_groups_are_refused_when_the_experiment_is_loaded(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.parse(config.changed(EXPERIMENT, changes))


# ------------------------------------------------------------------------------------------------ multiplied by rho


def sized(*sizes: tuple[int, str | None]) -> tuple[Group, ...]:
    return tuple(Group(clients=count, times=times, modalities=["image"], tasks=["digit"]) for count, times in sizes)


def counts(groups: tuple[Group, ...] | None) -> list[int]:
    assert groups is not None
    return [group.clients for group in groups]


@pytest.mark.parametrize(
    ("rho", "expected"),
    [(1, [3, 0, 4]), (0.5, [2, 5, 4]), (0, [0, 10, 4]), (0.95, [3, 1, 4]), (0.85, [3, 2, 4]), (0.16, [0, 8, 4])],
)
def test_groups_are_multiplied_and_halves_are_rounded_up(rho: float, expected: list[int]) -> None:
    assert counts(multiplied(sized((3, "rho"), (10, "1-rho"), (4, None)), rho)) == expected


def test_without_rho_groups_stay_as_they_are() -> None:
    groups = sized((3, None), (1, None))
    assert multiplied(groups, None) is groups
    assert multiplied(None, None) is None


@pytest.mark.parametrize(
    ("groups", "rho", "message"),
    [
        (sized((3, None)), 0.5, r"scenario\.rho is 0\.5, but no group of scenario\.groups is multiplied by it; write"),
        (None, 0, r"scenario\.rho is 0, but no group"),
        (
            sized((3, None), (2, "1-rho")),
            None,
            r"scenario\.groups\.1: times is '1-rho', but scenario\.rho is not given",
        ),
        (sized((3, "rho")), 0.1, r"no client is left at the scenario\.rho 0\.1"),
    ],
)
def test_rho_and_times_need_each_other(groups: tuple[Group, ...] | None, rho: float | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        multiplied(groups, rho)


def test_a_group_without_clients_plays_no_part() -> None:
    """Its domain and task are not used; the others keep their numbers in messages."""
    groups = [
        Group(clients=2, times="rho", domain="y", modalities=["image"], tasks=["mark"]),
        Group(clients=2, times="1-rho", domain="x", modalities=["image"], tasks=["digit"]),
    ]
    left = multiplied(tuple(groups), 0)
    assert left is not None
    federation = cast(two(), left)
    assert (len(federation.cards), list(federation.tasks), list(federation.modalities)) == (2, ["digit"], ["x_image"])
    with pytest.raises(UserError, match=r"scenario\.groups\.1, domain 'x': unknown modality 'sound'"):
        cast(two(), [left[0], left[1].model_copy(update={"modalities": ["sound"]})])


def test_rho_in_an_experiment_is_kept_as_it_was_written() -> None:
    groups = [{**group, "times": "rho"} for group in EXPERIMENT["scenario"]["groups"]]
    changes = {"scenario.groups": groups, "scenario.rho": 0.5, "engine.workers": 1}
    experiment = config.parse(config.changed(EXPERIMENT, changes))
    assert counts(experiment.scenario.groups) == [1, 1, 1]
    assert config.parse(experiment.resolved).resolved == experiment.resolved
    assert counts(experiment.with_({"scenario.rho": 1}).scenario.groups) == [1, 2, 1]
    for rho in (1.5, -0.1):
        with pytest.raises(UserError, match=rf"scenario\.rho: {rho} is not allowed"):
            experiment.with_({"scenario.rho": rho})
    with pytest.raises(UserError, match=r"experiment: scenario\.groups\.0: times is 'rho', but scenario\.rho is not"):
        experiment.with_({"scenario.rho": None})


def test_a_checkpoint_older_than_rho_is_still_that_of_its_run() -> None:
    scenario = config.parse(EXPERIMENT).resolved["scenario"]
    assert (scenario["rho"], scenario["groups"][0]["times"]) == (None, None)
    before = as_before(scenario)
    assert "rho" not in before
    assert [set(group) for group in before["groups"]] == [{"clients", "domain", "modalities", "tasks"}] * 3
    assert before.keys() == scenario.keys() - {"rho"}
    used = {**scenario, "rho": 0.5}
    assert as_before(used) == used


# ------------------------------------------------------------------------------------------------ natural in one domain


def test_a_field_of_one_domain_alone_deals_that_domain_and_the_others_are_dealt_equally() -> None:
    clips = [row // 20 for row in range(60)]
    plain = replace(one(clips=clips, tests=0), unit=None)
    federation = cast(
        joined({"x": plain, "y": other(0)}),
        partition=Chosen("natural", {"field": "x_clip"}),
        groups=[group(3, "x", ["image"], ["digit"]), group(4, "y", ["image"], ["mark"])],
    )
    clients = list(federation.clients())
    for clip, client in enumerate(clients[:3]):
        assert set(client.train.field("x_clip").tolist()) == {clip}
        assert client.card.name == f"x_clip {clip}"
    assert [client.card.name for client in clients[3:]] == [f"client {k}" for k in range(3, 7)]
    assert [len(all_rows(client)) + len(client.test) for client in clients[3:]] == [12] * 4


def test_a_family_counts_in_the_fingerprint_only_where_it_is_not_the_own_name() -> None:
    federation = federation_of(one())
    image = federation.modalities["image"]
    renamed = replace(federation, modalities={**federation.modalities, "image": replace(image, family="picture")})
    assert fingerprint(renamed) != fingerprint(federation)
    assert fingerprint(
        replace(federation, modalities={**federation.modalities, "image": replace(image)})
    ) == fingerprint(federation)
