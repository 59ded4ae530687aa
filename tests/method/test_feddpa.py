"""FedDPA: a shared and a personal text adapter, and how they are mixed (properties 34)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from polyfed.errors import UserError
from polyfed.experiment.world import World, build_world
from polyfed.method.feddpa import Rule
from polyfed.method.protocol import Embed, Fit, Reply
from polyfed.model.adapter_weights import AdapterMixing, weighted
from tests.language import checkpoint, experiment

pytest.importorskip("transformers", reason="language models need the extra polyfed[mllm]")
pytest.importorskip("peft", reason="language models need the extra polyfed[mllm]")

EVERYTHING = {"connector", "lora", "mixing", "personal_lora"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return checkpoint(tmp_path_factory.mktemp("tiny"))


def world_of(path: str, **changes: object) -> World:
    named = {key.replace("__", "."): value for key, value in changes.items()}
    few = {"select": {"name": "round_robin", "clients": 1}, "engine.evaluate_every": 9}
    return build_world(experiment(path, {"method": {"name": "feddpa"}, **few, **named}))


class Watch:
    """Runs a world, and keeps replies, fits and what was embedded."""

    def __init__(self, world: World) -> None:
        self.replies: list[Reply] = []
        self.fits: list[tuple[int, Fit, dict[str, Tensor]]] = []
        self.embedded: list[tuple[Embed, dict[str, Tensor]]] = []
        loop = world.loop(deliver=self._hear)
        fit, embed = loop.trainer.fit, loop.trainer.embed

        def watched(card: Any, request: Any, key: Any) -> Any:
            fitted = fit(card, request, key)
            self.fits.append((card.id, request, dict(fitted.parameters)))
            return fitted

        def looked(card: Any, request: Any) -> Any:
            found = embed(card, request)
            self.embedded.append((request, found))
            return found

        loop.trainer.fit, loop.trainer.embed = watched, looked  # type: ignore[method-assign]
        self.outcome = loop.run()

    def _hear(self, round_number: int, client: int, reply: Any) -> Any:
        self.replies.append(reply)
        return reply


def groups(names: Any) -> set[str]:
    return {name.split(".")[0] for name in names}


def moved(before: Any, after: Any) -> set[str]:
    return groups(name for name, value in after.items() if not torch.equal(value, before[name]))


def same_client(path: str, **changes: object) -> Watch:
    """One client, asked in two rounds."""
    one = {"data__tasks": ["vqa"], "scenario__clients": 1, "scenario__partition": {"name": "iid"}}
    return Watch(world_of(path, **one, **changes))


def test_what_is_trained_when_and_what_travels(path: str) -> None:
    watch = same_client(path)
    assert [fit.purpose for _, fit, _ in watch.fits] == ["shared", "personal", "shared"]
    for _, fit, after in watch.fits:
        expected = {"personal_lora"} if fit.purpose == "personal" else {"lora", "connector"}
        assert moved(fit.start, after) == expected
    assert [groups(reply.tensors["parameters"]) for reply in watch.replies] == [{"lora"}, {"lora"}]
    held = watch.outcome.personal[0]
    assert groups(held["parameters"]) == {"connector", "personal_lora", "mixing"}
    assert groups(held["trained"]) == EVERYTHING
    last = watch.fits[-1][2]
    assert all(torch.equal(held["trained"][name], value) for name, value in last.items() if "mixing" not in name)


def test_the_connector_may_stay_as_it_is_or_be_averaged(path: str) -> None:
    watch = same_client(path, rounds=1, method__connector_scope="frozen")
    assert moved(watch.fits[0][1].start, watch.fits[0][2]) == {"lora"}
    watch = same_client(path, rounds=1, method__connector_scope="aggregate")
    assert groups(watch.replies[0].tensors["parameters"]) == {"lora", "connector"}


def test_before_the_personal_adapter_is_trained_the_shared_one_counts_alone(path: str) -> None:
    held = same_client(path, rounds=1).outcome.personal[0]["trained"]
    assert held["mixing.offset"] == 0
    assert held["mixing.slope"] == 0
    assert not any(value.any() for name, value in held.items() if name.startswith("personal_lora") and name[-1] == "B")


def test_own_prompts_are_embedded_with_the_personal_adapter_alone(path: str) -> None:
    watch = same_client(path, method__prompts=2, method__strength=0.7)
    ((request, found),) = watch.embedded
    assert len(request.data) == 2
    assert request.parameters["mixing.offset"] == 1
    assert request.parameters["mixing.slope"] == 0
    held = watch.outcome.personal[0]["trained"]
    mean = torch.nn.functional.normalize(found["text"], dim=-1).mean(0)
    torch.testing.assert_close(held["mixing.prompts"], mean)
    assert held["mixing.offset"] == 0
    assert held["mixing.slope"] == pytest.approx(0.7)


def test_fixed_weights_need_no_prompts(path: str) -> None:
    watch = same_client(path, method__dynamic_weighting="fixed", method__local_weight=0.3)
    assert not watch.embedded
    assert watch.outcome.personal[0]["trained"]["mixing.offset"] == pytest.approx(0.3)


def test_the_second_variant_personalises_once_at_the_end(path: str) -> None:
    watch = Watch(world_of(path, method__variant="F", select={"name": "all"}, data__examples=3))
    purposes = [fit.purpose for _, fit, _ in watch.fits]
    assert purposes == ["shared"] * 18 + ["personal"] * 9
    for client, fit, after in watch.fits[18:]:
        shared = {name: value for name, value in fit.start.items() if name.startswith("lora.")}
        assert all(torch.equal(value, watch.outcome.state.parameters[name]) for name, value in shared.items())
        assert all(torch.equal(fit.start[f"personal_{name}"], value) for name, value in shared.items())
        assert moved(fit.start, after) == {"personal_lora"}
        held = watch.outcome.personal[client]
        assert all(torch.equal(held["trained"][name], value) for name, value in after.items() if "mixing" not in name)
    assert [dict(reply.tensors) for reply in watch.replies[18:]] == [{}] * 9


def test_the_average_is_unweighted(path: str) -> None:
    wire: list[Reply] = []

    def fewer(round_number: int, client: int, reply: Any) -> Any:
        wire.append(reply)
        return reply if client else Reply(1, reply.tensors, reply.numbers)

    world = world_of(path, rounds=1, select={"name": "round_robin", "clients": 2})
    outcome = world.loop(deliver=fewer).run()
    for name, value in outcome.state.parameters.items():
        one, other = (reply.tensors["parameters"][name] for reply in wire)
        torch.testing.assert_close(value, (one + other) / 2, rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------------------------------------- mixing


def trained_model(path: str) -> tuple[World, Any, dict[str, Tensor], Any]:
    """Return a world, a model of it, values of both adapters that matter, and a batch of a client's test samples."""
    world = world_of(path)
    model = world.architecture.assemble(sorted(EVERYTHING)).eval()
    draw = torch.Generator().manual_seed(0)
    values = {
        name: torch.randn(value.shape, generator=draw) if "lora" in name else value
        for name, value in world.architecture.initial(0).items()
    }
    return world, model, values, world.federation.client(0).test.batch()


