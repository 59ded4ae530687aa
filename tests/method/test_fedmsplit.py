"""FedMSplit (methods sheet DisentAFL, 6.4 and P12, P19)."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyfed.engine.drive import drive
from polyfed.engine.loop import Outcome
from polyfed.engine.resident import Resident
from polyfed.engine.tree import pack
from polyfed.experiment.world import build_world
from polyfed.method.averaging import Context
from polyfed.method.companion import Asked
from polyfed.method.fedmsplit import ANCHOR, FedMSplit, SplitState, fedmsplit
from polyfed.method.objective import supervised
from polyfed.method.protocol import Ask, Clock, Fit, Note, Order, Orders, Recipe, Reply
from polyfed.method.select import Everyone
from polyfed.method.similarity import Block, blocks_of, correlations, mixed, parts_of, shares
from polyfed.scenario.federation import Card
from tests.model.expert_examples import small
from tests.worlds import tiny, train

Models = Mapping[int, Mapping[str, Tensor]]
CLOCK = Clock(0, 1, 10)


def vectors(**values: float | list[float]) -> dict[str, Tensor]:
    """Name tensors: ``head_t=[1.0]`` is the only parameter of the component ``head.t``."""
    listed = {key: value if isinstance(value, list) else [value] for key, value in values.items()}
    return {f"{key.replace('_', '.')}.weight": torch.tensor(value) for key, value in listed.items()}


def components_in(model: Mapping[str, Tensor]) -> tuple[str, ...]:
    return tuple(sorted(name.removesuffix(".weight") for name in model))


def graph(models: Models, **options: Any) -> tuple[list[Block], list[Tensor]]:
    blocks = blocks_of(models, {client: components_in(model) for client, model in models.items()})
    weights = options.get("weights", dict.fromkeys(models, 1.0))
    return blocks, shares(blocks, models, options.get("similarity", "dot"), weights)


def after(models: Models, **options: Any) -> dict[int, dict[str, Tensor]]:
    return mixed(*graph(models, **options), models)


def portion(models: Models, component: str, **options: Any) -> Tensor:
    (found,) = [rows for block, rows in zip(*graph(models, **options), strict=True) if block.component == component]
    return found


def drawn(owners: Mapping[str, Collection[int]], seed: int = 0, size: int = 5) -> dict[int, dict[str, Tensor]]:
    """Random models: ``owners`` tells which clients have which component."""
    generator = torch.Generator().manual_seed(seed)
    models: dict[int, dict[str, Tensor]] = {}
    for component, clients in owners.items():
        for client in clients:
            models.setdefault(client, {})[f"{component}.weight"] = torch.randn(size, generator=generator)
    return models


OWNERS = {"head.p": [0, 1], "head.q": [0, 2], "head.r": [0, 1, 2, 3], "head.alone": [3]}

# -------------------------------------------------------------------------- blocks


def test_an_encoder_and_its_part_of_the_fusion_are_one_block() -> None:
    names = ["encoder.image.0.weight", "fusion.image.weight", "fusion.query.weight", "head.digit.weight"]
    names += ["unimodal.image.digit.weight"]
    components = ["encoder.image", "fusion.image", "fusion.query", "head.digit", "unimodal.image.digit"]
    assert parts_of(names, components) == {
        "encoder.image": ("encoder.image.0.weight", "fusion.image.weight"),
        "fusion.query": ("fusion.query.weight",),
        "head.digit": ("head.digit.weight",),
        "unimodal.image.digit": ("unimodal.image.digit.weight",),
    }


def test_blocks_of_the_plain_network_are_stems_stacks_and_stacks_with_heads() -> None:
    model = small(expert_grid="module")
    components = model.components(["image", "photo"], ["digit"])
    names = [name for name in model.initial(0) if name.startswith(tuple(f"{part}." for part in components))]
    found = parts_of(names, components)
    assert sorted(found) == ["input_stack.image", "output_stack.digit", "stem.image", "stem.photo"]
    assert {name.split(".")[0] for name in found["output_stack.digit"]} == {"output_stack", "head"}


def test_clients_have_a_block_in_common_only_if_it_holds_the_same_parameters() -> None:
    models = {0: vectors(encoder_a=1.0, fusion_a=2.0), 1: vectors(encoder_a=3.0)}
    blocks, _ = graph(models)
    assert sorted(block.owners for block in blocks) == [(0,), (1,)]
    assert after(models)[1]["encoder.a.weight"].item() == 3


# -------------------------------------------------------------------------- weights by hand


def test_two_clients_by_hand() -> None:
    """A = softmax of ((1, 2), (2, 4)), c = A: shares of oneself 1 / (1 + e^2) and e^4 / (1 + e^4)."""
    models = {0: vectors(head_t=1.0), 1: vectors(head_t=2.0)}
    alike = correlations(graph(models)[0][0], models, "dot")
    first, second = 1 / (1 + math.e), 1 / (1 + math.e**2)
    expected = torch.tensor([[first, 1 - first], [second, 1 - second]], dtype=torch.float64)
    torch.testing.assert_close(alike, expected)
    e2, e4 = math.e**2, math.e**4
    expected = torch.tensor([[1 / (1 + e2), e2 / (1 + e2)], [1 / (1 + e4), e4 / (1 + e4)]], dtype=torch.float64)
    torch.testing.assert_close(portion(models, "head.t"), expected)
    new = after(models)
    assert new[0]["head.t.weight"].item() == pytest.approx((1 + 2 * e2) / (1 + e2))
    assert new[1]["head.t.weight"].item() == pytest.approx((1 + 2 * e4) / (1 + e4))


def test_inner_products_are_over_all_of_a_block_and_divided_by_the_root_of_its_length() -> None:
    """A block of 3 + 1 numbers: <w_0, w_1> / 2 = (1 + 2 + 3 + 4 * 2) / 2 = 7."""
    models = {
        0: vectors(encoder_a=[1.0, 1.0, 1.0], fusion_a=[2.0]),
        1: vectors(encoder_a=[1.0, 2.0, 3.0], fusion_a=[4.0]),
    }
    (block,), _ = graph(models)
    row = correlations(block, models, "dot")[0]
    assert row[1].item() / row[0].item() == pytest.approx(math.exp(7 - 3.5))


def test_cosines_are_divided_by_the_temperature_and_do_not_go_by_size() -> None:
    models = {0: vectors(head_t=[1.0, 0.0]), 1: vectors(head_t=[0.0, 5.0]), 2: vectors(head_t=[3.0, 3.0])}
    row = correlations(graph(models)[0][0], models, "cosine")[0]
    assert (row[0] / row[1]).item() == pytest.approx(math.exp(10))
    assert (row[2] / row[1]).item() == pytest.approx(math.exp(10 * math.sqrt(0.5)))
    larger = {client: {name: value * (1 + client) for name, value in held.items()} for client, held in models.items()}
    torch.testing.assert_close(
        portion(larger, "head.t", similarity="cosine"), portion(models, "head.t", similarity="cosine")
    )


def test_blocks_of_zeros_resemble_all_alike() -> None:
    models = {0: vectors(head_t=[0.0, 0.0]), 1: vectors(head_t=[1.0, 2.0])}
    assert portion(models, "head.t", similarity="cosine")[0].tolist() == [0.5, 0.5]


def test_unequal_numbers_of_owners_give_unequal_weights_for_equal_blocks() -> None:
    """P19's example: client 0 weights R by 0.2941, 0.2647, 0.2647, 0.1765."""
    owners = {"head.p": [0, 1], "head.q": [0, 2], "head.r": [0, 1, 2, 3]}
    models: dict[int, dict[str, Tensor]] = {client: {} for client in range(4)}
    for component, clients in owners.items():
        for client in clients:
            models[client][f"{component}.weight"] = torch.ones(3)
    assert portion(models, "head.r")[0].tolist() == pytest.approx([0.2941, 0.2647, 0.2647, 0.1765], abs=5e-5)
    assert portion(models, "head.p")[0].tolist() == pytest.approx([10 / 19, 9 / 19])


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_equal_blocks_of_clients_with_equal_models_are_averaged_uniformly(similarity: str) -> None:
    model = vectors(encoder_a=[1.0, -2.0], head_t=[0.3])
    models = {client: dict(model) for client in range(3)}
    for component in ("encoder.a", "head.t"):
        expected = torch.full((3, 3), 1 / 3, dtype=torch.float64)
        torch.testing.assert_close(portion(models, component, similarity=similarity), expected)
    new = after(models, similarity=similarity)
    assert all(torch.equal(new[client][name], value) for client in models for name, value in model.items())


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), similarity=st.sampled_from(["dot", "cosine"]), weighed=st.booleans())
def test_shares_and_blocks_are_those_of_the_formula(seed: int, similarity: str, weighed: bool) -> None:
    """Held against the formulas of the sheet, written out as sums."""
    models = drawn(OWNERS, seed)
    weights = {client: float(client + 1) if weighed else 1.0 for client in models}

    def alike(name: str, k: int, to: int) -> float:
        def similar(other: int) -> float:
            one, two = models[k][name].double(), models[other][name].double()
            product = float(one @ two)
            if similarity == "dot":
                return product / math.sqrt(5)
            return product / float(one.norm() * two.norm()) / 0.1

        owners = [other for other in models if name in models[other]]
        return math.exp(similar(to)) / sum(math.exp(similar(other)) for other in owners)

    def correlated(k: int, to: int) -> float:
        common = [name for name in models[k] if name in models[to]]
        return sum(alike(name, k, to) for name in common) / len(common)

    new = after(models, similarity=similarity, weights=weights)
    for k, model in models.items():
        for name in model:
            owners = [client for client in models if name in models[client]]
            each = {client: alike(name, k, client) * correlated(k, client) * weights[client] for client in owners}
            expected = sum((each[client] * models[client][name].double() for client in owners), torch.zeros(5))
            torch.testing.assert_close(new[k][name].double(), expected / sum(each.values()), rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), order=st.permutations(range(4)))
