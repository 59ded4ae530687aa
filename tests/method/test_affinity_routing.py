"""Routing by affinity in a run: what travels, what stays, what is judged, and what becomes of lost replies."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from polyfed.engine import wire
from polyfed.engine.steps import Alone, Assignment
from polyfed.experiment.config import Experiment
from polyfed.experiment.world import build_world
from polyfed.method.affinity import MEMBER, Affinity, Standing
from polyfed.method.affinity_routing import KEPT, RETEST, Routed, RoutedState
from polyfed.method.averaging import Averaging
from polyfed.method.protocol import Groups, Order, Reply
from polyfed.method.quantized import Quantized, rounded, unpacked
from polyfed.model.architecture import component_of
from tests.method.test_disentafl import digests, experiment_of
from tests.worlds import train

EAGER = {"threshold": 1.0, "patience": 1, "decay": 0.9, "retest_every": 2}
"""Whoever agrees least leaves, in every round."""


def by_affinity(affinity: dict[str, Any] | None = None, **changes: Any) -> Experiment:
    method = {"name": "disentafl", "router": "affinity", "affinity": affinity or EAGER, **changes.pop("method", {})}
    return experiment_of(**{"rounds": 4, "method": method, **changes})


@dataclass
class Run:
    """A run and all its messages: (round, client, order, personal groups before) and the replies to them."""

    experiment: Experiment
    lost: frozenset[tuple[int, int]] = frozenset()
    orders: list[tuple[int, int, Order, Groups]] = field(default_factory=list)
    replies: list[tuple[int, int, Reply]] = field(default_factory=list)
    states: list[RoutedState] = field(default_factory=list)

    def __post_init__(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            self._run(patch)

    def _run(self, patch: pytest.MonkeyPatch) -> None:
        begin, judge = Alone._begin, Routed.round

        def noted(alone: Alone, one: Assignment, clock: Any) -> Any:
            self.orders.append((clock.round, one.client, wire.decode_order(wire.encode_order(one.order)), one.personal))
            return begin(alone, one, clock)

        def kept(number: int, client: int, reply: Reply) -> Any:
            self.replies.append((number, client, wire.decode_reply(wire.encode_reply(reply))))
            return None if (number, client) in self.lost else reply

        def watched(method: Any, *arguments: Any) -> Any:
            state = yield from judge(method, *arguments)
            self.states.append(state)
            return state

        patch.setattr(Alone, "_begin", noted)
        patch.setattr(Routed, "round", watched)
        self.world = build_world(self.experiment)
        self.outcome = self.world.loop(deliver=kept).run()

    def trained(self, number: int) -> dict[int, tuple[Order, Reply, Groups]]:
        """Return what was asked of clients that trained in a round, what they replied, and what they had."""
        found = {}
        for client in self.world.federation.cards:
            asked = [(order, personal) for at, k, order, personal in self.orders if (at, k) == (number, client)]
            replies = [reply for at, k, reply in self.replies if (at, k) == (number, client)]
            for (order, personal), reply in zip(asked, replies, strict=True):
                if order.step == "train":
                    found[client] = order, reply, personal
        return found

    def names(self, client: int, types: list[str]) -> set[str]:
        """Return the parameters of a client's types."""
        cards, method = self.world.federation.cards, self.method
        wanted = {component for name in types for component in method.types[name]}
        parameters = method.averaging.deploy(self.states[0].averaging, cards[client])
        return {name for name in parameters if component_of(name, cards[client].components) in wanted}

    @property
    def method(self) -> Routed:
        method = self.world.method
        found = method.method if isinstance(method, Quantized) else method
        assert isinstance(found, Routed)
        return found


@pytest.fixture(scope="module")
def eager() -> Run:
    return Run(by_affinity(engine__server_test=True))


def test_what_was_left_travels_neither_way(eager: Run) -> None:
    """But for trials, in a group of their own; what left for good is exactly what is missing."""
    tried = 0
    for number in (2, 3, 4):
        before = eager.states[number - 2]
        for client, (order, reply, _) in eager.trained(number).items():
            left = eager.names(client, before.away(client))
            everything = eager.names(client, list(eager.method.types))
            for message in (order, reply):
                held = set(message.tensors["parameters"])
                assert held & everything == everything - left
                assert set(message.tensors.get(RETEST, {})) <= left
                tried += len(message.tensors.get(RETEST, {}))
    assert tried > 0
    assert sum(len(eager.states[0].away(client)) for client in range(5)) > 2


