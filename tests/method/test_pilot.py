"""Pilot: two stages a round, adapters of tasks and of clients, text adapters from the nearest clients."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import polyfed
from polyfed.engine.simulator import Deliver
from polyfed.engine.trainer import Trainer
from polyfed.errors import UserError
from polyfed.experiment.world import World, build_world
from polyfed.method.adapter_tensors import within
from polyfed.method.pilot import Pilot, PilotState
from polyfed.method.protocol import Clock, Reply
from polyfed.model.llava import Llava
from tests.language import checkpoint, experiment

pytest.importorskip("transformers", reason="language models need the extra polyfed[mllm]")
pytest.importorskip("peft", reason="language models need the extra polyfed[mllm]")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return checkpoint(tmp_path_factory.mktemp("tiny"))


class Wire:
    """Listens to all replies."""

    def __init__(self) -> None:
        self.replies: list[tuple[int, int, Reply]] = []

    def __call__(self, round_number: int, client: int, reply: Any) -> Any:
        self.replies.append((round_number, client, reply))
        return reply


def ran(path: str, changes: dict[str, object] | None = None, deliver: Deliver | None = None) -> tuple[World, Any]:
    world = build_world(experiment(path, changes))
    loop = world.loop() if deliver is None else world.loop(deliver=deliver)
    return world, loop.run()


def groups(names: Any) -> set[str]:
    return {name.split(".")[0] for name in names}


def test_what_travels(path: str) -> None:
    wire = Wire()
    world, outcome = ran(path, {"rounds": 1}, wire)
    assert len(wire.replies) == 2 * 9, "two uploads of every client"
    for _, client, reply in wire.replies:
        task = world.federation.cards[client].tasks[0]
        names = reply.tensors["parameters"].keys()
        assert set(reply.tensors) == {"parameters"}
        assert groups(names) == {"task_adapter", "lora"}
        assert {name.split(".")[1] for name in names if name.startswith("task_adapter")} == {task}
    connector = sum(
        value.numel() for name, value in outcome.state.adapters.items() if name.startswith("task_adapter.vqa.")
    )
    text = sum(value.numel() for value in outcome.state.texts[0].values())
    assert all(
        sum(value.numel() for value in reply.tensors["parameters"].values()) == connector + text
        for *_, reply in wire.replies
    )


def test_bytes_are_those_of_the_formula(path: str) -> None:
    world = build_world(experiment(path, {"rounds": 1}))
    records: list[Any] = []
    outcome = world.loop(observers=[records.append]).run()
    connector = sum(
        value.nbytes for name, value in outcome.state.adapters.items() if name.startswith("task_adapter.vqa.")
    )
    text = sum(value.nbytes for value in outcome.state.texts[0].values())
    counted: dict[str, dict[str, int]] = defaultdict(dict)
    for record in records:
        if record["kind"] == "client" and record["client"] == 0:
            for way in ("up", "down"):
                counted[record["step"]][way] = sum(
                    held for part, held in record["bytes"][way].items() if part != "envelope"
                )
    assert counted["features"] == {"up": connector + text, "down": connector + text}
    assert counted["across"] == {"up": connector + text, "down": 3 * connector + text}


def test_adapters_start_from_the_pretrained_connector(path: str) -> None:
    world = build_world(experiment(path))
    assert isinstance(world.architecture, Llava)
    first = world.architecture.initial(0)
    base = world.architecture.base.projector()
    for adapter in ("task_adapter.vqa", "client_adapter", "cross_adapter.caption", "other_adapter.grounding"):
        assert all(torch.equal(first[f"{adapter}.{name}"], value) for name, value in base.items())
    assert all(not value.any() for name, value in first.items() if name.startswith("lora.") and name.endswith(".B"))
    assert all(value.any() for name, value in first.items() if name.startswith("lora.") and name.endswith(".A"))


def test_the_base_is_never_moved(path: str) -> None:
    world = build_world(experiment(path))
    assert isinstance(world.architecture, Llava)
    base = world.architecture.base.model
    before = {name: value.clone() for name, value in base.state_dict().items()}
    world.loop().run()
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert not any(parameter.requires_grad for parameter in base.parameters())


def test_models_of_all_clients_hold_the_very_same_base(path: str) -> None:
    world, _ = ran(path, {"rounds": 1})
    assert isinstance(world.architecture, Llava)
    base = world.architecture.base
    held = {parameter.data_ptr() for parameter in base.model.parameters()}
    for components in (("client_adapter", "lora", "task_adapter.vqa"), ("lora", "task_adapter.caption")):
        model = world.architecture.assemble(components)
        own = {parameter.data_ptr() for parameter in model.parameters()}
        twin = {parameter.data_ptr() for parameter in model._twin[0].parameters()}
        assert twin - own == held, "beside what it trains, a model holds nothing that the base does not hold"


def test_what_each_stage_moves(path: str) -> None:
    """Other tasks' adapters and, in the second stage, the client's own stay as they are."""
    world = build_world(experiment(path, {"rounds": 1, "method.client_init_noise": 0.01}))
    method, initial = world.method, world.architecture.initial(0)
    assert isinstance(method, Pilot)
    seen: list[tuple[str, dict[str, Tensor], dict[str, Tensor], frozenset[str] | None]] = []
    trainer_of = world.loop()
    original = trainer_of.trainer.fit

    def watched(card: Any, request: Any, key: Any) -> Any:
        fitted = original(card, request, key)
        if card.id == 0:
            seen.append((request.purpose, dict(request.start), dict(fitted.parameters), request.trains))
        return fitted

    trainer_of.trainer.fit = watched  # type: ignore[method-assign]
    outcome = trainer_of.run()
    (first, start, end, _), (second, begun, done, _) = seen
    assert (first, second) == ("features", "across")
    moved = {name.split(".")[0] for name in end if not torch.equal(start[name], end[name])}
    assert moved == {"task_adapter", "client_adapter", "lora"}
    assert groups(start) == moved
    moved = {name.split(".")[0] for name in done if not torch.equal(begun[name], done[name])}
    assert moved == {"task_adapter", "cross_adapter", "router", "lora"}
    assert groups(begun) == moved | {"other_adapter", "client_adapter"}
    own = {
        name.removeprefix("task_adapter.vqa."): value
        for name, value in begun.items()
        if name.startswith("task_adapter")
    }
    for other in ("caption", "grounding"):
        assert all(torch.equal(begun[f"cross_adapter.{other}.{name}"], value) for name, value in own.items())
    kept = outcome.personal[0]["parameters"]
    assert groups(kept) == {"client_adapter", "cross_adapter", "router"}
    assert all(torch.equal(kept[name], end[name]) for name in kept if name.startswith("client_adapter"))
    assert initial.keys() >= begun.keys()


def test_task_adapters_are_averaged_over_their_clients_only(path: str) -> None:
    wire = Wire()
    _, outcome = ran(path, {"rounds": 1}, wire)
    last = {client: reply for _, client, reply in wire.replies[9:]}
    for place, task in enumerate(("vqa", "caption", "grounding")):
        for name in within(outcome.state.adapters, ["task_adapter"], [f"task_adapter.{task}"]):
            uploads = [last[client].tensors["parameters"][name] for client in range(3 * place, 3 * place + 3)]
            assert torch.allclose(outcome.state.adapters[name], torch.stack(uploads).mean(0), rtol=1e-6, atol=1e-7)


def test_text_adapters_differ_by_client_and_with_all_do_not(path: str) -> None:
    _, nearest = ran(path, {"rounds": 1, "method.text.neighbours": 2})
    name = next(name for name in nearest.state.texts[0] if name.endswith(".B"))
    assert not torch.equal(nearest.state.texts[0][name], nearest.state.texts[8][name])
    _, everybody = ran(path, {"rounds": 1, "method.text.aggregate": "all"})
    assert torch.equal(everybody.state.texts[0][name], everybody.state.texts[8][name])
    _, alike = ran(path, {"rounds": 1, "method.text.aggregate": "same_task"})
    assert torch.equal(alike.state.texts[0][name], alike.state.texts[2][name])
    assert not torch.equal(alike.state.texts[0][name], alike.state.texts[3][name])


def test_without_noise_the_two_adapters_stay_equal_in_the_first_stage(path: str) -> None:
    """Both start alike, and the loss does not tell them apart; see the method's documentation."""

    def apart(noise: float) -> bool:
        wire = Wire()
        _, outcome = ran(path, {"rounds": 1, "method.client_init_noise": noise}, wire)
        first = next(reply for _, client, reply in wire.replies if client == 0).tensors["parameters"]
        own = within(outcome.personal[0]["parameters"], ["client_adapter"])
        pairs = [(first[f"task_adapter.vqa.{name.split('.', 1)[1]}"], value) for name, value in own.items()]
        return not all(torch.allclose(one, other, atol=1e-6) for one, other in pairs)

    assert not apart(0.0)
    assert apart(0.1)