def test_permuting_clients_permutes_the_result(seed: int, order: list[int]) -> None:
    models = drawn(OWNERS, seed)
    new, turned = after(models), after({order[client]: model for client, model in models.items()})
    for client, model in new.items():
        for name, value in model.items():
            torch.testing.assert_close(turned[order[client]][name], value)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), size=st.floats(0, 1e15), similarity=st.sampled_from(["dot", "cosine"]))
def test_rows_sum_to_one_whatever_the_size_of_blocks(seed: int, size: float, similarity: str) -> None:
    models = drawn(OWNERS, seed)
    models[1] = {name: value * size for name, value in models[1].items()}
    blocks, portions = graph(models, similarity=similarity)
    for block, rows in zip(blocks, portions, strict=True):
        assert rows.shape == (len(block.owners),) * 2
        assert (rows >= 0).all()
        assert rows.sum(1).tolist() == pytest.approx([1.0] * len(rows))


def test_a_client_that_nobody_with_weight_resembles_keeps_its_block() -> None:
    models = {0: vectors(head_t=1e10), 1: vectors(head_t=-1e10)}
    found = after(models, weights={0: 0.0, 1: 1.0})
    assert found[0]["head.t.weight"].item() == 1e10
    assert portion(models, "head.t", weights={0: 0.0, 1: 0.0}).tolist() == [[1, 0], [0, 1]]


