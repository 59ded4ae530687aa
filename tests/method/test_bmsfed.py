"""BMSFed, FedProto and PMR as methods: what travels, what is kept, reductions, and odd clients (methods sheet, 7)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polyfed.data.columns import TensorColumn
from polyfed.data.samples import Table
from polyfed.data.schema import Modality, Task
from polyfed.engine.loop import Loop, Outcome, Plan
from polyfed.engine.trainer import Pending, Trainer
from polyfed.errors import UserError
from polyfed.experiment.world import build_world
from polyfed.method.averaging import Averaging, Context
from polyfed.method.balance import BALANCE, RATIOS, portrait
from polyfed.method.bmsfed import bmsfed, fedproto, pmr
from polyfed.method.enhancement import PROTOTYPES, Enhanced
from polyfed.method.global_prototypes import COUNTS, ClassMeans
from polyfed.method.protocol import Clock, Cohort, Conversation, Embed, Fit, Groups, Recipe, Reply
from polyfed.method.prototypes import class_means, class_sums, known, nearest
from polyfed.method.select import Draft, Everyone
from polyfed.method.training import Training
from polyfed.model.encoders import FITTING
from polyfed.model.modular import modular
from polyfed.model.size import feature_widths
from polyfed.rng import torch_generator
from polyfed.scenario.federation import Card, Cards, Client, Federation, Roster
from tests.method.portraits import found_with, ratio_in
from tests.worlds import tiny, train

BOTH: dict[str, Any] = {
    "scenario__modalities": {"name": "all"},
    "scenario__tasks": {"name": "all"},
    "data__tasks": ["digit"],
}
"""All clients have both modalities and one task."""

CLASSES, WIDTH = 10, 8


def lines(folder: Path, kind: str, step: str | None = None) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind and step in (None, line.get("step"))]


def run(method: str, folder: Path | None = None, **changes: Any) -> Outcome:
    return train(tiny(method__name=method, **changes), folder)


@dataclass(frozen=True)
class Fixed(Everyone):
    """Asks given clients for given modalities, round by round, and sends them their whole models."""

    cohorts: Sequence[Mapping[int, set[str]]]

    @property
    def whole(self) -> bool:
        return True

    def choose(self, draft: Draft, memory: Groups, roster: Roster, clock: Clock) -> Conversation[tuple[Cohort, Groups]]:
        yield from ()
        cohort = self.cohorts[clock.round - 1]
        return {client: frozenset(active) for client, active in cohort.items()}, memory


def run_fixed(
    method: str, cohorts: Sequence[Mapping[int, set[str]]], folder: Path | None = None, **changes: Any
) -> list[Any]:
    """Return the states after each round, the first values before."""
    world = build_world(tiny(**{"method__name": method, **BOTH, **changes, "rounds": len(cohorts)}))
    assert isinstance(world.method, Averaging)
    context = replace(world.method.context, select=Fixed(cohorts))
    keeping = Keeping(replace(world.method, context=context))
    if folder is not None:
        folder.mkdir()
    outcome = replace(world, method=keeping).loop(folder).run()
    return [*keeping.states, outcome.state]


class Keeping:
    """A method that keeps the state before each round."""

    def __init__(self, method: Any) -> None:
        self._method = method
        self.states: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    def round(self, state: Any, *arguments: Any) -> Any:
        self.states.append(state)
        return self._method.round(state, *arguments)


# -------------------------------------------------------------------------- 15: bytes


def test_beside_the_model_travel_prototypes_class_counts_and_the_ratio(tmp_path: Path) -> None:
    """Property 15, by the byte meter: 4 * (2 * Y * d) down and 4 * (2 * Y * d + Y + 1) up."""
    run("bmsfed", tmp_path, **BOTH, rounds=2)
    run("fedavg", tmp_path / "fedavg", **BOTH, rounds=2)
    plain = lines(tmp_path / "fedavg", "client")[0]["bytes"]
    for line in lines(tmp_path, "client", "train"):
        down, up = ({**line["bytes"][way]} for way in ("down", "up"))
        assert down.pop("prototypes") == 4 * 2 * CLASSES * WIDTH
        assert [up.pop(part) for part in (PROTOTYPES, COUNTS, BALANCE)] == [4 * 2 * CLASSES * WIDTH, 4 * CLASSES, 4]
        for found, way in ((down, "down"), (up, "up")):
            assert {**found, "envelope": 0} == {**plain[way], "envelope": 0}
    for line in lines(tmp_path, "client", "start"):
        assert "prototypes" not in line["bytes"]["down"]
        assert set(line["bytes"]["up"]) == {PROTOTYPES, COUNTS, BALANCE, "envelope"}


def test_a_uni_modal_participant_is_sent_everything_and_sends_what_it_trained(tmp_path: Path) -> None:
    """And prototypes of both modalities, and a fresh ratio (methods sheet, 2.4)."""
    run_fixed("bmsfed", [{0: {"audio"}, 1: {"audio", "image"}}], tmp_path / "run")
    single, multi = (line["bytes"] for line in lines(tmp_path / "run", "client", "train"))
    assert {**single["down"], "envelope": 0} == {**multi["down"], "envelope": 0}
    left_out = {"encoder.image", "fusion.image"}
    expected = {part: size for part, size in multi["up"].items() if part not in left_out}
    assert {**single["up"], "envelope": 0} == {**expected, "envelope": 0}


def test_a_client_with_one_modality_sends_no_ratio_and_pmr_sends_the_model_alone(tmp_path: Path) -> None:
    run("bmsfed", tmp_path / "bmsfed", rounds=1)
    for line in lines(tmp_path / "bmsfed", "client"):
        assert (BALANCE in line["bytes"]["up"]) == (len(line["modalities"]) == 2)
        assert line["bytes"]["up"][PROTOTYPES] > 0
    run("pmr", tmp_path / "pmr", rounds=1)
    run("fedavg", tmp_path / "fedavg", rounds=1)
    left, right = (lines(tmp_path / name, "client") for name in ("pmr", "fedavg"))
    assert [{**line["bytes"]["down"]} for line in left] == [{**line["bytes"]["down"]} for line in right]


# -------------------------------------------------------------------------- 11 and 12: aggregation


def test_who_did_not_train_an_encoder_does_not_count_in_it() -> None:
    """Property 11: and if nobody trained it, it stays as it was, bit for bit; the head is everybody's."""
    before, after = run_fixed("bmsfed", [{0: {"audio"}, 1: {"audio"}}])
    for name, value in before.parameters.items():
        assert torch.equal(value, after.parameters[name]) == name.startswith(("encoder.image.", "fusion.image.")), name


