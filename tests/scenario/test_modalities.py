"""Modality skews: cases A, B and C, rates, groups and lists."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from small_tables import often

from polyfed.errors import UserError
from polyfed.scenario.catalog import MODALITY_SETS
from polyfed.scenario.holdings import Holdings, sets_of, table_of
from polyfed.scenario.modalities import SampleSkew, repaired

NAMES = ["video", "audio", "image"]  # a dataset's order, not sorted


def built(
    name: str, options: dict[str, object], clients: int = 20, seed: int = 1, names: list[str] = NAMES
) -> Holdings:
    return MODALITY_SETS.build(name, options, names, clients, seed)


def holders(holdings: Holdings) -> dict[str, int]:
    return {name: sum(name in held for held in holdings.sets) for name in NAMES}


def test_case_a_gives_everybody_everything():
    holdings = built("all", {}, clients=4)
    assert holdings.sets == [("audio", "image", "video")] * 4
    assert (holdings.explicit, holdings.skew) == (False, None)


@often
@given(st.integers(1, 2), st.integers(3, 60), st.integers(0, 5))
def test_n_of_m_gives_n_and_covers_every_modality(n: int, clients: int, seed: int):
    holdings = built("n-of-m", {"n": n}, clients, seed)
    assert {len(held) for held in holdings.sets} == {n}
    assert min(holders(holdings).values()) >= max(1, int(np.ceil(0.05 * clients)))
    assert holdings.sets == built("n-of-m", {"n": n}, clients, seed).sets


def test_mixed_has_clients_with_one_two_and_three_modalities():
    holdings = built("mixed", {})
    assert {len(held) for held in holdings.sets} == {1, 2, 3}
    assert holdings.sets != built("mixed", {}, seed=2).sets


def test_mixed_follows_the_size_probabilities():
    holdings = built("mixed", {"size_probabilities": [0, 0.5, 0.5]}, clients=200)
    sizes = [len(held) for held in holdings.sets]
    assert sizes.count(1) == 0
    assert 60 < sizes.count(2) < 140


@pytest.mark.parametrize("holders_wanted", [1, 5, 8])
def test_every_modality_has_min_holders(holders_wanted: int):
    holdings = built("mixed", {"min_holders": holders_wanted, "size_probabilities": [0.8, 0.2, 0]}, clients=24)
    assert min(holders(holdings).values()) >= holders_wanted


def test_too_few_holders_are_repaired_when_drawing_again_does_not_help():
    """Nine clients with one modality of three: exactly three holders each is a rare draw, the repair makes it."""
    holdings = built("n-of-m", {"n": 1, "min_holders": 21}, clients=63)
    assert holders(holdings) == {"video": 21, "audio": 21, "image": 21}


def test_repair_by_hand():
    held = table_of([("audio",), ("audio",), ("audio", "image")], NAMES)
    assert sets_of(repaired(held, 1, NAMES), NAMES) == [("video",), ("audio",), ("audio", "image")]


@often
@given(st.integers(0, 30), st.integers(1, 50), st.sampled_from([0.05, 0.5, 5.0]), st.sampled_from([0.1, 0.6]))
def test_case_c_leaves_every_sample_a_modality(client: int, samples: int, beta: float, minimum: float):
    names = ("audio", "image", "video")
    masks = SampleSkew(1, beta, minimum).masks(client, names, samples)
    kept = np.stack([masks[name] for name in names])
    assert kept.any(axis=0).all()
    assert kept.sum(axis=1).max() == samples
    assert (kept.sum(axis=1) >= np.ceil(minimum * samples)).all()


def test_case_c_keeps_the_sets_of_its_base_and_differs_among_modalities():
    skewed = built("sample-skew", {})
    assert skewed.sets == built("mixed", {}).sets
    assert skewed.skew is not None
    uneven = 0
    for client, held in enumerate(skewed.sets):
        counts = {int(mask.sum()) for mask in skewed.skew.masks(client, held, 100).values()}
        uneven += len(counts) > 1
        assert len(held) > 1 or counts == {100}
    assert uneven > sum(len(held) > 1 for held in skewed.sets) / 2


def test_case_c_does_not_depend_on_the_order_of_asking():
    skew = SampleSkew(3, 0.5, 0.1)
    forward = [skew.masks(k, ("a", "b"), 9) for k in range(4)]
    backward = [skew.masks(k, ("a", "b"), 9) for k in reversed(range(4))][::-1]
    for one, other in zip(forward, backward, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_large_beta_gives_the_base_case():
    masks = SampleSkew(1, 1e9, 0.1).masks(0, ("a", "b"), 100)
    assert all(mask.sum() >= 99 for mask in masks.values())


@pytest.mark.parametrize(("base", "extra", "size"), [("all", {}, 3), ("n-of-m", {"n": 2}, 2)])
def test_case_c_on_other_bases(base: str, extra: dict[str, object], size: int):
    assert {len(held) for held in built("sample-skew", {"base": base, **extra}).sets} == {size}


@often
@given(st.integers(1, 12), st.integers(0, 20), st.sampled_from([0.01, 0.5, 1.0]))
def test_rates_leave_no_client_and_no_modality_alone(clients: int, seed: int, rate: float):
    holdings = built("rates", {"rates": rate}, clients, seed)
    assert all(holdings.sets)
    assert min(holders(holdings).values()) >= 1
    if rate == 1:
        assert holdings.sets == built("all", {}, clients).sets


def test_rates_by_name_come_true():
    held = holders(built("rates", {"rates": {"audio": 0.2, "image": 0.7}}, clients=400))
    assert held["video"] == 400
    assert 40 < held["audio"] < 120
    assert 240 < held["image"] < 320


def test_groups_take_the_clients_in_order():
    groups = [
        {"clients": 2, "modalities": ["image"]},
        {"clients": 1, "modalities": ["audio", "video"]},
        {"clients": 1, "modalities": ["image", "audio"]},
    ]
    holdings = built("groups", {"groups": groups}, clients=4)
    assert holdings.sets == [("image",), ("image",), ("audio", "video"), ("audio", "image")]
    assert holdings.explicit


def test_a_list_names_each_client():
    assert built("listed", {"sets": [["video", "audio"], ["image"]]}, clients=2).sets == [
        ("audio", "video"),
        ("image",),
    ]


def test_only_restricts_the_modalities():
    assert built("all", {"only": ["image"]}, clients=2).sets == [("image",)] * 2
    assert built("listed", {"sets": [["image"]], "only": ["image"]}, clients=1).sets == [("image",)]


@pytest.mark.parametrize(
    ("name", "options", "clients", "message"),
    [
        ("n-of-m", {"n": 3}, 20, "n is 3, but there are 3 modalities"),
        ("n-of-m", {"n": 1}, 2, "2 clients with at most 1 modalities each cannot hold the 3 modalities"),
        ("mixed", {"size_probabilities": [1, 1]}, 20, "must be 3 numbers"),
        ("mixed", {"size_probabilities": [0, 0, 0]}, 20, "not all zero"),
        ("mixed", {"min_holders": 21}, 20, "min_holders is 21, but there are 20 clients"),
        ("mixed", {"min_holders": 20, "size_probabilities": [0.999, 0, 0.001]}, 20, "drawn sets are too small"),
        ("sample-skew", {"base": "n-of-m"}, 20, "n goes with the base 'n-of-m'"),
        ("sample-skew", {"n": 2}, 20, "n goes with the base 'n-of-m'"),
        ("sample-skew", {"base": "all", "size_probabilities": [1, 1, 1]}, 20, "goes with the base 'mixed'"),
        ("rates", {"rates": {"smell": 0.5}}, 20, "unknown modality 'smell'. Choices: audio, image, video"),
        ("groups", {"groups": [{"clients": 3, "modalities": ["image"]}]}, 4, "count 3 clients together.* has 4"),
        ("groups", {"groups": [{"clients": 4, "modalities": ["imag"]}]}, 4, "group 0: unknown modality 'imag'"),
        ("groups", {"groups": [{"clients": 4, "modalities": []}]}, 4, "group 0: name at least one modality"),
        (
            "groups",
            {"groups": [{"clients": 4, "modalities": ["image"]}]},
            4,
            "no client holds the modality 'video', 'audio'",
        ),
        ("listed", {"sets": [["image"]]}, 2, "1 sets are listed, but the scenario has 2 clients"),
        ("listed", {"sets": [["image"], ["sound"]]}, 2, "client 1: unknown modality 'sound'"),
        ("all", {"only": ["sound"]}, 2, "option only: unknown modality 'sound'"),
    ],
)
def test_impossible_modality_skews_are_refused(name: str, options: dict[str, object], clients: int, message: str):
    with pytest.raises(UserError, match=message):
        built(name, options, clients)


def test_n_of_one_modality_is_refused():
    with pytest.raises(UserError, match=r"n is 1, but there are 1 modalities \(image\); use 'all'"):
        built("n-of-m", {"n": 1}, names=["image"])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rates", {"rates": 0}),
        ("rates", {"rates": {"audio": 1.5}}),
        ("sample-skew", {"minimum_rate": 0}),
        ("groups", {"groups": [{"clients": 1, "modalities": ["image"], "tasks": ["digit"]}]}),
    ],
)
def test_wrong_options_are_refused_when_read(name: str, options: dict[str, object]):
    with pytest.raises(ValidationError):
        MODALITY_SETS.options(name).model_validate(options)
