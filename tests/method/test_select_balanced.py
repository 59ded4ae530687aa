"""BMSFed's selection among clients whose updates and ratios are known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch

from polyfed.engine.drive import drive
from polyfed.errors import UserError
from polyfed.experiment.world import build_world
from polyfed.method.balance import BALANCE, RATIOS, behind
from polyfed.method.companion import Asked
from polyfed.method.facility import enough, stochastic_greedy
from polyfed.method.protocol import Clock, Cohort, Groups, Note, Reply
from polyfed.method.select import Selector, whole_cohort
from polyfed.method.select_balanced import BEHIND, MULTI, weak_modality
from polyfed.method.select_diverse import drawing
from polyfed.method.selections import SELECTORS
from polyfed.method.updates import SQUARES, distances
from polyfed.scenario.federation import Card, Roster
from tests.method.portraits import found_with, ratio_in
from tests.worlds import tiny

COUNT = 12
BOTH = ("audio", "image")
ROSTER = {k: Card(k, f"client {k}", BOTH, ("digit",), 10 + k) for k in range(COUNT)}
MIXED = {**ROSTER, 3: Card(3, "client 3", ("image",), ("digit",), 9), 4: Card(4, "client 4", ("audio",), ("digit",), 9)}
SENT = {
    "encoder.audio.weight": torch.ones(3, 4),
    "encoder.image.weight": torch.ones(5),
    "head.digit.bias": torch.zeros(2),
}


def built(**options: object) -> Selector:
    return SELECTORS.build("bms", {"clients": 4, **options})


def reply(card: Card, ratio: float = 1.0, seed: int = 0, trained: Sequence[str] | None = None) -> Reply:
    generator = torch.Generator().manual_seed(1000 * seed + card.id)
    moved = {name: value + torch.randn(value.shape, generator=generator) for name, value in SENT.items()}
    names = card.modalities if trained is None else trained
    parameters = {n: v for n, v in moved.items() if n.startswith("head.") or n.split(".")[1] in names}
    balance = {BALANCE: {RATIOS: torch.tensor([ratio])}} if len(card.modalities) > 1 else {}
    return Reply(card.examples, {"parameters": parameters, **balance})


def started(
    selector: Selector, roster: Roster, ratios: Mapping[int, float], *, lost: Sequence[int] = (), seed: int = 0
) -> Groups:
    asked = Asked(SENT, whole_cohort(roster, roster), roster, starting=True)
    reducer = selector.watch(selector.begin(SENT, roster), asked)
    for client, card in roster.items():
        if client not in lost:
            reducer.add(client, reply(card, ratios.get(client, 1.0), seed))
    return reducer.finish()


def choose(
    selector: Selector, memory: Groups, roster: Roster, number: int = 1, seed: int = 0
) -> tuple[dict[int, frozenset[str]], Note]:
    said: list[Note] = []
    conversation = selector.choose(lambda cohort: {}, memory, roster, Clock(seed, number, 9))
    cohort, after = drive(conversation, lambda wanted: None, said.append)
    assert after is memory
    (only,) = said
    return dict(cohort), only


def everyones(ratio: float) -> dict[int, float]:
    return dict.fromkeys(range(COUNT), ratio)


def alone_of(cohort: Cohort, roster: Roster) -> dict[int, frozenset[str]]:
    return {k: used for k, used in cohort.items() if len(used) < len(roster[k].modalities)}


# ------------------------------------------------------------------------------------------------ choosing


@pytest.mark.parametrize(("ratio", "weak"), [(2.0, "image"), (0.5, "audio")])
def test_the_modality_behind_is_trained_alone(ratio: float, weak: str) -> None:
    """The ratio is that of audio to image: above 1, audio is ahead."""
    selector = built(conflict_rule="code")
    cohort, said = choose(selector, started(selector, ROSTER, everyones(ratio)), ROSTER)
    assert cohort == {client: frozenset({weak}) for client in cohort}
    assert len(cohort) == 4
    assert said.numbers["imbalance"] == pytest.approx(2.0)
    assert said.numbers["uni_modal"] == 4
    assert said.numbers[f"weak.{weak}"] == 1
    assert all(said.clients[client] == {"behind": pytest.approx(2.0)} for client in cohort)


def test_with_nobody_far_behind_it_is_divfl_on_the_encoders_updates() -> None:
    selector = built()
    for number in range(30):
        memory = started(selector, ROSTER, everyones(1.4), seed=number)
        expected = stochastic_greedy(distances(memory, MULTI), 4, enough(COUNT, 4), drawing(Clock(0, number, 9)))
        cohort, _ = choose(selector, memory, ROSTER, number)
        assert cohort == whole_cohort(ROSTER, expected)


def test_exchanging_the_modalities_exchanges_the_choice() -> None:
    """Names are exchanged in memory and every ratio is inverted; ratios are equal, as their mean is not symmetric."""
    other = {"audio": "image", "image": "audio"}
    selector, unequal = built(threshold=1.2), 0
    for number in range(40):
        memory = started(selector, ROSTER, everyones(1.6), seed=number)
        renamed = {f"single.{a}": f"single.{b}" for a, b in other.items()}
        swapped = {renamed.get(group, group): held for group, held in memory.items()}
        swapped[SQUARES] = {renamed.get(track, track): held for track, held in memory[SQUARES].items()}
        swapped[BEHIND] = {other[modality]: held for modality, held in memory[BEHIND].items()}
        cohort, said = choose(selector, memory, ROSTER, number)
        mirrored, told = choose(selector, swapped, ROSTER, number)
        assert mirrored == {
            client: frozenset(other.get(m, m) for m in used) if len(used) == 1 else used
            for client, used in cohort.items()
        }
        assert said.numbers["imbalance"] == pytest.approx(told.numbers["imbalance"])
        unequal += bool(alone_of(cohort, ROSTER))
    assert unequal > 10


def test_choosing_depends_on_seed_and_round_alone_and_changes_no_input() -> None:
    selector = built()
    memory = started(selector, ROSTER, {k: 0.5 + k / 4 for k in ROSTER})
    before = {group: {name: value.clone() for name, value in held.items()} for group, held in memory.items()}
    runs = [[choose(selector, memory, ROSTER, number, seed)[0] for number in range(8)] for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    for group, held in memory.items():
        assert all(torch.equal(value, before[group][name]) for name, value in held.items())


def test_clients_with_one_modality_take_part_with_it() -> None:
    selector = built(clients=12, conflict_rule="code")
    for ratio in (4.0, 0.25):
        cohort, said = choose(selector, started(selector, MIXED, everyones(ratio)), MIXED)
        assert cohort.keys() == MIXED.keys()
        assert (cohort[3], cohort[4]) == (frozenset({"image"}), frozenset({"audio"}))
        assert (3 in said.clients) == (ratio > 1) and (4 in said.clients) == (ratio < 1)


@pytest.mark.parametrize("lost", [[0], [0, 3, 7], list(range(COUNT))])
def test_clients_whose_first_reply_was_lost_stop_nothing(lost: list[int]) -> None:
    for rule in ("hybrid", "slides_literal", "code"):
        selector = built(candidates=COUNT, conflict_rule=rule)
        memory = started(selector, MIXED, everyones(3.0), lost=lost)
        cohort, said = choose(selector, memory, MIXED)
        assert len(cohort) == 4
        assert not set(lost) & set(cohort) or len(lost) == COUNT
        assert math.isfinite(said.numbers["imbalance"])


def test_one_modality_is_nothing_to_choose_from() -> None:
    roster = {k: Card(k, f"client {k}", ("image",), ("digit",), 9) for k in range(3)}
    with pytest.raises(UserError, match=r"bms chooses between modalities, but clients have only image"):
        built().begin(SENT, roster)


# ------------------------------------------------------------------------------------------------ remembering


def changed(before: Groups, after: Groups, track: str) -> set[int]:
    """Return the clients whose update differs."""
    return {
        int(k) for k in after[track] if k not in before[track] or not torch.equal(before[track][k], after[track][k])
    }


def renewed(selector: Selector, memory: Groups, cohort: Cohort) -> Groups:
    reducer = selector.watch(memory, Asked(SENT, cohort, MIXED))
    for client in sorted(cohort):
        reducer.add(client, reply(MIXED[client], 3.0, seed=5, trained=sorted(cohort[client])))
    return reducer.finish()


@pytest.mark.parametrize("refresh", [True, False])
def test_participants_are_renewed_in_what_they_trained(refresh: bool) -> None:
    selector = built(refresh_single=refresh)
    memory = started(selector, MIXED, {})
    cohort = {2: frozenset(BOTH), 3: frozenset({"image"}), 8: frozenset({"image"})}
    after = renewed(selector, memory, cohort)
    assert changed(memory, after, MULTI) == {2, 3}
    assert changed(memory, after, "single.image") == ({2, 3, 8} if refresh else {3, 8})
    assert changed(memory, after, "single.audio") == ({2} if refresh else set())
    rows = (memory[SQUARES][MULTI] != after[SQUARES][MULTI]).any(1).nonzero().flatten().tolist()
    assert rows == list(range(COUNT))
    kept = [k for k in MIXED if k not in (2, 3)]
    assert torch.equal(memory[SQUARES][MULTI][kept][:, kept], after[SQUARES][MULTI][kept][:, kept])
    ratios = (memory[BEHIND]["image"] != after[BEHIND]["image"]) & ~memory[BEHIND]["image"].isnan()
    assert ratios.nonzero().flatten().tolist() == [2, 8]
    assert memory[BEHIND]["image"][2] == 1.0 and after[BEHIND]["image"][8] == pytest.approx(3.0)


def test_the_head_is_compared_only_if_asked_to() -> None:
    sizes = {
        compared: len(started(built(compared=compared), ROSTER, {})[MULTI]["0"])
        for compared in ("encoders", "everything")
    }
    assert sizes == {"encoders": 17, "everything": 19}


def test_a_client_without_a_modality_has_zeros_there_and_none_of_its_updates() -> None:
    memory = started(built(), MIXED, {})
    assert memory[MULTI]["3"][:12].tolist() == [0.0] * 12
    assert memory[MULTI]["3"][12:].abs().min() > 0
    assert "3" not in memory["single.audio"] and "3" in memory["single.image"]
    assert memory[BEHIND]["audio"][3].isnan() and memory[BEHIND]["image"][3] == 1.0


@pytest.mark.parametrize("ratio", [0.0, -5.0, 1e30, -1e30, 1e-7])
def test_hostile_ratios_are_bounded(ratio: float) -> None:
    selector = built()
    memory = started(selector, ROSTER, {**everyones(1.0), 5: ratio})
    largest = ROSTER[5].examples + 1  # nobody with so few samples can find more
    for values in memory[BEHIND].values():
        assert ((values >= 0.99 / largest) & (values <= 1.01 * largest)).all()
    cohort, said = choose(selector, memory, ROSTER)
    assert len(cohort) == 4
    assert math.isfinite(said.numbers["imbalance"])


@pytest.mark.parametrize("threshold", [0.0, None], ids=["alone", "with both"])
def test_the_ratio_that_is_remembered_is_that_of_the_trained_model(threshold: float | None) -> None:
    """With a method that reports none itself: in the start-up pass of the received model, in training of the result."""
    sent: dict[int, list[Reply]] = {}
    shared = {"scenario__modalities": {"name": "all"}, "scenario__tasks": {"name": "all"}, "data__tasks": ["digit"]}
    select = {"name": "bms", "clients": 4, "threshold": threshold, "conflict_rule": "code"}
    world = build_world(tiny(**shared, select=select, rounds=1, train__lr=0.2, train__epochs=3))

    def kept(number: int, client: int, reply: Reply) -> Reply:
        sent.setdefault(client, []).append(reply)
        return reply

    memory = world.loop(deliver=kept).run().state.selection
    received = world.architecture.initial(world.experiment.seed)
    assert sent.keys() == set(range(4))
    for client, (start, trained) in sent.items():
        own = trained.tensors["parameters"]
        assert len({name.split(".")[1] for name in own if name.startswith("encoder.")}) == (
            2 if threshold is None else 1
        )
        before, after = (found_with(world, client, {**received, **held}).ratio for held in ({}, own))
        assert ratio_in(start) == pytest.approx(before) != pytest.approx(after)
        assert ratio_in(trained) == pytest.approx(after)
        assert memory[BEHIND]["image"][client] == pytest.approx(after)


# ------------------------------------------------------------------------------------------------ the weak modality


def test_of_two_modalities_the_mean_ratio_decides() -> None:
    """The sheet's example: ratios 0.4 and 1.8 have the mean 1.1, so the second is weak, though the first is by 1.53."""
    ratios = np.array([0.4, 1.8])
    weak, imbalance = weak_modality({"a": 1 / ratios, "b": ratios}, np.ones(2))
    assert weak == "b" and imbalance == pytest.approx(1.1)
    weak, imbalance = weak_modality({"a": 1 / ratios, "b": ratios}, np.array([3.0, 1.0]))
    assert weak == "a" and imbalance == pytest.approx((3 / 0.4 + 1 / 1.8) / 4)
    assert weak_modality({"a": np.ones(2), "b": np.ones(2)}, np.ones(2)) == ("a", 1.0)