def test_one_client_at_a_time_leaves_each_type_that_three_share(eager: Run) -> None:
    """The one with the lowest mean cosine. Clients 0, 2, 3 and 4 have images; sounds are two clients' alone."""
    for name in eager.method.types:
        means = {k: held[name].mean for k, held in eager.states[0].standings.items() if name in held}
        away = [client for client in range(5) if name in eager.states[0].away(client)]
        assert away == ([min(means, key=lambda k: means[k])] if len(means) > 2 else [])
        if name.startswith("expert.audio") or name == "expert.image.parity":
            assert not means


def test_means_are_those_of_the_cosines_of_what_travelled(eager: Run) -> None:
    """By hand, in float64: the first mean is a tenth of the first cosine."""
    messages = eager.trained(1)
    cards = eager.world.federation.cards
    name = "expert.image.general"
    names = sorted(eager.names(0, [name]))

    def update(client: int) -> torch.Tensor:
        order, reply, _ = messages[client]
        pairs = [(reply.tensors["parameters"][n], order.tensors["parameters"][n]) for n in names]
        return torch.cat([(after.double() - before.double()).flatten() for after, before in pairs])

    for client in (0, 2, 3, 4):
        others = [cards[k].examples * update(k) for k in (0, 2, 3, 4) if k != client]
        cosine = torch.cosine_similarity(update(client), torch.stack(others).sum(0), dim=0)
        assert eager.states[0].standings[client][name].mean == pytest.approx(0.1 * float(cosine), rel=1e-9)


def test_who_left_goes_on_from_its_own_last_values(eager: Run) -> None:
    """It has them from the end of that round, when it is judged with them."""
    for client in range(5):
        left = eager.names(client, eager.states[0].away(client))
        sent = eager.trained(1)[client][1].tensors["parameters"]
        personal = eager.trained(2)[client][2]
        assert {name for name in personal["parameters"] if "gate" not in name} == left
        assert all(torch.equal(personal["parameters"][name], sent[name]) for name in left)
        after = eager.trained(3)[client][2]["parameters"]
        still = [name for name in left if name in after and not name.endswith("key.bias")]
        assert all(not torch.equal(after[name], sent[name]) for name in still)


def test_a_trial_begins_with_the_members_values_and_changes_nothing_else(eager: Run) -> None:
    orders = eager.trained(3)
    server = eager.states[1].parameters
    for order, reply, personal in orders.values():
        for name, value in order.tensors.get(RETEST, {}).items():
            assert torch.equal(value, server[name])
            assert not torch.equal(value, personal["parameters"][name])
            moved = reply.tensors[RETEST][name] - value
            assert name.endswith("key.bias") or 0 < float(moved.norm()) < 1


def test_server_and_client_together_have_the_whole_model_at_any_time(eager: Run) -> None:
    state = eager.states[-1]
    for client, card in eager.world.federation.cards.items():
        deployed = eager.world.method.deploy(state, card)
        own = eager.outcome.personal[client]["parameters"]
        assert not deployed.keys() & own.keys()
        assert {component_of(name, card.components) for name in {**deployed, **own}} == set(card.components)
        assert set(own) - {name for name in own if "gate" in name} == eager.names(client, state.away(client))


def test_what_is_kept_is_only_what_may_be_left() -> None:
    """With patience 2 nobody may leave after the first round; what is kept is no part of the model."""
    run = Run(by_affinity({**EAGER, "patience": 2}, rounds=2))
    assert not any(run.states[0].away(client) for client in range(5))
    assert not any(KEPT in personal for _, _, personal in run.trained(2).values())
    assert any(run.states[1].away(client) for client in range(5))