def predicted(model: Any, values: dict[str, Tensor], batch: Any, **mixing: float) -> Tensor:
    more = {f"mixing.{name}": torch.tensor(value) for name, value in mixing.items()}
    model.load_state_dict({**values, **more})
    found: Tensor = model(batch).predictions["vqa"]
    return found


def test_with_the_whole_weight_on_one_adapter_the_other_has_no_influence(path: str) -> None:
    world, model, values, batch = trained_model(path)
    plain = world.architecture.assemble(["connector", "lora"]).eval()
    other = {name: 2 * value if name.startswith("lora.") else value for name, value in values.items()}
    own = predicted(model, values, batch, offset=1.0)
    assert torch.equal(own, predicted(model, other, batch, offset=1.0))
    assert not torch.allclose(own, predicted(model, values, batch, offset=0.5))
    shared = {name: value for name, value in values.items() if groups([name]) <= {"connector", "lora"}}
    torch.testing.assert_close(predicted(model, values, batch, offset=0.0), predicted(plain, shared, batch))


def test_outputs_of_both_adapters_are_added_with_their_weights(path: str) -> None:
    """In one layer: W₀ x + a · local(x) + (1 − a) · global(x)."""
    _, model, values, batch = trained_model(path)
    seen: dict[float, Tensor] = {}
    layer = next(
        module
        for name, module in model._twin[0].named_modules()
        if name.endswith("language_model.layers.0.self_attn.q_proj")
    )
    for weight in (0.0, 0.25, 1.0):
        handle = layer.register_forward_hook(lambda module, given, output, w=weight: seen.__setitem__(w, output))
        predicted(model, values, batch, offset=weight)
        handle.remove()
    torch.testing.assert_close(seen[0.25], 0.25 * seen[1.0] + 0.75 * seen[0.0], rtol=1e-4, atol=1e-4)


