"""FedDAT: a shared adapter, a personal one, and a frozen copy of the first (property 35)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from polyfed.engine.resident import Resident
from polyfed.errors import UserError
from polyfed.experiment.world import World, build_world
from polyfed.method.feddat_objective import MutualDistillation, distillation
from polyfed.method.protocol import Fit, Reply
from polyfed.model.adapter_weights import weighted
from polyfed.model.losses import total_loss
from tests.language import checkpoint, experiment

pytest.importorskip("transformers", reason="language models need the extra polyfed[mllm]")
pytest.importorskip("peft", reason="language models need the extra polyfed[mllm]")

EVERYTHING = {"connector", "lora", "personal_lora", "frozen_lora"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return checkpoint(tmp_path_factory.mktemp("tiny"))


def world_of(path: str, **changes: object) -> World:
    named = {key.replace("__", "."): value for key, value in changes.items()}
    few = {"select": {"name": "round_robin", "clients": 2}}
    return build_world(experiment(path, {"method": {"name": "feddat"}, **few, **named}))


def groups(names: Any) -> set[str]:
    return {name.split(".")[0] for name in names}


def beginning(values: Any, component: str) -> dict[str, Tensor]:
    return {name.split(".", 1)[1]: value for name, value in values.items() if name.split(".")[0] == component}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("scope", ["local", "frozen", "aggregate"])
def test_what_is_trained_and_what_travels(path: str, scope: str) -> None:
    world = world_of(path, method__connector_scope=scope, scenario__clients=2, **one_task())
    wire: list[tuple[int, Reply]] = []
    fits: list[tuple[int, Fit, dict[str, Tensor]]] = []

    def heard(round_number: int, client: int, reply: Any) -> Any:
        wire.append((client, reply))
        return reply

    loop = world.loop(deliver=heard)
    fit = loop.trainer.fit

    def watched(card: Any, request: Any, key: Any) -> Any:
        fitted = fit(card, request, key)
        fits.append((card.id, request, dict(fitted.parameters)))
        return fitted

    loop.trainer.fit = watched  # type: ignore[method-assign]
    outcome = loop.run()
    travels = {"lora", "connector"} if scope == "aggregate" else {"lora"}
    trains = {"lora", "personal_lora"} | (set() if scope == "frozen" else {"connector"})
    assert {frozenset(groups(reply.tensors["parameters"])) for _, reply in wire} == {frozenset(travels)}
    assert len(fits) == 4
    for _, request, after in fits:
        assert groups(name for name in after if not torch.equal(after[name], request.start[name])) == trains
        received = beginning(request.start, "lora")
        assert same(beginning(request.start, "frozen_lora"), received)
        assert same(beginning(after, "frozen_lora"), received)
    sent = [beginning(reply.tensors["parameters"], "lora") for _, reply in wire[:2]]
    for name, value in beginning(fits[2][1].start, "lora").items():
        torch.testing.assert_close(value, (sent[0][name] + sent[1][name]) / 2, rtol=1e-5, atol=1e-7)
    held = outcome.personal[0]
    assert groups(held["parameters"]) == EVERYTHING - travels - {"frozen_lora"}
    assert groups(held["trained"]) == EVERYTHING
    assert same(beginning(held["trained"], "frozen_lora"), beginning(held["trained"], "lora"))
    assert same(beginning(held["trained"], "lora"), beginning(fits[2][2], "lora"))
    deployed = world.method.deploy(outcome.state, world.federation.cards[0])
    assert groups(deployed) == travels | {"frozen_lora"}
    assert same(beginning(deployed, "frozen_lora"), beginning(outcome.state.parameters, "lora"))


def test_both_adapters_are_judged_alone_at_their_whole_strength(path: str) -> None:
    world = world_of(path, data__examples=4, data__test_examples=2, rounds=1, engine__evaluate_every=1)
    _, values, _ = trained_model(path)
    parts = world.method.parts
    for name, adapter in (("personal only", "personal_lora"), ("shared only", "lora")):
        held, wanted = parts[name](values), beginning(values, adapter)
        assert held.keys() == values.keys()
        assert same(beginning(held, "personal_lora"), wanted)
        assert same(beginning(held, "frozen_lora"), wanted)
        assert same(beginning(held, "lora"), beginning(values, "lora"))
        assert same(beginning(held, "connector"), beginning(values, "connector"))
    told: list[dict[str, Any]] = []
    world.loop(observers=[told.append]).run()
    judged = {(line["round"], line["model"]) for line in told if line["kind"] == "other_evaluation"}
    both = {(number, name) for number in (0, 1) for name in parts}
    assert judged == both | {(1, "deployed")}


@pytest.mark.parametrize(("name", "adapter"), [("personal only", "personal_lora"), ("shared only", "lora")])
def test_a_part_computes_what_its_adapter_alone_does(path: str, name: str, adapter: str) -> None:
    model, values, batch = trained_model(path)
    with torch.no_grad():
        whole = model(batch).predictions
        alone = model(weighted(batch, {adapter: 1.0})).predictions
        model.load(world_of(path).method.parts[name](values))
        part = model(batch).predictions
    for task, logits in part.items():
        torch.testing.assert_close(logits, alone[task], rtol=1e-3, atol=1e-3)
        assert (logits - whole[task]).abs().max() > 0.1


def one_task() -> dict[str, Any]:
    return {"data__tasks": ["vqa"], "scenario__partition": {"name": "iid"}}


def trained_model(path: str) -> tuple[Resident, dict[str, Tensor], Any]:
    world = world_of(path)
    module = world.architecture.assemble(sorted(EVERYTHING)).eval()
    draw = torch.Generator().manual_seed(0)
    values = {
        name: torch.randn(value.shape, generator=draw) / 2 if "lora" in name else value
        for name, value in world.architecture.initial(0).items()
    }
    model = Resident(module, world.architecture.tasks)
    model.load(values)
    return model, values, world.federation.client(0).train.batch()


def gradients(model: Resident, loss: Tensor) -> dict[str, Tensor]:
    names = [name for name in model.parameters if not name.startswith("frozen_lora")]
    found = torch.autograd.grad(loss, [model.parameters[name] for name in names], allow_unused=True)
    return {
        name: torch.zeros_like(model.parameters[name]) if slope is None else slope
        for name, slope in zip(names, found, strict=True)
    }


def test_one_loss_has_the_gradients_of_the_two_steps(path: str) -> None:
    model, _, batch = trained_model(path)
    loss, logged = MutualDistillation()(model, batch, {})
    both = gradients(model, loss)

    def alone(weights: dict[str, float]) -> Tensor:
        return model(weighted(batch, weights)).predictions["vqa"]

    def task(logits: Tensor) -> Tensor:
        return total_loss(model.tasks, model(batch)._replace(predictions={"vqa": logits}), batch)[0]

    length = alone({"lora": 1.0}).shape[1]
    where = torch.zeros(len(batch.targets["vqa"]), length, dtype=torch.bool)
    where[:, :-1] = batch.targets["vqa"][:, 1:length] != -100
    teacher = {"personal_lora": 0.5, "frozen_lora": 0.5}
    fixed = alone({"lora": 1.0}).detach()
    first = (task(alone({"lora": 1.0})) + distillation(alone({"lora": 1.0}), alone(teacher).detach(), where, 3.0)) / 2
    second = (task(alone(teacher)) + distillation(alone(teacher), fixed, where, 3.0)) / 2
    torch.testing.assert_close(loss, first + second)
    torch.testing.assert_close(logged["shared"], first.detach())
    torch.testing.assert_close(logged["personal"], second.detach())
    step_1, step_2 = gradients(model, first), gradients(model, second)
    for name, slope in both.items():
        expected = {"lora": step_1, "personal_lora": step_2}.get(name.split(".")[0])
        torch.testing.assert_close(slope, step_1[name] + step_2[name], rtol=1e-3, atol=1e-5)
        if expected is not None:
            torch.testing.assert_close(slope, expected[name], rtol=1e-3, atol=1e-5)
            assert slope.any()


def test_each_adapter_has_no_gradient_from_the_others_step(path: str) -> None:
    model, _, batch = trained_model(path)
    shared = gradients(model, model(weighted(batch, {"lora": 1.0})).predictions["vqa"].sum())
    personal = gradients(model, model(batch).predictions["vqa"].sum())
    assert not any(slope.any() for name, slope in shared.items() if name.startswith("personal_lora"))
    assert not any(slope.any() for name, slope in personal.items() if name.startswith("lora"))
    assert any(slope.any() for name, slope in shared.items() if name.startswith("lora"))
    assert any(slope.any() for name, slope in personal.items() if name.startswith("personal_lora"))


def test_a_client_uses_the_teacher(path: str) -> None:
    model, values, batch = trained_model(path)
    with torch.no_grad():
        used = model(batch).predictions["vqa"]
        halves = model(weighted(batch, {"personal_lora": 0.5, "frozen_lora": 0.5})).predictions["vqa"]
        model.load({name: 3 * value if name.startswith("lora.") else value for name, value in values.items()})
        assert torch.equal(model(batch).predictions["vqa"], used)
    assert torch.equal(used, halves)


def test_distillation_of_equal_logits_is_zero_and_counts_chosen_positions_only() -> None:
    draw = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 3, 5, generator=draw), torch.randn(2, 3, 5, generator=draw)
    where = torch.tensor([[True, False, False], [False, True, False]])
    assert float(distillation(one, one, where, 3.0)) == 0
    changed = torch.where(where.unsqueeze(-1), one, one + 9 * other)
    torch.testing.assert_close(distillation(changed, other, where, 3.0), distillation(one, other, where, 3.0))
    by_hand = [
        sum(p * (p / q).log() for p, q in zip((other[at] / 3).softmax(-1), (one[at] / 3).softmax(-1), strict=True))
        for at in ((0, 0), (1, 1))
    ]
    torch.testing.assert_close(distillation(one, other, where, 3.0), 9 * (by_hand[0] + by_hand[1]) / 2)
    assert float(distillation(one, other, torch.zeros_like(where), 3.0)) == 0


def test_it_needs_three_text_adapters(path: str) -> None:
    with pytest.raises(UserError, match="feddat: needs the model 'llava' with adapters: triple"):
        world_of(path, model__adapters="dual")