def test_nobody_leaves_below_the_least_cosine_and_then_all_is_as_by_ownership() -> None:
    routed = train(by_affinity({"threshold": -1.0, "patience": 1}, rounds=2))
    owned = train(experiment_of(rounds=2))
    assert routed.state.parameters.keys() == owned.state.parameters.keys()
    assert all(torch.equal(value, owned.state.parameters[n]) for n, value in routed.state.parameters.items())
    for client, held in owned.personal.items():
        own = routed.personal[client]["parameters"]
        assert all(torch.equal(own[name], value) for name, value in held["parameters"].items())
    assert owned.progress.latest == routed.progress.latest


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = train(by_affinity(), tmp_path / "whole")
    train(by_affinity(rounds=2), tmp_path / "parts")
    resumed = train(by_affinity(), tmp_path / "parts", resume=True)
    assert digests(resumed) == digests(whole)
    assert resumed.state.standings == whole.state.standings
    left, right = (records(tmp_path / folder) for folder in ("whole", "parts"))
    assert left == right
    notes = [line["numbers"] for line in left if line["kind"] == "note"]
    assert len(notes) == 4
    for numbers, key in ((notes[0], "left.expert.image.general"), (notes[0], "cosine.expert.image.general")):
        assert key in numbers
    assert notes[0]["left.expert.image.general"] == 1.0
    assert notes[0]["left.expert.audio.general"] == 0.0


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "records.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def test_lost_replies_leave_everything_consistent() -> None:
    """Client 0's are lost in the rounds in which it might leave, is away, and is tried; client 3's at last."""
    run = Run(by_affinity(), frozenset({(1, 0), (2, 3), (3, 3), (3, 4), (4, 0)}))
    assert not run.states[0].away(0)
    test_server_and_client_together_have_the_whole_model_at_any_time(run)
    test_what_was_left_travels_neither_way(run)


def test_lost_word_of_a_leave_is_no_harm() -> None:
    """Only what clients say in the exchange that settles who leaves is lost."""
    experiment = by_affinity(rounds=2)
    world = build_world(experiment)

    def deaf(number: int, client: int, reply: Reply) -> Any:
        return None if not reply.tensors and client < 2 else reply

    lost = world.loop(deliver=deaf).run()
    assert len(lost.progress.refused) == 4
    assert digests(lost) == digests(train(experiment))


@pytest.mark.parametrize(
    "changes",
    [
        {"grid": "axes"},
        {"grid": "module", "method": {"disentanglement": "none"}},
        {"method": {"share_general": False}},
        {"method": {"missing": "dilute"}},
        {"select": {"name": "random", "clients": 4}},
        {"select": {"name": "pow-d", "clients": 4}},
        {"select": {"name": "divfl", "clients": 4}},
    ],
)
def test_it_goes_with_other_options(changes: dict[str, Any]) -> None:
    run = Run(by_affinity(**changes))
    assert any(run.states[-1].away(client) for client in range(5))


def test_messages_in_8_bits_are_compared_as_they_arrive() -> None:
    run = Run(by_affinity(method={"quantize_bits": 8}))
    assert run.method.arriving is rounded
    assert any(run.states[0].away(client) for client in range(5))
    for number in (2, 3, 4):
        for client, (order, reply, _) in run.trained(number).items():
            left = run.names(client, run.states[number - 2].away(client))
            for message in (order, reply):
                travelled = {name for group, held in message.tensors.items() if group != RETEST for name in held}
                assert not travelled & left
            deployed = run.world.method.deploy(run.states[number - 2], run.world.federation.cards[client])
            received = unpacked(order.tensors)["parameters"]
            assert received.keys() == deployed.keys()
            assert all(torch.equal(value, deployed[name]) for name, value in received.items())
    zero = run.method.arriving({"parameters": run.states[0].parameters})["parameters"]
    order = run.trained(2)[1][0]
    got = unpacked(order.tensors)["parameters"]
    assert all(torch.equal(value, zero[name]) for name, value in got.items())


def test_by_default_the_rule_is_that_of_the_description() -> None:
    method = build_world(by_affinity(affinity=Affinity().model_dump())).method
    assert isinstance(method, Routed)
    assert (method.rule.threshold, method.rule.patience) == (-0.05, 5)
    assert (method.rule.decay, method.rule.retest_every) == (0.9, 20)
    assert isinstance(build_world(experiment_of()).method, Averaging)


def test_a_newcomer_is_a_member_of_everything(eager: Run) -> None:
    state = RoutedState(eager.states[0].averaging, {0: {"expert.image.general": Standing(-0.4, 5, 1), "x": MEMBER}})
    assert state.away(0) == ["expert.image.general"]
    assert state.away(77) == []
