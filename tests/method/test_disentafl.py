"""DisentAFL: who shares what, its reductions, the weight of its loss. P1 ... are properties of its specification."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from polyfed.engine import wire
from polyfed.engine.drive import drive
from polyfed.engine.loop import Outcome
from polyfed.engine.steps import Alone, Assignment
from polyfed.errors import UserError
from polyfed.experiment import config
from polyfed.experiment.config import Experiment
from polyfed.experiment.world import World, build_world
from polyfed.method.affinity import Affinity
from polyfed.method.averaging import Averaging, nothing
from polyfed.method.disentafl import Disentangle
from polyfed.method.disentanglement import Disentangled
from polyfed.method.protocol import Ask, Clock, Fit, Fold, Order, Recipe, Reply
from polyfed.method.training import Training
from polyfed.model.architecture import component_of
from polyfed.scenario.federation import Client
from tests.worlds import EXPERTS, tiny, train

HOLDINGS = {
    "scenario__clients": 5,
    "scenario__modalities__sets": [["image"], ["audio"], ["audio", "image"], ["image"], ["image"]],
    "scenario__tasks__sets": [["digit"], ["parity"], ["digit", "parity"], ["digit", "parity"], ["digit"]],
}
ALIKE = {"scenario__clients": 3, "scenario__modalities": {"name": "all"}, "scenario__tasks": {"name": "all"}}
GENERAL = {"projection", "self_attention.general", "cross_attention.general", "expert.general.general"}


def experiment_of(grid: str = "pairs", **changes: Any) -> Experiment:
    model = {**EXPERTS, "expert_grid": grid, **changes.pop("model", {})}
    base = {"method__name": "disentafl", "model": model, "rounds": 1, "engine__workers": 1, **HOLDINGS}
    return tiny(**{**base, **changes})


class Seen:
    """What travelled in a run: the first round's orders and replies, by client, read off the wire."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, deliver: Any = None, **changes: Any) -> None:
        self.orders: dict[int, Order] = {}
        self.replies: dict[int, Reply] = {}
        begin = Alone._begin

        def noted(alone: Alone, one: Assignment, clock: Any) -> Any:
            self.orders[one.client] = wire.decode_order(wire.encode_order(one.order))
            return begin(alone, one, clock)

        def kept(number: int, client: int, reply: Reply) -> Any:
            self.replies[client] = wire.decode_reply(wire.encode_reply(reply))
            return reply if deliver is None else deliver(number, client, reply)

        monkeypatch.setattr(Alone, "_begin", noted)
        self.world = build_world(experiment_of(**changes))
        self.first = self.world.architecture.initial(3)
        self.outcome = self.world.loop(deliver=kept).run()

    def parts(self, client: int, message: Order | Reply) -> set[str]:
        components = self.world.federation.cards[client].components
        return {component_of(name, components) for name in message.tensors["parameters"]}

    def routes(self) -> dict[int, set[str]]:
        return {client: self.parts(client, order) for client, order in self.orders.items()}


# ------------------------------------------------------------------------------------------------ what is shared


def test_a_part_is_the_weighted_mean_of_its_owners_uploads(monkeypatch: pytest.MonkeyPatch) -> None:
    """P1, P4 and P7: in float64, by hand; who receives a part returns it, and no gate travels."""
    seen = Seen(monkeypatch)
    cards = seen.world.federation.cards
    for client, reply in seen.replies.items():
        assert seen.parts(client, reply) == seen.parts(client, seen.orders[client])
        assert seen.parts(client, reply) == {name for name in cards[client].components if name[:5] != "gate."}
        assert not any("gate" in name for held in reply.tensors.values() for name in held)
        assert not any("gate" in name for held in seen.orders[client].tensors.values() for name in held)
    for name, found in seen.outcome.state.parameters.items():
        owners = [client for client, reply in seen.replies.items() if name in reply.tensors["parameters"]]
        weights = [cards[client].examples for client in owners]
        sent = [seen.replies[client].tensors["parameters"][name].double() for client in owners]
        mean = sum(weight * value for weight, value in zip(weights, sent, strict=True)) / sum(weights)
        torch.testing.assert_close(found.double(), mean, rtol=1e-6, atol=1e-7)
    assert {name.split(".")[0] for name in seen.outcome.state.parameters} >= {"expert", "stem", "head", "projection"}