def test_clients_without_a_common_block_exchange_nothing() -> None:
    models = drawn({"head.p": [0, 1], "head.q": [2, 3]})
    new = after(models)
    other = after({**models, 2: {name: value * 7 for name, value in models[2].items()}})
    assert all(torch.equal(new[client]["head.p.weight"], other[client]["head.p.weight"]) for client in (0, 1))
    assert not torch.equal(new[3]["head.q.weight"], other[3]["head.q.weight"])
    assert torch.equal(
        after(drawn({"head.alone": [3]}))[3]["head.alone.weight"], drawn({"head.alone": [3]})[3]["head.alone.weight"]
    )


# -------------------------------------------------------------------------- rounds by hand

CARDS = {
    client: Card(client, f"client {client}", modalities, ("t",), 10 * (client + 1), (*modalities, "head.t"))
    for client, modalities in enumerate([("encoder.a",), ("encoder.a",), ("encoder.b",)])
}
INITIAL = vectors(encoder_a=1.0, encoder_b=1.0, head_t=1.0)


def components(modalities: Collection[str], tasks: Collection[str]) -> tuple[str, ...]:
    return tuple(sorted([*modalities, *(f"head.{task}" for task in tasks)]))


def method_of(**options: Any) -> FedMSplit:
    return fedmsplit(Context(Recipe(), components), **options)


def held_round(
    method: FedMSplit, state: SplitState, trained: Mapping[int, Mapping[str, Tensor]], notes: list[Note] | None = None
) -> tuple[SplitState, Orders]:
    """Hold a round in which these clients reply what they trained; replies of all others are lost."""
    asked: dict[int, Order] = {}

    def exchange(wanted: Ask) -> dict[int, Reply]:
        asked.update(wanted.orders)
        return {client: Reply(CARDS[client].examples, {"parameters": held}) for client, held in trained.items()}

    after = drive(method.round(state, CARDS, CLOCK), exchange, (notes if notes is not None else []).append)
    return after, asked


