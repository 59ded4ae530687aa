"""The rule of routing by affinity: types, cosines, who leaves and who returns. Figures are worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from polyfed.errors import UserError
from polyfed.experiment.world import build_world
from polyfed.method.affinity import MEMBER, Affinity, Standing, cosines, judged, types_of
from tests.method.test_disentafl import experiment_of
from tests.worlds import tiny

RULE = Affinity()


def about(mean: float, below: int, away: int | None = None) -> Standing:
    """A standing whose mean need only be near."""
    near: Any = pytest.approx(mean)
    return Standing(near, below, away)


def types_by(grid: str) -> dict[str, tuple[str, ...]]:
    architecture = build_world(experiment_of(grid, method__disentanglement="none")).architecture
    return types_of(architecture.components(("audio", "image"), ("digit",)))


def test_a_type_is_an_expert_and_what_only_its_owners_have() -> None:
    """No type holds a stem, a head, a gate, the projection or anything general."""
    assert types_by("pairs") == {
        "expert.audio.digit": ("expert.audio.digit",),
        "expert.audio.general": ("expert.audio.general", "self_attention.audio"),
        "expert.general.digit": ("expert.general.digit", "cross_attention.digit"),
        "expert.image.digit": ("expert.image.digit",),
        "expert.image.general": ("expert.image.general", "self_attention.image"),
    }
    assert types_by("axes") == {
        "expert.input.audio": ("expert.input.audio", "self_attention.audio"),
        "expert.input.image": ("expert.input.image", "self_attention.image"),
        "expert.output.digit": ("expert.output.digit", "cross_attention.digit"),
    }
    assert types_by("module") == {
        name: (name,) for name in ("input_stack.audio", "input_stack.image", "output_stack.digit")
    }


def test_a_model_without_types_has_no_affinity() -> None:
    wanted = tiny(method={"name": "disentafl", "disentanglement": "none", "router": "affinity"})
    with pytest.raises(UserError, match=r"method.router: 'affinity' needs .* set model.name to 'experts'"):
        build_world(wanted)


@pytest.mark.parametrize(
    "option", [{"threshold": -2}, {"threshold": 2}, {"patience": 0}, {"decay": 1}, {"retest_every": 0}, {"tau": 0}]
)
def test_wrong_options_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(option))):
        build_world(experiment_of(method={"name": "disentafl", "router": "affinity", "affinity": option}))


# ------------------------------------------------------------------------------------------------ cosines


def test_an_update_is_compared_with_the_weighted_mean_of_the_others() -> None:
    """Client 4 is none of the others. Client 1's others cancel out, and client 3 has not moved: no cosines."""
    sent = {"a": torch.tensor([5.0]), "b": torch.tensor([[-2.0]])}
    moves = {0: (1.0, 0.0), 1: (0.0, 1.0), 2: (-1.0, 0.0), 3: (0.0, 0.0), 4: (3.0, 4.0)}
    after = {k: {"a": sent["a"] + x, "b": sent["b"] + y, "other": sent["a"]} for k, (x, y) in moves.items()}
    found = cosines(after, {0: 1.0, 1: 2.0, 2: 1.0, 3: 1.0}, sent)
    assert found == pytest.approx({0: -1 / math.sqrt(5), 2: -1 / math.sqrt(5), 4: 0.8})


def test_nobody_is_compared_with_itself() -> None:
    assert cosines({7: {"a": torch.ones(3)}}, {7: 1.0}, {"a": torch.zeros(3)}) == {}


# ------------------------------------------------------------------------------------------------ standings


def test_who_opposes_the_others_leaves_after_five_participations() -> None:
    """Means -0.1, -0.19, -0.271, -0.3439, -0.40951."""
    standings = dict.fromkeys((0, 1, 2), MEMBER)
    found = {0: -1.0, 1: 0.5, 2: 0.5}
    for number in range(11, 15):
        standings = judged(RULE, standings, found, number)
        assert standings[0].away is None
    after = judged(RULE, standings, found, 15)
    assert standings[0].mean == pytest.approx(-0.3439)
    assert after[0] == about(-0.40951, 5, 15)
    assert [after[k].away for k in (1, 2)] == [None, None]
    assert after[1].mean == pytest.approx(0.5 * (1 - 0.9**5))


def test_one_participation_above_the_threshold_begins_the_count_anew() -> None:
    low = Standing(-0.06, 4)
    assert RULE.renewed(low, 1.0) == about(0.046, 0)
    assert RULE.renewed(low, 0.0) == about(-0.054, 5)
    assert RULE.renewed(Standing(-0.06, 1), 0.4) == about(-0.014, 0)


def test_a_slight_disagreement_is_borne() -> None:
    standing = MEMBER
    for _ in range(200):
        standing = RULE.renewed(standing, -0.04)
    assert standing == about(-0.04, 0)


def test_of_two_participants_none_is_judged() -> None:
    before = {0: Standing(-0.3, 4), 1: MEMBER}
    assert judged(RULE, before, {0: -1.0, 1: -1.0}, 9) == before
    assert judged(RULE, {**before, 2: MEMBER}, {0: -1.0, 1: -1.0}, 9)[0].away == 9


def test_a_client_that_is_tried_is_no_participant() -> None:
    before = {0: Standing(-0.3, 4), 1: MEMBER, 2: Standing(-0.5, 5, away=3)}
    after = judged(RULE, before, {0: -1.0, 1: -1.0, 2: -0.1}, 30)
    assert after == {**before, 2: replace(before[2], away=30)}


def test_one_client_leaves_at_a_time_the_one_with_the_lowest_mean() -> None:
    """Of equal ones the first. The other, whose count goes on, is next compared without it."""
    before = {0: MEMBER, 1: Standing(-0.2, 6), 2: Standing(-0.3, 4), 3: Standing(-0.3, 4)}
    after = judged(RULE, before, dict.fromkeys(before, -1.0), 8)
    assert [client for client, standing in after.items() if standing.away is not None] == [2]
    assert after[1].below == 7
    again = judged(RULE, {k: after[k] for k in (0, 1, 3)}, {0: 0.9, 1: 0.9, 3: -0.9}, 9)
    assert [client for client, standing in again.items() if standing.away is not None] == [3]
    assert again[1].below == 8 and again[1].mean == pytest.approx(0.9 * -0.28 + 0.09)


@pytest.mark.parametrize(("cosine", "returns"), [(0.0, True), (0.7, True), (-1e-9, False), (None, False)])
def test_who_agrees_again_returns_as_if_new(cosine: float | None, returns: bool) -> None:
    before = {0: MEMBER, 1: Standing(-0.4, 5, away=10)}
    found = {} if cosine is None else {1: cosine}
    after = judged(RULE, before, found, 30)
    assert after[1] == (MEMBER if returns else Standing(-0.4, 5, away=30))


def test_trials_come_every_twenty_rounds_from_the_leave() -> None:
    left = Standing(-0.4, 5, away=10)
    assert [number for number in range(11, 60) if RULE.due(left, number)][:2] == [30, 31]
    assert not RULE.due(replace(left, away=30), 49)
    assert not RULE.due(MEMBER, 100)