def test_a_part_does_not_depend_on_those_who_do_not_own_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """P1: another upload of client 1, which has no image and no digit."""

    def moved(number: int, client: int, reply: Reply) -> Reply:
        shifted = {name: value + 0.5 for name, value in reply.tensors["parameters"].items()}
        return replace(reply, tensors={"parameters": shifted}) if client == 1 else reply

    plain, other = Seen(monkeypatch), Seen(monkeypatch, moved)
    owned = plain.parts(1, plain.orders[1])
    names = plain.world.architecture.components(("audio", "image"), ("digit", "parity"))
    for name, value in plain.outcome.state.parameters.items():
        changed = not torch.equal(value, other.outcome.state.parameters[name])
        assert changed == (component_of(name, names) in owned), name


def test_a_part_that_nobody_asked_owns_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """P2: only clients 0, 3 and 4, without audio, are heard."""

    def lost(number: int, client: int, reply: Reply) -> Reply | None:
        return None if client in (1, 2) else reply

    seen = Seen(monkeypatch, lost)
    for name, value in seen.outcome.state.parameters.items():
        audio = "audio" in name
        assert torch.equal(value, seen.first[name]) == audio or name.endswith("key.bias"), name


def test_disjoint_clients_have_the_general_stack_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    """P3: on the wire; client 0 has images and digits, client 1 sounds and parities."""
    routes = Seen(monkeypatch).routes()
    assert routes[0] & routes[1] == GENERAL
    private = Seen(monkeypatch, method__share_general=False).routes()
    assert private[0] & private[1] == set()
    assert private[0] == routes[0] - GENERAL
    axes = Seen(monkeypatch, grid="axes").routes()
    stages = {"expert.input.general", "expert.output.general"}
    assert axes[0] & axes[1] == GENERAL - {"expert.general.general"} | stages
    alone = Seen(monkeypatch, grid="axes", method__share_general=False).routes()
    assert alone[0] & alone[1] == set()


def test_knowledge_is_shared_symmetrically_part_by_part_and_asymmetrically_in_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """P4: client 2 has more than client 0 has: all of client 0's route is in its own."""
    routes = Seen(monkeypatch).routes()
    assert routes[0] < routes[2]
    assert len(routes[0] & routes[2]) / len(routes[0]) == 1 > len(routes[0] & routes[2]) / len(routes[2])


def test_without_a_task_nothing_of_its_scope_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    """P17: client 4 has what client 3 has, but the task parity."""
    seen = Seen(monkeypatch)
    routes = seen.routes()
    assert all("parity" in part for part in routes[3] - routes[4])
    assert not any("parity" in part for part in routes[4])
    assert not any("parity" in name for name in seen.outcome.personal[4]["parameters"])
    assert any("parity" in name for name in seen.outcome.personal[3]["parameters"])


def shares(world: World) -> list[float]:
    """Return by client which part of the server's parameters it is sent."""
    state = world.method.begin(world.architecture.initial(3), world.federation.cards)
    total = sum(value.numel() for value in state.parameters.values())
    sent = [world.method.deploy(state, card).values() for card in world.federation.cards.values()]
    return [sum(value.numel() for value in held) / total for held in sent]