TRAINED = {
    0: vectors(encoder_a=1.0, head_t=1.0),
    1: vectors(encoder_a=2.0, head_t=1.0),
    2: vectors(encoder_b=5.0, head_t=1.0),
}


def test_a_round_by_hand() -> None:
    """A of encoder.a as in the example of two clients; A of the head is 1/3 throughout.

    c_00 = (A_00 + 1/3) / 2, c_01 = (A_01 + 1/3) / 2: client 0 weighs its own encoder by A_00 c_00.
    """
    method, notes = method_of(), list[Note]()
    state, orders = held_round(method, method.begin(INITIAL, CARDS), TRAINED, notes)
    own = 1 / (1 + math.e)
    mine, others = own * (own + 1 / 3), (1 - own) * (1 - own + 1 / 3)
    share = mine / (mine + others)
    assert state.personal[0]["encoder.a.weight"].item() == pytest.approx(share + 2 * (1 - share))
    assert state.personal[2] == {"encoder.b.weight": 5, "head.t.weight": 1}
    assert {name: value.item() for name, value in state.parameters.items()} == {
        "encoder.a.weight": 1.5,
        "encoder.b.weight": 5,
        "head.t.weight": 1,
    }
    assert all(ANCHOR not in order.tensors for order in orders.values())
    (told,) = notes
    assert sorted(told.numbers) == ["self_weight.encoder", "self_weight.head"]
    head = (own + 1 / 3) / 2 / ((own + 1 / 3) / 2 + (1 - own + 1 / 3) / 2 + 1 / 3)
    assert told.clients[0]["self_weight"] == pytest.approx((share + head) / 2)


def test_every_client_is_sent_and_deployed_its_own_model_with_the_average_as_its_anchor() -> None:
    method = method_of()
    state, _ = held_round(method, method.begin(INITIAL, CARDS), TRAINED)
    _, orders = held_round(method, state, TRAINED)
    for client, card in CARDS.items():
        assert method.deploy(state, card) == state.personal[client]
        assert orders[client].tensors["parameters"] == state.personal[client]
        assert orders[client].tensors[ANCHOR] == {name: state.parameters[name] for name in state.personal[client]}
    newcomer = replace(CARDS[0], id=7)
    assert method.deploy(state, newcomer) == {name: state.parameters[name] for name in TRAINED[0]}
    personal = method_of(anchor="personal")
    _, orders = held_round(personal, state, TRAINED)
    assert all(set(order.tensors) == {"parameters"} for order in orders.values())


def test_who_does_not_take_part_keeps_its_blocks_and_is_no_neighbour() -> None:
    method = method_of()
    state, _ = held_round(method, method.begin(INITIAL, CARDS), TRAINED)
    alone, _ = held_round(method, state, {0: vectors(encoder_a=-3.0, head_t=-4.0)})
    assert alone.personal[0] == {"encoder.a.weight": -3, "head.t.weight": -4}
    assert alone.personal[1] is state.personal[1]
    assert alone.personal[2] is state.personal[2]
    assert alone.parameters["encoder.b.weight"] is state.parameters["encoder.b.weight"]
    assert alone.parameters["encoder.a.weight"].item() == -3


def test_blocks_that_a_client_did_not_train_this_time_stay_its_own() -> None:
    method = method_of()
    state, _ = held_round(method, method.begin(INITIAL, CARDS), TRAINED)
    later, _ = held_round(method, state, {0: vectors(head_t=-4.0)})
    assert later.personal[0] == {**state.personal[0], "head.t.weight": -4}


def test_clients_can_count_by_their_samples() -> None:
    method = method_of(weigh_examples=True)
    equal = {client: vectors(**{CARDS[client].modalities[0].replace(".", "_"): 0.0, "head_t": 0.0}) for client in CARDS}
    equal[1]["encoder.a.weight"] = torch.tensor([1e-20])
    state, _ = held_round(method, method.begin(INITIAL, CARDS), equal)
    assert state.parameters["encoder.a.weight"].item() == pytest.approx(1e-20 * 20 / 30)
    assert state.personal[0]["encoder.a.weight"].item() == pytest.approx(1e-20 * 20 / 30)
    state, _ = held_round(method_of(), method.begin(INITIAL, CARDS), equal)
    assert state.personal[0]["encoder.a.weight"].item() == pytest.approx(1e-20 / 2)


