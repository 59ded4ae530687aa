"""Task skews: rates, groups and lists of tasks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tables import often

from polyfed.errors import UserError
from polyfed.scenario.catalog import TASK_SETS

NAMES = ["digit", "age"]


def test_all_gives_everybody_every_task():
    assert TASK_SETS.build("all", {}, NAMES, 2, 1).sets == [("age", "digit")] * 2


@often
@given(st.integers(1, 10), st.integers(0, 20), st.sampled_from([0.02, 0.5, 1.0]))
def test_rates_leave_no_client_and_no_task_alone(clients: int, seed: int, rate: float):
    sets = TASK_SETS.build("rates", {"rates": {"digit": rate, "age": rate}}, NAMES, clients, seed).sets
    assert all(sets)
    assert {name for held in sets for name in held} == set(NAMES)
    assert sets == TASK_SETS.build("rates", {"rates": rate}, NAMES, clients, seed).sets


def test_groups_take_the_clients_in_order():
    groups = [{"clients": 1, "tasks": ["age"]}, {"clients": 2, "tasks": ["digit", "age"]}]
    assert TASK_SETS.build("groups", {"groups": groups}, NAMES, 3, 1).sets == [("age",), *[("age", "digit")] * 2]


def test_a_list_names_each_client():
    assert TASK_SETS.build("listed", {"sets": [["age"], ["digit"]]}, NAMES, 2, 1).sets == [("age",), ("digit",)]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rates", {"rates": {"ages": 0.5}}, "task rates: unknown task 'ages'; did you mean 'age'"),
        ("groups", {"groups": [{"clients": 1, "tasks": ["age"]}]}, "count 1 clients together, but the scenario has 2"),
        ("groups", {"groups": [{"clients": 2, "tasks": ["age"]}]}, "no client holds the task 'digit'"),
        ("listed", {"sets": [["age"], []]}, "client 1: name at least one task. Choices: digit, age"),
        ("listed", {"sets": [["age"], ["sex"]]}, "client 1: unknown task 'sex'"),
    ],
)
def test_impossible_task_skews_are_refused(name: str, options: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        TASK_SETS.build(name, options, NAMES, 2, 1)