def test_only_who_owns_everything_is_sent_everything() -> None:
    """P8: every modality and task, and the stem of every data set."""
    assert [share == 1 for share in shares(build_world(experiment_of()))] == [False, False, True, False, False]
    everything = {"clients": 1, "modalities": ["image", "audio"], "tasks": ["digit", "parity"]}
    stems = {f"{part}_{name}": held for part in "ab" for name, held in EXPERTS["stems"].items()}
    changes: dict[str, Any] = {
        **dict.fromkeys(HOLDINGS),
        "data": {"name": "several", "parts": {"a": {"name": "avdigits"}, "b": {"name": "avdigits", "seed": 1}}},
        "scenario": {"groups": [{**everything, "domain": "a"}, {**everything, "domain": "b"}]},
    }
    several = build_world(experiment_of(**changes, model={"stems": stems}))
    assert all(0.5 < share < 1 for share in shares(several))


def test_a_client_trains_from_the_servers_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """P6: what it is sent in the second round is what the server had after the first.

    A parameter too few is an error, and so is one too many.
    """
    after = train(experiment_of()).state.parameters
    seen = Seen(monkeypatch, rounds=2)
    for order in seen.orders.values():
        assert all(torch.equal(value, after[name]) for name, value in order.tensors["parameters"].items())
    world = seen.world
    client = next(iter(world.federation.clients()))
    less = {k: v for k, v in seen.orders[0].tensors["parameters"].items() if not k.startswith("projection.weight")}
    personal = world.method.enrol(seen.first, client.card)
    trainer = Alone(world.method, world.federation, world.federation, world.loop().trainer)
    other = min(name for name in seen.first if name.startswith("head.parity."))
    more = {**seen.orders[0].tensors["parameters"], other: seen.first[other]}
    assert "head.parity" not in client.card.components
    for wrong, message in ((less, r"projection\.weight"), (more, r"client 0: 'head\.parity\.\w.*' belongs to none")):
        order = replace(seen.orders[0], tensors={"parameters": wrong})
        given = Assignment(0, order, personal)
        with pytest.raises(LookupError, match=message):
            list(trainer.train([(0,)], lambda _, given=given: given, Clock(0, 1, 1), 0))


def test_gates_stay_and_are_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """P7: they are each client's own, begin at zero, and clients with other gates send the same names."""
    seen = Seen(monkeypatch)
    for client, groups in seen.outcome.personal.items():
        card = seen.world.federation.cards[client]
        gates = groups["parameters"]
        assert {name.removesuffix(".logits") for name in gates} == {c for c in card.components if c[:5] == "gate."}
        assert all((value != 0).any() for value in gates.values())
        enrolled = seen.world.method.enrol(seen.first, card)["parameters"]
        assert all((value == 0).all() for value in enrolled.values())
    names = [set(seen.replies[client].tensors["parameters"]) for client in (0, 4)]
    assert names[0] == names[1]
    assert not torch.equal(*(seen.outcome.personal[k]["parameters"]["gate.image.digit.logits"] for k in (0, 4)))


def test_the_global_model_has_even_gates(tmp_path: Path) -> None:
    train(experiment_of(engine__server_test=True, engine__unimodal=True), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines} >= {"server_evaluation", "unimodal_evaluation"}


# ------------------------------------------------------------------------------------------------ reductions


def digests(outcome: Outcome) -> tuple[str, str]:
    return outcome.digest, outcome.personal_digest


def test_with_one_model_for_all_and_even_gates_it_is_fedavg_on_the_grid() -> None:
    """P9: with the same loss on both sides."""
    changes: dict[str, Any] = {**ALIKE, "rounds": 2, "model": {"gate": "uniform"}}
    plain = train(experiment_of(**changes, method__disentanglement="none"))
    assert digests(plain) == digests(train(experiment_of(**changes, method__name="fedavg")))
    world = build_world(experiment_of(**changes))
    assert isinstance(world.method, Averaging)
    same = Averaging(world.method.context, local=Disentangle(Disentangled(), 0.5, 5))
    found = digests(world.loop().run())
    assert digests(replace(world, method=same).loop().run()) == found != digests(plain)