# -------------------------------------------------------------------------- local training


def fit_of(**options: Any) -> tuple[Fit, float]:
    """A client's fit where its own model is 2 above the average everywhere, and what is added to its loss at first."""
    world = build_world(split(**{f"method__{key}": value for key, value in options.items()}))
    client = world.federation.client(2)
    card = replace(client.card, components=world.architecture.components(client.card.modalities, client.card.tasks))
    initial = world.architecture.initial(0)
    own = {name: value + 2 for name, value in world.method.deploy(SplitState(initial, {}, {}), card).items()}
    state = SplitState(initial, {card.id: own}, {})
    assert isinstance(world.method, FedMSplit)
    order = world.method.orders(state, {card.id: card}, {card.id: frozenset(card.modalities)})[card.id]
    request = next(world.method.steps["train"](order, {}, client, CLOCK))
    assert isinstance(request, Fit)
    assert same(request.start, own)
    model = Resident(world.architecture.assemble(card.components), world.architecture.tasks)
    model.load(own)
    batch = client.train.batch()
    added = request.objective(model, batch, request.extra)[0] - supervised(model, batch, {})[0]
    return request, added.item() / sum(value.numel() for value in own.values())


def test_the_proximal_term_is_the_squared_distance_from_the_average_and_not_halved() -> None:
    request, added = fit_of(proximal=0.25)
    torch.testing.assert_close({name: value + 2 for name, value in request.extra["anchor"].items()}, request.start)
    assert added == pytest.approx(0.25 * 4, rel=1e-4)


def test_the_anchor_may_be_what_the_client_starts_from() -> None:
    request, added = fit_of(proximal=0.25, anchor="personal")
    assert same(request.extra["anchor"], request.start)
    assert added == 0
    request, added = fit_of(proximal=0.0)
    assert not request.extra
    assert added == 0


def test_the_anchor_decides_what_the_proximal_term_is_about() -> None:
    """One round from equal values is the same; then personal and average models differ."""
    runs = {anchor: ended(method__anchor=anchor, method__proximal=1.0, rounds=2) for anchor in ("average", "personal")}
    assert runs["average"] != runs["personal"]
    first = {anchor: ended(method__anchor=anchor, method__proximal=1.0, rounds=1) for anchor in ("average", "personal")}
    assert first["average"] == first["personal"]
    weak, strong = ({"method__proximal": value, "rounds": 2} for value in (0.0, 1.0))
    assert ended(**weak) != ended(**strong)


# -------------------------------------------------------------------------- runs


def split(**changes: Any) -> Any:
    return tiny(**{"method__name": "fedmsplit", "engine__workers": 1, **changes})


def ended(**changes: Any) -> str:
    return train(split(**changes)).digest


DISJOINT = {
    "scenario__clients": 2,
    "scenario__modalities__sets": [["image"], ["audio"]],
    "scenario__tasks__sets": [["digit"], ["parity"]],
}


SINGLE = {
    "scenario__clients": 1,
    "scenario__modalities__sets": [["audio", "image"]],
    "scenario__tasks__sets": [["digit", "parity"]],
}


def models_of(outcome: Outcome, experiment: Any) -> dict[int, dict[str, Tensor]]:
    world = build_world(experiment)
    found = {}
    for client, card in world.federation.cards.items():
        whole = replace(card, components=world.architecture.components(card.modalities, card.tasks))
        personal = outcome.personal.get(client, {}).get("parameters", {})
        found[client] = {**world.method.deploy(outcome.state, whole), **personal}
    return found


def test_without_a_proximal_term_and_common_blocks_it_is_local_training() -> None:
    """P19; two clients of disjoint modalities and tasks."""
    for changes in (DISJOINT, SINGLE):
        one, other = (
            models_of(train(experiment), experiment)
            for experiment in (split(**changes, method__proximal=0.0), split(**changes, method__name="local"))
        )
        for client, model in one.items():
            assert same(model, other[client])


def test_disjoint_clients_know_nothing_of_each_other() -> None:
    def spoilt(number: int, client: int, reply: Reply) -> Reply:
        tensors = {name: value + 1 for name, value in reply.tensors["parameters"].items()}
        return replace(reply, tensors={"parameters": tensors}) if client == 1 else reply

    experiment = split(**DISJOINT)
    one, other = train(experiment), train(experiment, deliver=spoilt)
    assert same(one.state.personal[0], other.state.personal[0])
    assert not same(one.state.personal[1], other.state.personal[1])


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