def test_the_first_stage_can_be_held_once(path: str) -> None:
    world = build_world(experiment(path, {"method.stage1_once": True}))
    records: list[Any] = []
    world.loop(observers=[records.append]).run()
    steps = [
        (record["round"], record["step"]) for record in records if record["kind"] == "client" and record["client"] == 4
    ]
    assert steps == [(1, "features"), (1, "across"), (2, "across")]


@pytest.mark.parametrize(
    ("options", "copied"),
    [({}, True), ({"cross_task_persist": True}, False), ({"cross_task_init": "random"}, False)],
    ids=["anew", "kept", "drawn"],
)
def test_what_cross_task_adapters_start_from_in_the_second_round(
    path: str, options: dict[str, object], copied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = []
    begin = Trainer.fit

    def noted(self: Trainer, card: Any, request: Any, *rest: Any, **options: Any) -> Any:
        if card.id == 0 and request.purpose == "across":
            starts.append(request.start)
        return begin(self, card, request, *rest, **options)

    monkeypatch.setattr(Trainer, "fit", noted)
    ran(path, {f"method.{key}": value for key, value in options.items()})
    for number, start in enumerate(starts):
        own = {name.split(".", 2)[2]: value for name, value in within(start, ["task_adapter"]).items()}
        crossing = within(start, ["cross_adapter"])
        assert len(crossing) == 2 * len(own)
        equal = all(torch.equal(value, own[name.split(".", 2)[2]]) for name, value in crossing.items())
        assert equal == (copied or (number == 0 and "cross_task_init" not in options))
    kept, held = (within(start, ["cross_adapter"]) for start in starts)
    assert kept.keys() == held.keys() and not all(torch.equal(kept[name], held[name]) for name in kept)


def test_drawn_cross_task_adapters_differ_by_client_and_seed(path: str) -> None:
    still = {"rounds": 1, "train.lr": 1e-30, "method.cross_task_init": "random"}
    first, again = (ran(path, {**still, "seed": seed})[1].personal for seed in (0, 1))
    name = "cross_adapter.caption.linear_1.weight"
    one, other, later = (held["parameters"][name] for held in (first[0], first[1], again[0]))
    assert not torch.equal(one, other) and not torch.equal(one, later)
    bound = one.shape[1] ** -0.5
    assert 0.9 * bound < one.abs().max() <= bound


@pytest.mark.parametrize(
    ("changes", "lacking"),
    [
        ({"model.pilot.client_adapter": False}, "client_adapter"),
        ({"model.pilot.cross_task": "none"}, "cross_adapter"),
        ({"model.pilot.cross_task": "common"}, "cross_adapter.caption"),
    ],
)
def test_ablations_leave_components_out(path: str, changes: dict[str, object], lacking: str) -> None:
    world, outcome = ran(path, {"rounds": 1, **changes})
    assert not any(name.startswith(lacking) for name in world.federation.cards[0].components)
    assert outcome.progress.round == 1


def test_one_task_has_no_router(path: str) -> None:
    changes = {"rounds": 1, "data.tasks": ["vqa"], "scenario.clients": 3, "scenario.partition": {"name": "iid"}}
    world, outcome = ran(path, changes)
    assert groups(world.federation.cards[0].components) == {"task_adapter", "client_adapter", "lora"}
    assert groups(outcome.personal[0]["parameters"]) == {"client_adapter"}


def test_workers_change_no_bit(path: str) -> None:
    _, alone = ran(path, {"rounds": 1})
    _, two = ran(path, {"rounds": 1, "engine.workers": 2})
    assert (alone.digest, alone.personal_digest) == (two.digest, two.personal_digest)


def test_one_task_and_two_clients_without_their_own_adapters_are_federated_averaging(path: str) -> None:
    """Property 36: both stages are then a round of FedAvg each, with the learning rate of the stage."""
    one = {
        "data.tasks": ["vqa"],
        "scenario.clients": 2,
        "scenario.partition": {"name": "iid"},
        "train.optimizer": "sgd",
        "train.lr": 0.05,
        "train.batch_size": 32,  # all samples at once: their order, which differs, does not matter
        "data.examples": 7,
        "engine.evaluate_every": 100,
    }
    rounds = 2
    apart = {"model.pilot.client_adapter": False, "method.second_lr": 0.05, "rounds": rounds}
    _, ours = ran(path, {**one, **apart})
    world, theirs = ran(path, {**one, "method.name": "fedavg", "rounds": 2 * rounds})
    sizes = [card.examples for card in world.federation.cards.values()]
    assert len(sizes) == 2
    assert sizes[0] != sizes[1], "weights by samples must not be even"
    first = world.architecture.initial(0)
    named = {name.replace("task_adapter.vqa.", "connector."): value for name, value in ours.state.adapters.items()}
    for text in ours.state.texts.values():
        found = {**named, **text}
        assert found.keys() == theirs.state.parameters.keys()
        for name, value in theirs.state.parameters.items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-6)
    assert any((value - first[name]).abs().max() > 1e-3 for name, value in theirs.state.parameters.items())