@pytest.mark.parametrize("gate", ["learned", "uniform"])
def test_on_the_plain_network_it_is_multi_fedavg(gate: str) -> None:
    """P10: clients of different modalities and tasks."""
    changes: dict[str, Any] = {"rounds": 2, "grid": "module", "model": {"gate": gate}}
    here = train(experiment_of(**changes, method__disentanglement="none"))
    assert digests(here) == digests(train(experiment_of(**changes, method__name="multi-fedavg", method__alpha=1.0)))


def test_a_lone_client_trains_as_without_a_server() -> None:
    """P11: loss, gates and fresh optimisers included."""
    changes: dict[str, Any] = {
        "rounds": 3,
        "scenario__clients": 1,
        "scenario__modalities": {"name": "all"},
        "scenario__tasks": {"name": "all"},
        "scenario__partition": {"name": "iid"},
        "train__momentum": 0.5,
    }
    world = build_world(experiment_of(**changes))
    assert isinstance(world.method, Averaging)
    together = world.loop().run()
    alone = replace(world, method=replace(world.method, share=nothing)).loop().run().personal[0]["parameters"]
    own = {**together.state.parameters, **together.personal[0]["parameters"]}
    assert own.keys() == alone.keys()
    assert all(torch.equal(own[name], value) for name, value in alone.items())


@pytest.mark.parametrize("disentanglement", ["none", "orth_all_pairs"])
def test_with_nothing_shared_it_is_local_training(disentanglement: str) -> None:
    """P11: clients of different modalities and tasks, with the same network, loss and batches."""
    changes: dict[str, Any] = {"rounds": 2, "train__momentum": 0.5}
    here = build_world(experiment_of(**changes, method__disentanglement=disentanglement))
    local = build_world(experiment_of(**changes, method__name="local"))
    assert isinstance(here.method, Averaging)
    assert isinstance(local.method, Averaging)
    off = replace(here, method=replace(here.method, share=nothing)).loop().run()
    alone = replace(local, method=replace(local.method, local=here.method.local)).loop().run()
    assert not off.state.parameters
    assert len(off.personal) == 5
    assert digests(off) == digests(alone)
    assert off.personal[0]["parameters"].keys() > here.loop().run().personal[0]["parameters"].keys()


def test_without_local_steps_nothing_changes() -> None:
    """P12."""
    world = build_world(experiment_of())
    roster = world.federation.cards
    state = world.method.begin(world.architecture.initial(3), roster)

    def echo(wanted: Ask) -> Any:
        assert isinstance(wanted, Fold)
        for client, order in sorted(wanted.orders.items()):
            wanted.reducer.add(client, Reply(roster[client].examples, {"parameters": order.tensors["parameters"]}))
        return wanted.reducer.finish()

    after = drive(world.method.round(state, roster, Clock(0, 1, 1)), echo)
    assert after.parameters.keys() == state.parameters.keys()
    assert all(torch.equal(value, state.parameters[name]) for name, value in after.parameters.items())


# ------------------------------------------------------------------------------------------------ options


def fit_of(local: Disentangle, number: int, epochs: int = 1) -> Any:
    client: Client = next(iter(world().federation.clients()))
    recipe = Recipe(epochs=epochs)
    training = Training(client, Clock(0, number, 9), {}, {}, client.train, frozenset({"image"}), recipe)
    return local(training)


@cache
def world() -> World:
    return build_world(experiment_of())


@pytest.mark.parametrize(("number", "beta"), [(1, 0.1), (2, 0.2), (5, 0.5), (6, 0.5), (90, 0.5)])
def test_the_loss_is_let_in_gradually(number: int, beta: float) -> None:
    request = next(fit_of(Disentangle(Disentangled(), 0.5, 5), number))
    assert isinstance(request, Fit)
    assert float(request.extra["disentanglement"]["beta"]) == pytest.approx(beta)


def test_without_epochs_nothing_is_trained() -> None:
    with pytest.raises(StopIteration) as end:
        next(fit_of(Disentangle(Disentangled(), 0.5, 5), 1, epochs=0))
    assert end.value.value.numbers == {"steps": 0.0}