WAYS: Mapping[str, Mapping[str, Any]] = {
    "cosine, in part": {"method__similarity": "cosine", "select__name": "random", "select__clients": 2},
    "personal": {"method__anchor": "personal", "method__weigh_examples": True},
    "pow-d": {"select__name": "pow-d", "select__clients": 2, "select__candidates": 3},
    "divfl": {"select__name": "divfl", "select__clients": 2, "select__fresh": True},
    "represented": {
        "select__name": "divfl",
        "select__clients": 2,
        "select__shares": "represented",
        "method__weigh_examples": True,
    },
    "bms": {"select__name": "bms", "select__clients": 2, "select__threshold": 0.5, "model__fusion__name": "attention"},
    "experts": {"model": {"name": "experts", "expert_grid": "module", "width": 6, "heads": 2, "layers": 1}},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_continues_with_the_same_bits(way: str, tmp_path: Path) -> None:
    whole = train(split(**WAYS[way]))
    train(split(**WAYS[way], rounds=2), tmp_path)
    resumed = train(split(**WAYS[way]), tmp_path, resume=True)
    assert resumed.digest == whole.digest
    assert whole.state.personal


def test_selections_compare_how_far_clients_went_from_their_own_models() -> None:
    """What a selector is told of a client's parameters is the shared model moved as the client moved its own."""
    told: dict[int, Mapping[str, Tensor]] = {}

    class Told:
        counted = ()

        def add(self, client: int, reply: Reply) -> None:
            told[client] = reply.tensors["parameters"]

        def finish(self) -> Mapping[str, Any]:
            return {}

    class Curious(Everyone):
        def watch(self, held: Any, asked: Asked) -> Told:
            assert asked.parameters["encoder.a.weight"].item() == 1.5
            return Told()

    state, _ = held_round(method_of(), method_of().begin(INITIAL, CARDS), TRAINED)
    curious = fedmsplit(Context(Recipe(), components, Curious()))
    before = state.personal[0]["encoder.a.weight"].item()
    held_round(curious, state, {0: vectors(encoder_a=before + 0.25, head_t=1.0)})
    assert told[0]["encoder.a.weight"].item() == pytest.approx(1.75)


# -------------------------------------------------------------------------- hostile replies


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10**6), size=st.sampled_from([1e2, 1e10, 1e30]), similarity=st.sampled_from(["dot", "cosine"])
)
def test_a_huge_block_overflows_nothing_and_stays_within_what_was_sent(seed: int, size: float, similarity: str) -> None:
    models = drawn(OWNERS, seed)
    models[1] = {name: value * size for name, value in models[1].items()}
    new = after(models, similarity=similarity)
    for client, model in new.items():
        for name, value in model.items():
            sent = torch.stack([held[name] for held in models.values() if name in held])
            slack = 1e-5 * sent.abs().max()
            assert torch.isfinite(value).all(), (client, name)
            assert (value >= sent.min(0).values - slack).all()
            assert (value <= sent.max(0).values + slack).all()
    untouched = after(drawn(OWNERS, seed), similarity=similarity)
    assert torch.equal(new[3]["head.alone.weight"], untouched[3]["head.alone.weight"])


DELIVERIES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "large": lambda value: value * 50,
    "absurd": lambda value: value * 1e6,
    "not a number": lambda value: value * math.nan,
}


@pytest.mark.parametrize("damage", DELIVERIES)
def test_a_run_with_a_hostile_client_stays_finite(damage: str) -> None:
    def hostile(number: int, client: int, reply: Reply) -> Reply:
        if client:
            return reply
        sent = {name: DELIVERIES[damage](value) for name, value in reply.tensors["parameters"].items()}
        return replace(reply, tensors={"parameters": sent})

    outcome = train(split(), deliver=hostile)
    assert all(torch.isfinite(value).all() for value in pack(outcome.state)[1].values())
    refused = {(one["round"], one["client"]) for one in outcome.progress.refused}
    assert ((1, 0) in refused) == (0 not in outcome.state.personal) == (damage != "large")


def test_the_global_model_is_the_average() -> None:
    experiment = split(rounds=2)
    outcome = train(experiment)
    world = build_world(experiment)
    modalities, tasks = tuple(world.federation.modalities), tuple(world.federation.tasks)
    card = Card(-1, "server", modalities, tasks, 0, world.architecture.components(modalities, tasks))
    assert same(world.method.deploy(outcome.state, card), outcome.state.parameters)