def test_what_a_client_keeps_reaches_others_only_through_what_it_trains(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Property 26: other first values of one client's adapter change no other client's, nor what anybody receives."""

    def run() -> tuple[dict[int, Any], dict[int, dict[str, Tensor]]]:
        first: dict[int, Any] = {}
        world = build_world(experiment(path, {"rounds": 1}))
        loop = world.loop()
        fit = Trainer.fit

        def watched(self: Trainer, card: Any, request: Any, key: Any) -> Any:
            first.setdefault(card.id, within(request.start, ["task_adapter", "lora"]))
            return fit(self, card, request, key)

        monkeypatch.setattr(Trainer, "fit", watched)
        outcome = loop.run()
        monkeypatch.setattr(Trainer, "fit", fit)
        return first, {
            client: within(held["parameters"], ["client_adapter"]) for client, held in outcome.personal.items()
        }

    received, kept = run()
    enrol = Pilot.enrol

    def moved(self: Pilot, initial: Any, card: Any) -> Any:
        held = enrol(self, initial, card)
        if card.id != 3:
            return held
        return {
            "parameters": {n: v + 0.1 if n.startswith("client_adapter") else v for n, v in held["parameters"].items()}
        }

    monkeypatch.setattr(Pilot, "enrol", moved)
    received_then, kept_then = run()
    assert received.keys() == received_then.keys() == set(range(9))
    for client in range(9):
        assert all(torch.equal(value, received_then[client][name]) for name, value in received[client].items())
        same = all(torch.equal(value, kept_then[client][name]) for name, value in kept[client].items())
        assert same == (client != 3)


def test_who_does_not_take_part_keeps_its_text_adapter(path: str) -> None:
    _, outcome = ran(path, {"rounds": 1, "select": {"name": "round_robin", "clients": 2}})
    first = build_world(experiment(path)).architecture.initial(0)
    assert all(torch.equal(value, first[name]) for name, value in outcome.state.texts[8].items())
    assert all(
        torch.equal(value, first[name]) for name, value in outcome.state.adapters.items() if ".grounding." in name
    )
    assert not all(torch.equal(value, first[name]) for name, value in outcome.state.texts[0].items())


def test_a_lost_client_is_left_out(path: str) -> None:
    def lose(round_number: int, client: int, reply: Any) -> Any:
        return None if client == 0 else reply

    world, outcome = ran(path, {"rounds": 1}, lose)
    assert isinstance(outcome.state, PilotState)
    first = world.architecture.initial(0)
    assert all(torch.equal(value, first[name]) for name, value in outcome.state.texts[0].items())


ALONE = {"model.pilot.client_adapter": False}
IDLE: list[tuple[dict[str, object], str, object, str]] = [
    (ALONE, "method.client_init_noise", 0.1, "client_adapter"),
    (ALONE, "method.difference", {"weight": 0.5}, "client_adapter"),
    ({"model.pilot.cross_task": "none"}, "method.cross_task_init", "random", "cross_task"),
    ({"model.pilot.cross_task": "none"}, "method.cross_task_persist", True, "cross_task"),
    ({"method.text.aggregate": "all"}, "method.text.neighbours", 3, "aggregate is all"),
    ({"method.text.aggregate": "same_task"}, "method.text.weights", "printed", "aggregate is same_task"),
    ({}, "model.pilot.tower_scale", 1.0, "tower is false"),
    ({"method.name": "fedavg"}, "model.pilot", {"combine_scale": 0.5}, "other adapters"),
    ({"method.name": "local"}, "model.pilot", {"tower": True}, "other adapters"),
]


def mistakes() -> list[tuple[dict[str, object], str]]:
    two = {"groups": [{"clients": 9, "modalities": ["image", "text"], "tasks": ["vqa", "caption"]}], "validation": 0}
    return [
        ({"scenario": two}, "each client must have one"),
        ({"select": {"name": "divfl", "clients": 2}}, "all, random or round_robin"),
        ({"model.adapters": "one"}, "adapters: pilot"),
        *[
            ({**changes, option: value}, rf"^{option}: has no effect, because .*{why}")
            for changes, option, value, why in IDLE
        ],
    ]


@pytest.mark.parametrize(("changes", "message"), mistakes())
def test_what_it_cannot_do_is_said(path: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ran(path, changes)


def test_order_of_replies_does_not_matter(path: str) -> None:
    """The server sums in ascending client id, whatever order replies are held in."""
    world = build_world(experiment(path, {"rounds": 1}))
    method = world.method
    assert isinstance(method, Pilot)
    cards = world.federation.cards
    state = method.begin(world.architecture.initial(0), cards)

    def answered(turn: Callable[[list[int]], list[int]]) -> PilotState:
        conversation = method.round(state, cards, Clock(0, 1, 1))
        wanted: Any = next(conversation)
        while True:
            if not hasattr(wanted, "orders"):
                answer: Any = None
            else:
                answer = {
                    k: Reply(
                        k + 1,
                        {
                            "parameters": {
                                n: v + 0.01 * (k + 1)
                                for n, v in wanted.orders[k].tensors["parameters"].items()
                                if n in wanted.orders[k].expects["parameters"]
                            }
                        },
                    )
                    for k in turn(sorted(wanted.orders))
                }
            try:
                wanted = conversation.send(answer)
            except StopIteration as end:
                found: PilotState = end.value
                return found

    one, other = answered(list), answered(lambda ids: ids[::-1])
    assert all(torch.equal(one.adapters[name], other.adapters[name]) for name in one.adapters)
    assert all(torch.equal(one.texts[k][n], other.texts[k][n]) for k in one.texts for n in one.texts[k])


@pytest.mark.parametrize("number", [5, 10, 23, 32])  # two rounds of two stages with nine fits each
def test_a_run_killed_in_either_stage_goes_on_to_the_same_bits(path: str, tmp_path: Path, number: int) -> None:
    killed_in_fit(number, lambda: polyfed.run(experiment(path), tmp_path / "killed"))
    resumed = polyfed.run(experiment(path), tmp_path / "killed", resume=True)
    assert (resumed.summary["digest"], resumed.summary["personal_digest"]) == whole_run(path)


@cache
def whole_run(path: str) -> tuple[str, str]:
    _, outcome = ran(path)
    return outcome.digest, outcome.personal_digest


def killed_in_fit(number: int, work: Callable[[], Any]) -> None:
    """Do the work in a child process that dies, as by kill -9, at the start of its n-th fit."""
    child = os.fork()
    if child == 0:
        counter, fit = itertools.count(1), Trainer.fit

        def dying(self: Trainer, *arguments: Any, **options: Any) -> Any:
            if next(counter) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return fit(self, *arguments, **options)

        Trainer.fit = dying  # type: ignore[method-assign]  # in the child alone
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


TOWER = {"rounds": 1, "data.vision": "pixels", "model.pilot.tower": True}


def test_adapters_in_the_vision_tower_travel_and_train(path: str) -> None:
    wire = Wire()
    world, outcome = ran(path, TOWER, wire)
    first = world.architecture.initial(0)
    for _, client, reply in wire.replies:
        task = world.federation.cards[client].tasks[0]
        assert f"task_adapter.{task}.layers.0.fc1.weight" in reply.tensors["parameters"]
        assert groups(reply.tensors["parameters"]) == {"task_adapter", "lora"}
    moved = {name for name, value in outcome.state.adapters.items() if not torch.equal(value, first[name])}
    assert moved == outcome.state.adapters.keys(), (
        "one block is read by the features of this base, and all of it trains"
    )
    kept = outcome.personal[0]["parameters"]
    assert not torch.equal(kept["router.layers.0.weight"], first["router.layers.0.weight"])


def test_adapters_in_the_vision_tower_start_as_the_tower(path: str) -> None:
    """At a scale of one half the pair is the layer itself, so the model is that without adapters there."""
    plain, towered = (
        build_world(experiment(path, {"data.vision": "pixels", "model.pilot.combine_scale": 0.5, **changes}))
        for changes in ({}, {"model.pilot.tower": True})
    )
    outputs = []
    for world in (plain, towered):
        components = ("client_adapter", "lora", "task_adapter.vqa")
        model = world.architecture.assemble(components)
        initial = world.architecture.initial(0)
        model.load_state_dict({name: initial[name] for name in model.state_dict()})
        model.eval()
        outputs.append(model(world.federation.client(0).train.batch()).predictions["vqa"])
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)


def test_pixels_and_cached_features_give_the_same_model(path: str) -> None:
    found = []
    for vision in ("features", "pixels"):
        world = build_world(experiment(path, {"data.vision": vision}))
        model = world.architecture.assemble(("client_adapter", "lora", "task_adapter.vqa"))
        initial = world.architecture.initial(0)
        model.load_state_dict({name: initial[name] for name in model.state_dict()})
        found.append(model.eval()(world.federation.client(0).train.batch()).predictions["vqa"])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_the_tower_is_trained_on_pixels_only(path: str) -> None:
    with pytest.raises(UserError, match=r"model\.pilot\.tower: .* set data\.vision: pixels"):
        build_world(experiment(path, {"model.pilot.tower": True}))


def test_blocks_behind_the_features_are_not_adapted(path: str) -> None:
    world = build_world(experiment(path, TOWER))
    names = {
        name.split(".")[2:4][1] for name in world.architecture.initial(0) if name.startswith("task_adapter.vqa.layers.")
    }
    assert names == {"0"}, "of two blocks, features are taken behind the first"


@pytest.mark.parametrize("tower", [False, True])
def test_what_trains_is_float32_beside_a_base_of_fewer_bits(path: str, tower: bool) -> None:
    changes = TOWER if tower else {"rounds": 1}
    world, outcome = ran(path, {**changes, "model.weights": "bfloat16"})
    assert isinstance(world.architecture, Llava)
    assert {value.dtype for value in world.architecture.base.model.parameters()} == {torch.bfloat16}
    held = [outcome.state.adapters, *outcome.state.texts.values(), outcome.personal[0]["parameters"]]
    assert {value.dtype for tensors in held for value in tensors.values()} == {torch.float32}
    _, exact = ran(path, changes)
    losses = [[one["metrics"] for one in run.progress.latest] for run in (outcome, exact)]
    for fewer, more in zip(*losses, strict=True):
        ((left,), (right,)) = fewer.values(), more.values()
        assert left["loss"] == pytest.approx(right["loss"], rel=0.05)


def test_a_base_of_four_bits_wants_its_library_and_a_gpu(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"model\.weights: 4bit needs bitsandbytes .*polyfed\[mllm,4bit\]"):
        build_world(experiment(path, {"model.weights": "4bit"}))
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"model\.weights: 4bit needs a GPU"):
        build_world(experiment(path, {"model.weights": "4bit"}))