@pytest.mark.parametrize(
    ("options", "beta"), [({}, 0.5), ({"disentanglement": "hsic"}, 0.1), ({"disentanglement": "hsic", "beta": 2.0}, 2)]
)
def test_the_weight_depends_on_the_loss(options: dict[str, Any], beta: float) -> None:
    method = build_world(experiment_of(**{f"method__{key}": value for key, value in options.items()})).method
    assert isinstance(method, Averaging)
    assert isinstance(method.local, Disentangle)
    assert method.local.beta == beta


@pytest.mark.parametrize("variant", ["orth_all_pairs", "orth_paired", "hsic"])
def test_every_loss_trains_and_is_recorded(variant: str, tmp_path: Path) -> None:
    found = train(experiment_of(method__disentanglement=variant, method__warm_up=1), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    numbers = {line["client"]: line["numbers"] for line in lines if line["kind"] == "client"}
    assert all(0 < held["disentanglement"] <= 1 for held in numbers.values())
    assert {name for name in numbers[0] if name.startswith("norm.")} == {
        f"norm.image.{kind}" for kind in ("general.general", "image.general", "general.digit", "image.digit")
    }
    assert found.digest != train(experiment_of(method__disentanglement="none")).digest


@pytest.mark.parametrize(
    "changes", [{"model": {"name": "modular", "width": 8}}, {"model": {**EXPERTS, "expert_grid": "module"}}]
)
def test_a_model_without_paths_has_nothing_to_disentangle(changes: dict[str, Any]) -> None:
    wanted = tiny(**changes, method__name="disentafl")
    with pytest.raises(UserError, match=r"set model.name to 'experts'.* or disentanglement to none"):
        build_world(wanted)
    build_world(tiny(**changes, method__name="disentafl", method__disentanglement="none"))


@pytest.mark.parametrize(
    "option", [{"router": "nearest"}, {"quantize_bits": 4}, {"beta": -1}, {"warm_up": 0}, {"disentanglement": "all"}]
)
def test_wrong_options_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(option))):
        build_world(experiment_of(**{f"method__{key}": value for key, value in option.items()}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"affinity": {"patience": 2}},
            r"method.affinity.patience: 2 has no effect with method.router ownership: .* set method.router to affinity",
        ),
        (
            {"disentanglement": "none", "beta": 0.0},
            r"method.beta: 0.0 has no effect with method.disentanglement none: .* choose another disentanglement",
        ),
        ({"disentanglement": "none", "warm_up": 1}, r"method.warm_up: 1 has no effect with .*disentanglement none"),
    ],
)
def test_options_without_effect_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_world(experiment_of(**{f"method__{key}": value for key, value in options.items()}))


def test_options_that_say_the_usual_are_not_refused() -> None:
    """As a resolved experiment does; a weight of zero still records how entangled latents are."""
    usual = {"affinity": Affinity().model_dump(), "beta": None, "warm_up": 5, "disentanglement": "none"}
    for options in (usual, {"beta": 0.0}):
        experiment = experiment_of(method={"name": "disentafl", **options})
        build_world(experiment)
        build_world(config.parse(experiment.resolved))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_disentangling_lowers_the_cosines_between_types(seed: int, tmp_path: Path) -> None:
    """P15: compared with the same run without it, after the warm-up."""

    def left(beta: float) -> float:
        folder = tmp_path / str(beta)
        changes: dict[str, Any] = {**ALIKE, "train": {"optimizer": "adamw", "lr": 0.003, "batch_size": 64}}
        train(experiment_of(**changes, seed=seed, rounds=6, method__beta=beta), folder)
        lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
        last = [line["numbers"]["disentanglement"] for line in lines if line["kind"] == "client" and line["round"] == 6]
        return float(sum(last)) / len(last)

    assert left(0.5) < 0.9 * left(0.0)