def test_weights_of_single_prompts_depend_on_no_neighbour_and_on_no_answer(path: str) -> None:
    world, model, values, batch = trained_model(path)
    draw = torch.Generator().manual_seed(1)
    values["mixing.prompts"] = torch.nn.functional.normalize(torch.randn(24, generator=draw), dim=0)
    whole = predicted(model, values, batch, offset=0.5, slope=3.0)
    assert not torch.allclose(whole, predicted(model, values, batch, offset=0.5), atol=1e-4)
    one = world.federation.client(0).test.batch(torch.tensor([1]))
    alone = predicted(model, values, one, offset=0.5, slope=3.0)
    torch.testing.assert_close(alone[0], whole[1, : alone.shape[1]], rtol=1e-3, atol=1e-3)
    features = model(batch).features["text"]
    cut = batch.inputs["text"].clone()
    answered = torch.nn.functional.pad(
        batch.targets["vqa"], (0, cut.shape[1] - batch.targets["vqa"].shape[1]), value=-100
    )
    cut[answered != -100] = 7
    told = model(batch._replace(inputs={**batch.inputs, "text": cut})).features["text"]
    assert torch.equal(told, features)


def test_answers_are_written_with_the_weights_of_their_prompts(path: str) -> None:
    world, model, values, batch = trained_model(path)
    values["mixing.prompts"] = torch.ones(24) / 24**0.5
    together = predicted_texts(model, values, batch)
    assert any(one != other for one, other in zip(together, predicted_texts(model, values, batch, 0.0), strict=True))
    for place, text in enumerate(together):
        (alone,) = predicted_texts(model, values, world.federation.client(0).test.batch(torch.tensor([place])))
        assert alone == text


def predicted_texts(model: Any, values: dict[str, Tensor], batch: Any, slope: float = 3.0) -> list[str]:
    predicted(model, values, batch, offset=0.3, slope=slope)
    written: list[str] = model.write(batch, "vqa")
    return written


def coefficient(rule: Rule, prompts: Tensor, embedded: Tensor) -> Tensor:
    mixing = AdapterMixing(prompts.shape[1])
    held = rule.mixing(prompts)
    mixing.load_state_dict({name.split(".")[1]: value for name, value in held.items()})
    return mixing.own(embedded)


def test_the_dynamic_weight() -> None:
    draw = torch.Generator().manual_seed(0)
    prompts, asked = torch.randn(5, 8, generator=draw), torch.randn(40, 8, generator=draw)
    rule = Rule(0.5, "instance", 0.6, 5)
    similar = torch.nn.functional.cosine_similarity(asked.unsqueeze(1), prompts.unsqueeze(0), dim=-1).mean(1)
    assert (similar < 0).any()
    torch.testing.assert_close(coefficient(rule, prompts, asked), (0.6 * similar).clamp(0, 1))
    assert float(coefficient(rule, prompts, asked).max()) <= 0.6
    released = coefficient(Rule(0.5, "as_released", 0.6, 5), prompts, asked)
    torch.testing.assert_close(released, 1 - coefficient(rule, prompts, asked))


def test_a_prompt_like_all_of_the_clients_own_has_similarity_one() -> None:
    prompt = torch.tensor([[3.0, -4.0, 0.0]])
    found = coefficient(Rule(0.5, "instance", 0.5, 5), prompt.expand(5, -1), 7 * prompt)
    torch.testing.assert_close(found, torch.tensor([0.5]))


def test_gradients_through_the_shared_branch_can_be_cut_off(path: str) -> None:
    _, model, values, batch = trained_model(path)
    model.load_state_dict(values)
    weights = {"personal_lora": 0.5, "lora": 0.5}

    def slope(detached: list[str]) -> Tensor:
        loss = model(weighted(batch, weights, detached)).predictions["vqa"].square().mean()
        name = "personal_lora.layers.0.self_attn.q_proj.A"
        return torch.autograd.grad(loss, dict(model.named_parameters())[name])[0]

    assert torch.equal(slope([]), slope([]))
    assert not torch.allclose(slope(["lora"]), slope([]))
    loss = model(weighted(batch, weights, ["lora"])).predictions["vqa"].square().mean()
    shared = dict(model.named_parameters())["lora.layers.0.mlp.down_proj.A"]
    (slope_of_shared,) = torch.autograd.grad(loss, shared, allow_unused=True)
    assert slope_of_shared is None


def test_the_option_to_cut_them_off_changes_training(path: str) -> None:
    plain, cut = same_client(path, rounds=3), same_client(path, rounds=3, method__detach_branch=True)
    name = "personal_lora.layers.0.self_attn.q_proj.B"
    one, other = (watch.outcome.personal[0]["parameters"][name] for watch in (plain, cut))
    assert not torch.equal(one, other)


def test_it_needs_two_text_adapters(path: str) -> None:
    with pytest.raises(UserError, match="feddpa: needs the model 'llava' with adapters: dual"):
        world_of(path, model__adapters="one")