def test_clients_with_one_modality_count_one() -> None:
    missing = {"a": np.array([math.nan, 0.5]), "b": np.array([1.0, 2.0])}
    assert weak_modality(missing, np.ones(2)) == ("b", 1.5)


def test_of_three_modalities_the_one_farthest_behind_is_weak() -> None:
    far = {
        "a": np.array([1.0, 0.8, math.nan]),
        "b": np.array([1.2, 2.0, 1.1]),
        "c": np.array([math.nan, 1.9, 1.6]),
    }
    weak, imbalance = weak_modality(far, np.array([1.0, 1.0, 3.0]))
    assert weak == "c" and imbalance == pytest.approx((1.9 + 3 * 1.6) / 4)
    nobody = {**far, "c": np.full(3, math.nan)}
    assert weak_modality(nobody, np.ones(3))[0] == "b"


def test_ratios_of_three_modalities_reduce_to_those_of_two() -> None:
    two = behind(torch.tensor([1.6]), BOTH)
    assert two == {"audio": pytest.approx(1 / 1.6), "image": pytest.approx(1.6)}
    three = behind(torch.tensor([1.6, 2.0]), ("audio", "image", "text"))
    assert three == {
        "audio": pytest.approx(max(1 / 1.6, 1 / 2.0)),
        "image": pytest.approx(1.6),
        "text": pytest.approx(2.0),
    }
    assert behind(torch.tensor([]), ("image",)) == {"image": 1.0}


def test_without_a_threshold_nobody_trains_alone() -> None:
    selector = built(threshold=None, conflict_rule="code")
    cohort, said = choose(selector, started(selector, ROSTER, everyones(50.0)), ROSTER)
    assert not alone_of(cohort, ROSTER) and said.numbers["uni_modal"] == 0