def test_each_encoder_is_the_mean_over_those_who_trained_it() -> None:
    """Property 12: weights by samples over the participants of that modality, and over all for the head."""
    sent: dict[int, Reply] = {}
    world = build_world(tiny(method__name="bmsfed", **BOTH, rounds=1))
    assert isinstance(world.method, Averaging)
    cohort = {0: {"audio"}, 1: {"audio", "image"}, 3: {"image"}}
    method = replace(world.method, context=replace(world.method.context, select=Fixed([cohort])))

    def kept(number: int, client: int, reply: Reply) -> Reply:
        if "parameters" in reply.tensors:
            sent[client] = reply
        return reply

    outcome = replace(world, method=method).loop(deliver=kept).run()
    for name, value in outcome.state.parameters.items():
        holders = [reply for reply in sent.values() if name in reply.tensors["parameters"]]
        assert len(holders) == (3 if name.startswith("head") or name == "fusion.bias" else 2), name
        total = sum(reply.examples for reply in holders)
        mean = sum(reply.examples / total * reply.tensors["parameters"][name].double() for reply in holders)
        torch.testing.assert_close(value.double(), mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batching", ["on", "off"])
@pytest.mark.parametrize("method", ["bmsfed", "fedproto"])
@pytest.mark.parametrize("several", [False, True])
def test_without_enhancement_it_is_fedavg_bit_for_bit(method: str, batching: str, several: bool) -> None:
    """With random selection: neither the start-up exchange nor what is measured changes what is drawn."""
    changes: dict[str, Any] = {"engine__batching": batching, "select__name": "random", "select__clients": 3}
    changes |= {"train__epochs": 2, "train__momentum": 0.9} | ({} if several else BOTH)
    plain = run("fedavg", **changes).state.parameters
    found = run(method, method__enhancement=0, **changes).state.parameters
    assert all(torch.equal(value, found[name]) for name, value in plain.items())
    enhanced = run(method, method__enhancement=1, **changes).state.parameters
    assert not all(torch.equal(value, enhanced[name]) for name, value in plain.items())


# -------------------------------------------------------------------------- global prototypes and ratios


def test_global_prototypes_are_the_means_of_all_samples() -> None:
    """Property 1: after the start-up exchange all clients use the first model, and so they pool exactly."""
    world = build_world(tiny(method__name="bmsfed", rounds=1, train__lr=1e-12))
    state = world.loop().run().state
    trainer = Trainer(world.architecture)
    held: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for client in world.federation.clients():
        parts = client.card.components
        values = {k: v for k, v in world.architecture.initial(3).items() if k.startswith(tuple(f"{p}." for p in parts))}
        features = trainer.embed(client.card, Embed(values, client.train, frozenset(client.card.modalities)))
        for modality, found in features.items():
            for task in client.card.tasks:
                held.setdefault(f"{modality}.{task}", []).append((found, client.train.target(task)))
    prototypes = state.companion[PROTOTYPES]
    assert set(held) == set(prototypes)
    for key, pairs in held.items():
        found, labels = torch.cat([part for part, _ in pairs]), torch.cat([label for _, label in pairs])
        for label, prototype in enumerate(prototypes[key]):
            torch.testing.assert_close(prototype, found[labels == label].mean(0), rtol=1e-4, atol=1e-5)


def reply_of(means: Tensor, counts: Tensor, examples: int = 10) -> Reply:
    return Reply(examples, {PROTOTYPES: {"image.digit": means}, COUNTS: {"digit": counts}})


def test_classes_nobody_reports_keep_their_prototype_and_counts_are_bounded() -> None:
    """A client cannot count more samples than its card says, nor fewer than none."""
    roster = {k: Card(k, f"client {k}", ("image",), ("digit",), 10) for k in range(3)}
    before = torch.tensor([[7.0], [7.0], [7.0], [0.0]])
    reducer = ClassMeans({"image.digit": before}, roster)
    reducer.add(0, reply_of(torch.tensor([[1.0], [2.0], [0.0], [0.0]]), torch.tensor([4.0, 1e30, 9.0, 5.0])))
    reducer.add(1, reply_of(torch.tensor([[3.0], [8.0], [5.0], [0.0]]), torch.tensor([4.0, 5.0, -3.0, 0.0])))
    found = reducer.finish()[PROTOTYPES]["image.digit"]
    assert found.flatten().tolist() == [2.0, 4.0, 7.0, 0.0]
    assert reducer.counted == (0, 1)
    assert before.flatten().tolist() == [7.0, 7.0, 7.0, 0.0]


def ratios_of(outcome: Outcome) -> dict[int, float]:
    return {client: float(groups[BALANCE][RATIOS]) for client, groups in outcome.personal.items() if BALANCE in groups}


def test_only_participants_refresh_the_ratio_they_remember(tmp_path: Path) -> None:
    """Property 13; and what is remembered survives a stop."""
    select = {"select__name": "random", "select__clients": 2, "method__ratio": "client", **BOTH}
    found = {number: ratios_of(run("bmsfed", **select, rounds=number)) for number in (1, 2, 3)}
    run("bmsfed", tmp_path, **select, rounds=3)
    for number in (2, 3):
        took_part = {line["client"] for line in lines(tmp_path, "client", "train") if line["round"] == number}
        assert took_part < set(range(4))
        before, after = found[number - 1], found[number]
        assert set(after) == set(before) | took_part
        assert {client for client in before if after[client] != before[client]} <= took_part
    run("bmsfed", tmp_path / "parts", **select, rounds=1)
    resumed = train(tiny(method__name="bmsfed", **select, rounds=3), tmp_path / "parts", resume=True)
    assert ratios_of(resumed) == found[3]


def test_ratios_in_batches_are_not_remembered() -> None:
    assert not any(BALANCE in groups for groups in run("bmsfed", **BOTH, rounds=1).personal.values())


@pytest.mark.parametrize("coefficient", ["const", "clip"])
def test_client_ratios_go_with_uni_modal_participation(coefficient: str, tmp_path: Path) -> None:
    cohorts = [{0: {"audio"}, 1: {"audio", "image"}}, {0: {"audio", "image"}, 1: {"image"}}]
    changes: dict[str, Any] = {"method__ratio": "client", "method__coefficient": coefficient}
    run_fixed("bmsfed", cohorts, tmp_path / "run", **changes)
    for line in lines(tmp_path / "run", "client", "train"):
        alone = len(line["modalities"]) == 1
        assert not alone or line["numbers"]["enhancement.digit"] > 1  # in full, whatever the coefficient


def test_a_ratio_is_that_of_nearest_prototype_accuracies() -> None:
    world = build_world(tiny(**BOTH))
    client, trainer = world.federation.client(1), Trainer(world.architecture)
    start = world.architecture.initial(5)
    training = Training(client, Clock(0, 1, 1), start, start, client.train, frozenset(("audio",)), Recipe())
    work = portrait(training, world.federation.tasks, start)
    request = next(work)
    assert isinstance(request, Embed) and request.active == {"audio", "image"}
    features = trainer.embed(client.card, request)
    labels = client.train.target("digit")
    right = {}
    for name, values in features.items():
        means = class_means(*class_sums(values, labels, torch.ones_like(labels, dtype=torch.bool), CLASSES))
        right[name] = int((nearest(values, means) == labels).sum())
    with pytest.raises(StopIteration) as end:
        work.send(features)
    expected = (right["audio"] + 1) / (right["image"] + 1)
    assert end.value.value.ratios.tolist() == pytest.approx([expected])
    assert end.value.value.counts["digit"].tolist() == torch.bincount(labels, minlength=CLASSES).tolist()


@pytest.mark.parametrize("by_client", [False, True])
def test_prototypes_and_ratio_in_a_reply_are_those_of_the_trained_model(by_client: bool) -> None:
    """Not of the received one; who trained one modality joins it with the other as received."""
    sent: dict[int, Reply] = {}
    ratio = "client" if by_client else "batch"
    changes: dict[str, Any] = {**BOTH, "rounds": 1, "train__lr": 0.2, "train__epochs": 3, "method__ratio": ratio}
    world = build_world(tiny(method__name="bmsfed", **changes))
    assert isinstance(world.method, Averaging)
    cohort = {0: {"audio"}, 1: {"audio", "image"}, 3: {"image"}}
    method = replace(world.method, context=replace(world.method.context, select=Fixed([cohort])))

    def kept(number: int, client: int, reply: Reply) -> Reply:
        if "parameters" in reply.tensors:
            sent[client] = reply
        return reply

    replace(world, method=method).loop(deliver=kept).run()
    received = world.architecture.initial(world.experiment.seed)
    assert sent.keys() == cohort.keys()
    for client, reply in sent.items():
        before = found_with(world, client, received)
        after = found_with(world, client, {**received, **reply.tensors["parameters"]})
        assert ratio_in(reply) == pytest.approx(after.ratio) != pytest.approx(before.ratio)
        for name, means in after.means.items():
            told = reply.tensors[PROTOTYPES][f"{name}.digit"]
            torch.testing.assert_close(told, means)
            assert torch.allclose(told, before.means[name], atol=1e-3) == (name not in cohort[client])


# -------------------------------------------------------------------------- with balanced selection


def test_first_updates_differ_and_only_participants_renew_theirs(tmp_path: Path) -> None:
    """Properties 10 and 13: the whole system, two of four clients a round."""
    bms: dict[str, Any] = {"select__name": "bms", "select__clients": 2, "select__threshold": 1.0, **BOTH}
    one, two = (run("bmsfed", tmp_path / str(number), **bms, rounds=number).state.selection for number in (1, 2))
    for matrix in one["squares"].values():
        off_diagonal = ~torch.eye(4, dtype=torch.bool)
        assert (matrix[off_diagonal] > 0).all() and (matrix.diagonal() == 0).all()
    took_part = {line["client"] for line in lines(tmp_path / "2", "client", "train") if line["round"] == 2}
    others = [client for client in range(4) if client not in took_part]
    assert len(others) == 2
    changed = False
    for group in ("squares", "behind"):
        for name, before in one[group].items():
            after = two[group][name]
            left, right = (value[others][:, others] if value.dim() == 2 else value[others] for value in (before, after))
            assert torch.equal(left, right), (group, name)
            changed |= not torch.equal(before, after)
    assert changed


# -------------------------------------------------------------------------- PMR


@pytest.mark.parametrize("batching", ["on", "off"])
def test_pmr_trains_every_epoch_with_prototypes_found_anew(batching: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one epoch it is one fit with the client's own prototypes under the received model."""
    seen: dict[int, list[Any]] = {}
    answer = Trainer.answer

    def noted(self: Trainer, pending: Sequence[Pending]) -> Any:
        found = answer(self, pending)
        for one, told in zip(pending, found, strict=True):
            seen.setdefault(one.card.id, []).append((one.request, told))
        return found

    monkeypatch.setattr(Trainer, "answer", noted)
    for epochs in (1, 2):
        seen.clear()
        outcome = run("pmr", **BOTH, rounds=1, train__epochs=epochs, engine__batching=batching, engine__workers=1)
        for exchanges in seen.values():
            assert [type(request) for request, _ in exchanges] == [Embed, Fit] * epochs
            for (embedding, features), (fit, _) in zip(exchanges[::2], exchanges[1::2], strict=True):
                assert fit.recipe.epochs == 1
                assert all(torch.equal(fit.start[name], value) for name, value in embedding.parameters.items())
                labels = fit.data.target("digit")
                everyone = torch.ones_like(labels, dtype=torch.bool)
                for name, values in features.items():
                    means = class_means(*class_sums(values, labels, everyone, CLASSES))
                    assert torch.equal(fit.extra[PROTOTYPES][f"{name}.digit"], means)
        assert outcome.progress.round == 1


def test_pmr_trains_as_usual_after_its_rounds() -> None:
    plain = run("fedavg", rounds=2).digest
    assert run("pmr", method__rounds=0, rounds=2).digest == plain
    assert run("pmr", method__rounds=1, rounds=2).digest != plain
    assert run("pmr", method__rounds=1, rounds=1).digest == run("pmr", method__rounds=2, rounds=1).digest


# -------------------------------------------------------------------------- odd clients

METHODS = {"bmsfed": bmsfed, "fedproto": fedproto, "pmr": pmr}
every_method = pytest.mark.parametrize("method", METHODS)
SIZES = (40, 0, 30, 25, 12)


def odd(tasks: Mapping[int, tuple[str, ...]] | None = None) -> Federation:
    """Clients with all samples, with none, with a class missing, with gaps in a modality, and with one modality."""
    generator = torch_generator("odd clients")
    rows = sum(SIZES)
    labels = torch.randint(3, (rows,), generator=generator)
    labels[40:70].clamp_(max=1)
    inputs = {name: torch.randn(rows, 4, generator=generator) + labels[:, None] for name in ("a", "b", "c")}
    size = torch.randn(rows, generator=generator)
    table = Table(
        {name: TensorColumn(values) for name, values in inputs.items()},
        {"label": TensorColumn(labels), "size": TensorColumn(size)},
    )
    everything = table.everything()
    names = [("a", "b", "c"), ("a", "b"), ("a", "b"), ("a", "b", "c"), ("b",)]
    held = [(tasks or {}).get(k, ("label", "size")) for k in range(len(SIZES))]

    def load(card: Card) -> Client:
        client = card.id
        start = sum(SIZES[:client])
        samples = everything.span(start, start + SIZES[client]).only(names[client], held[client])
        if client == 3:
            samples = samples.masked({"b": torch.arange(SIZES[3]) % 2 == 0, "c": torch.zeros(SIZES[3]).bool()})
        empty = samples.span(0, 0)
        return Client.of(card, samples, empty, empty)

    modalities = {name: Modality(name, "vector", (4,)) for name in inputs}
    kinds = {"label": Task("label", "classification", classes=3), "size": Task("size", "regression")}
    cards = Cards(names, held, np.array(SIZES), {})
    return Federation(modalities, kinds, cards, load)


def run_odd(method: str, federation: Federation, batching: Any = "off", deliver: Any = None, **options: Any) -> Loop:
    from polyfed.engine.batching import Rule

    model = modular(
        federation.modalities, federation.tasks, width=6, encoders={m: {"name": "mlp"} for m in federation.modalities}
    )
    recipe = Recipe(lr=0.05, batch_size=8, epochs=2)
    context = Context(recipe, model.components, tasks=federation.tasks, widths=lambda: feature_widths(model))
    plan = Plan(rounds=2, seed=1, rule=Rule(batching), workers=1)
    more = {"deliver": deliver} if deliver else {}
    return Loop(METHODS[method](context, **options), federation, model, plan, **more)


@every_method
@pytest.mark.parametrize("batching", ["on", "off"])
def test_odd_clients_train_and_nothing_becomes_undefined(method: str, batching: str) -> None:
    outcome = run_odd(method, odd(), batching).run()
    assert not outcome.progress.refused
    assert all(value.isfinite().all() for value in outcome.state.parameters.values())
    if method != "pmr":
        prototypes = outcome.state.companion[PROTOTYPES]
        assert set(prototypes) == {"a.label", "b.label", "c.label"}
        assert all(bool(known(value).all()) for value in prototypes.values())


def test_a_client_without_samples_reports_unknown_classes_and_no_preference() -> None:
    found: dict[int, Reply] = {}

    def kept(number: int, client: int, reply: Reply) -> Reply:
        found[client] = reply
        return reply

    run_odd("bmsfed", odd(), deliver=kept, ratio="client").run()
    empty, without_class, with_gaps = found[1].tensors, found[2].tensors, found[3].tensors
    assert not any(bool(known(value).any()) for value in empty[PROTOTYPES].values())
    assert empty[BALANCE][RATIOS].tolist() == [1.0]
    assert empty[COUNTS]["label"].tolist() == [0, 0, 0]
    assert known(without_class[PROTOTYPES]["a.label"]).tolist() == [True, True, False]
    assert not bool(known(with_gaps[PROTOTYPES]["c.label"]).any())
    assert with_gaps[BALANCE][RATIOS].shape == (2,)
    assert set(found[4].tensors) == {"parameters", PROTOTYPES, COUNTS}


@every_method
def test_a_client_without_a_classification_task_is_one_clear_error_before_training(method: str) -> None:
    asked: list[int] = []
    federation = odd({2: ("size",)})
    with pytest.raises(UserError, match=r"but client 2 has no classification task; its tasks are size\. Give it one"):
        run_odd(method, federation, deliver=lambda number, client, reply: asked.append(client)).run()
    assert not asked


@every_method
def test_a_federation_without_a_classification_task_is_one_clear_error(method: str) -> None:
    federation = odd(dict.fromkeys(range(len(SIZES)), ("size",)))
    only = replace(federation, tasks={"size": federation.tasks["size"]})
    with pytest.raises(UserError, match=f"{method}: class prototypes need a classification task; the tasks are size"):
        run_odd(method, only)


SHAPES = {
    "image": (1, 8, 8),
    "audio": (1, 16, 16),
    "sensor": (3, 32),
    "vector": (5,),
    "tokens": (6,),
}


@pytest.mark.parametrize(("kind", "encoder"), [(kind, name) for kind, names in FITTING.items() for name in names])
def test_every_encoder_embeds_the_samples_of_a_client_that_has_none(kind: Any, encoder: str) -> None:
    modality = Modality("m", kind, SHAPES[kind], 9 if kind == "tokens" else 0)
    tasks = {"label": Task("label", "classification", classes=3)}
    model = modular({"m": modality}, tasks, width=8, encoders={"m": {"name": encoder}})
    dtype = torch.int64 if kind == "tokens" else torch.float32
    table = Table(
        {"m": TensorColumn(torch.zeros(3, *modality.shape, dtype=dtype))},
        {"label": TensorColumn(torch.zeros(3, dtype=torch.int64))},
    )
    empty = table.everything().span(0, 0)
    card = Card(0, "client 0", ("m",), ("label",), 0, model.components(("m",), ("label",)))
    client = Client.of(card, empty, empty, empty)
    start = model.initial(0)
    training = Training(client, Clock(0, 1, 1), start, start, empty, frozenset(("m",)), Recipe())
    work = portrait(training, tasks, start)
    request: Any = next(work)
    with pytest.raises(StopIteration) as end:
        work.send(Trainer(model).embed(card, request))
    assert end.value.value.means["m.label"].tolist() == torch.zeros(3, 8).tolist()


# -------------------------------------------------------------------------- hostile replies


def changed(reply: Reply, group: str, change: Any) -> Reply:
    held = {name: change(value) for name, value in reply.tensors[group].items()}
    return replace(reply, tensors={**reply.tensors, group: held})


REFUSED = {
    "prototypes of another shape": (PROTOTYPES, lambda value: value[:-1]),
    "prototypes that are not numbers": (PROTOTYPES, lambda value: value * float("nan")),
    "infinite class counts": (COUNTS, lambda value: value + float("inf")),
    "ratios that are not numbers": (BALANCE, lambda value: value * float("nan")),
    "class counts as whole numbers": (COUNTS, lambda value: value.long()),
}


@pytest.mark.parametrize("number", [0, 1], ids=["start-up", "training"])
@pytest.mark.parametrize("what", REFUSED)
def test_malformed_reports_are_refused_by_name(what: str, number: int) -> None:
    group, change = REFUSED[what]
    times: list[int] = []

    def damaged(round_number: int, client: int, reply: Reply) -> Reply:
        times.extend([client] if client == 2 else [])
        return changed(reply, group, change) if client == 2 and len(times) == number + 1 else reply

    outcome = train(tiny(method__name="bmsfed", **BOTH, rounds=1), deliver=damaged)
    (refusal,) = outcome.progress.refused
    assert (refusal["client"], refusal["component"]) == (2, group)


@pytest.mark.parametrize("claim", [-1e9, 1e9, 1e15])
def test_absurd_class_counts_and_ratios_leave_prototypes_defined(claim: float) -> None:
    def boastful(round_number: int, client: int, reply: Reply) -> Reply:
        if client != 2:
            return reply
        return changed(changed(reply, COUNTS, lambda value: value * 0 + claim), BALANCE, lambda value: value + claim)

    honest = train(tiny(method__name="bmsfed", **BOTH, rounds=2)).state.companion[PROTOTYPES]
    outcome = train(tiny(method__name="bmsfed", **BOTH, rounds=2), deliver=boastful)
    assert not outcome.progress.refused
    for key, value in outcome.state.companion[PROTOTYPES].items():
        assert value.isfinite().all()
        assert value.abs().max() < 10 * honest[key].abs().max()


# -------------------------------------------------------------------------- training paths


@every_method
def test_the_loss_is_stacked_and_a_step_agrees_with_training_one_by_one(method: str, tmp_path: Path) -> None:
    """At full strength; over many steps rounding grows about prototypes, which the laws allow for."""
    runs = {}
    for batching in ("on", "off"):
        changes: dict[str, Any] = {"engine__batching": batching, "train__batch_size": 4096, "engine__workers": 1}
        runs[batching] = run(method, tmp_path / batching, **BOTH, rounds=1, **changes).state.parameters
    (fits,) = (line["fits"] for line in lines(tmp_path / "on", "round"))
    assert set(fits) == {"stacked"}
    for name, value in runs["off"].items():
        torch.testing.assert_close(runs["on"][name], value, rtol=1e-5, atol=1e-6)


def test_methods_are_made_of_what_their_options_say() -> None:
    context = Context(Recipe(), lambda modalities, tasks: (), tasks={"label": Task("label", "classification")})
    found: Any = bmsfed(context, enhancement=3, coefficient="clip", ratio="client").local
    assert found.objective == Enhanced(3, "weakest", "clip", by_client=True)
    objective: Any = fedproto(context).local
    assert objective.objective == Enhanced(1, "all")
    alone: Any = pmr(context).local
    assert (alone.objective, alone.rounds) == (Enhanced(1, "weakest"), 71)
