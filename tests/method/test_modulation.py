"""OGM-GE and AGM (methods sheet BMSFed, 6.5, 6.6 and property 17)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from polyfed.data.samples import Batch
from polyfed.data.schema import Modality, Task
from polyfed.engine.loop import Outcome
from polyfed.engine.trainer import Trainer
from polyfed.errors import UserError
from polyfed.method.agm import MEANS, ResponseModulation, agm, keeping, response, subsets
from polyfed.method.averaging import Averaging, Context
from polyfed.method.modulation import Modulated, of_the_others, scores_of
from polyfed.method.objective import supervised
from polyfed.method.ogm_ge import GradientModulation, noise_like, ogm_ge, only
from polyfed.method.protocol import Clock, Fit, Fitted, Recipe
from polyfed.method.training import Training
from polyfed.model.architecture import Outputs
from polyfed.model.modular import ModularModel, modular
from polyfed.rng import torch_generator
from polyfed.scenario.federation import Card, Client
from tests.engine.cohorts import Toy, table_of
from tests.model.examples import AUDIO, DIGIT, IMAGE, PULSE, VECTOR, batch_of
from tests.worlds import tiny, train

SIDE = Task("side", "classification", classes=2)
ATOL = 1e-6


class Added:
    """A model whose inputs are logits: it adds up those of the modalities in use, each times a parameter."""

    def __init__(self, names: str, task: Task = SIDE) -> None:
        self.parameters = {f"encoder.{name}.weight": torch.ones((), requires_grad=True) for name in names}
        self.tasks = {task.name: task}

    def __call__(self, batch: Batch) -> Outputs:
        features = {
            name: self.parameters[f"encoder.{name}.weight"] * value * batch.present[name][:, None]
            for name, value in batch.inputs.items()
        }
        total = torch.stack(list(features.values())).sum(0)
        return Outputs(features, total, dict.fromkeys(self.tasks, total))


def logits(right: float, rows: int = 1) -> Tensor:
    """Logits of two classes that give class 0 this probability."""
    return torch.tensor([[math.log(right / (1 - right)), 0.0]]).repeat(rows, 1)


def shown(held: Mapping[str, Tensor], **changes: Any) -> Batch:
    """A batch of these inputs; class 0 is right."""
    rows = len(next(iter(held.values())))
    everywhere = torch.ones(rows, dtype=torch.bool)
    batch = Batch(
        dict(held),
        dict.fromkeys(held, everywhere),
        {"side": torch.zeros(rows, dtype=torch.int64)},
        {"side": everywhere},
    )
    return batch._replace(**changes)


AHEAD = shown({"a": logits(0.75), "v": logits(0.5)})


def floats(held: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in held.items()}


# -------------------------------------------------------------------------- scores


def test_others_are_compared_with_by_their_mean() -> None:
    assert of_the_others(torch.tensor([2.0, 5.0])).tolist() == [5.0, 2.0]
    assert of_the_others(torch.tensor([1.0, 2.0, 6.0])).tolist() == [4.0, 3.5, 1.5]


def test_only_labelled_samples_that_have_the_modality_count() -> None:
    """Of a, samples 0 and 2 count: (0.5 + 0.9) / 2; of v, sample 2."""
    held = {"a": torch.cat([logits(p) for p in (0.5, 0.1, 0.9)]), "v": torch.cat([logits(p) for p in (0.3, 0.3, 0.6)])}
    present = {"a": torch.tensor([True, True, True]), "v": torch.tensor([False, True, True])}
    labelled = {"side": torch.tensor([True, False, True])}
    batch = shown(held, present=present, labelled=labelled)
    scores, seen = scores_of({"side": SIDE}, batch, {name: {"side": held[name]} for name in held}, lambda p: p)
    assert scores.tolist() == pytest.approx([0.7, 0.6], abs=ATOL)
    assert bool(seen)
    nobody = batch._replace(labelled={"side": torch.tensor([True, False, False])})
    assert not bool(scores_of({"side": SIDE}, nobody, {name: {"side": held[name]} for name in held}, lambda p: p)[1])


def test_all_classification_tasks_count_and_no_other() -> None:
    other = Task("other", "classification", classes=2)
    batch = batch_of([VECTOR], [SIDE, other, PULSE], rows=1)._replace(
        targets={"side": torch.tensor([0]), "other": torch.tensor([1]), "pulse": torch.ones(1, 2)}
    )
    predicted = {"side": logits(0.9), "other": logits(0.5), "pulse": torch.full((1, 2), math.nan)}
    tasks = {"side": SIDE, "other": other, "pulse": PULSE}
    assert scores_of(tasks, batch, {"vector": predicted}, lambda p: p)[0].tolist() == pytest.approx([0.7], abs=ATOL)


# -------------------------------------------------------------------------- OGM-GE


def modulations(objective: GradientModulation | ResponseModulation, batch: Batch, memory: Any = None) -> list[float]:
    model = Added("".join(sorted(batch.inputs)))
    _, logged, _ = objective.loss(model, batch, {}, memory or {})
    return factors_in(logged, "".join(sorted(batch.inputs)))


def factors_in(logged: Mapping[str, Any], names: str) -> list[float]:
    return [float(logged[f"modulation.{name}"]) for name in names]


def test_who_is_ahead_is_damped_by_hand() -> None:
    """ratio_a = 0.75 / 0.5 = 1.5, so k_a = 1 − tanh(0.5 · 1.5) = 0.364851."""
    assert modulations(GradientModulation(0.5), AHEAD) == pytest.approx([0.364851, 1.0], abs=ATOL)


@pytest.mark.parametrize("right", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("names", ["av", "abcd"])
def test_equal_scores_damp_nobody(right: float, names: str) -> None:
    """Property 17."""
    equal = shown({name: logits(right, 3) for name in names})
    assert modulations(GradientModulation(5.0), equal) == [1.0] * len(names)


def test_of_three_all_that_are_above_the_mean_of_the_others_are_damped() -> None:
    batch = shown({"a": logits(0.8), "b": logits(0.8), "c": logits(0.2)})
    damped = 1 - math.tanh(1.6)  # 0.8 / 0.5
    assert modulations(GradientModulation(1.0), batch) == pytest.approx([damped, damped, 1.0], abs=ATOL)


def test_a_modality_without_a_sample_damps_nobody() -> None:
    absent = AHEAD._replace(present={**AHEAD.present, "v": torch.tensor([False])})
    assert modulations(GradientModulation(1.0), absent) == [1.0, 1.0]
    assert modulations(ResponseModulation(1.0), absent) == [1.0, 1.0]


GRADIENTS = {
    "encoder.image.net.0.weight": torch.randn(16, 4, 5, 5, generator=torch_generator("four")),
    "encoder.image.net.0.bias": torch.ones(16),
    "encoder.image.out.weight": torch.ones(8, 16),
    "encoder.sensor.net.weight": torch.arange(24.0).view(2, 4, 3),
    "encoder.vector.net.weight": torch.arange(6.0).view(2, 3),
    "encoder.vector.net.bias": torch.ones(2),
    "fusion.image.weight": torch.ones(3, 8),
    "head.digit.weight": torch.ones(10, 3),
}


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("auto", ["encoder.image.net.0.weight", "encoder.sensor.net.weight", "encoder.vector.net.weight"]),
        ("convolutions", ["encoder.image.net.0.weight", "encoder.sensor.net.weight"]),
        ("all", [name for name in GRADIENTS if name.startswith("encoder") and name.endswith("weight")]),
    ],
)
def test_which_gradients_are_modulated(weights: Any, expected: list[str]) -> None:
    objective = GradientModulation(noise=False, weights=weights)
    memory = {name: torch.tensor(0.5, dtype=torch.float64) for name in ("image", "sensor", "vector")}
    changed = objective.gradients(GRADIENTS, memory, torch_generator(0))
    assert list(changed) == list(GRADIENTS)
    for name, before in GRADIENTS.items():
        assert changed[name].dtype == torch.float32
        assert torch.equal(changed[name], 0.5 * before if name in expected else before), name


def test_modalities_that_are_not_in_use_are_left_alone() -> None:
    changed = GradientModulation().gradients(GRADIENTS, {"vector": torch.tensor(0.5)}, torch_generator(0))
    moved = {name for name in GRADIENTS if not torch.equal(changed[name], GRADIENTS[name])}
    assert moved == {"encoder.vector.net.weight"}


def test_noise_has_the_spread_of_the_gradient_whatever_its_factor() -> None:
    name = "encoder.image.net.0.weight"
    memory = {"image": torch.tensor(0.25)}
    changed = GradientModulation().gradients(GRADIENTS, memory, torch_generator(0))[name]
    noise = changed - 0.25 * GRADIENTS[name]
    assert float(noise.std()) == pytest.approx(float(GRADIENTS[name].std()), rel=0.1)  # of 1600 draws
    assert abs(float(noise.mean())) < 0.1
    again, other = (GradientModulation().gradients(GRADIENTS, memory, torch_generator(key))[name] for key in (0, 1))
    assert torch.equal(again, changed)
    assert not torch.equal(other, changed)


def test_a_gradient_of_one_number_or_of_equal_ones_gets_next_to_no_noise() -> None:
    for gradient in (torch.full((1, 1), 3.0), torch.full((4, 4), 3.0)):
        assert float(noise_like(gradient, torch_generator(0)).abs().max()) < 1e-6


def test_a_modality_alone_is_its_columns_its_bias_and_the_head() -> None:
    """W_m z_m + b_m, activated, with the head on it."""
    architecture = modular({"image": IMAGE, "audio": AUDIO}, {"digit": DIGIT}, width=4)
    model = architecture.assemble(architecture.components(["image", "audio"], ["digit"]))
    assert isinstance(model, ModularModel)
    batch = batch_of([IMAGE, AUDIO], [DIGIT])
    features = model.encoder["image"](batch.inputs["image"])
    expected = model.head["digit"](torch.relu(model.fusion["image"](features)))
    assert torch.equal(model(only(batch, "image")).predictions["digit"], expected)


@cache
def final(method: str, **options: Any) -> Outcome:
    return train(tiny(method__name=method, train__epochs=2, **options))


def test_without_modulation_it_is_fedavg_bit_for_bit() -> None:
    assert final("ogm-ge", method__alpha=0.0, method__noise=False).digest == final("fedavg").digest
    assert final("ogm-ge", method__rounds=0).digest == final("fedavg").digest
    assert (
        final("agm", rounds=2, scenario__keep=("image",)).digest
        == final("fedavg", rounds=2, scenario__keep=("image",)).digest
    )


def test_each_part_of_it_changes_what_is_learnt() -> None:
    digests = {
        final("fedavg").digest,
        final("ogm-ge").digest,
        final("ogm-ge", method__noise=False).digest,
        final("ogm-ge", method__alpha=0.0).digest,
        final("ogm-ge", method__rounds=2).digest,
    }
    assert len(digests) == 5


# -------------------------------------------------------------------------- AGM


class Bilinear(Added):
    """A model in which modalities interact, and that has a bias."""

    def __call__(self, batch: Batch) -> Outputs:
        outputs = super().__call__(batch)
        product = torch.stack(list(outputs.features.values())).prod(0)
        mixed = torch.tanh(outputs.fused) + product + torch.tensor([0.3, -0.2])
        return outputs._replace(predictions=dict.fromkeys(self.tasks, mixed))


MIXED = {"a": torch.tensor([[0.4, -1.0]]), "b": torch.tensor([[1.5, 0.2]]), "c": torch.tensor([[-0.7, 0.6]])}


def padded(names: list[str]) -> dict[tuple[str, ...], dict[str, Tensor]]:
    model, batch = Bilinear("".join(names)), shown({name: MIXED[name] for name in names})
    return {part: {"side": model(keeping(batch, part)).predictions["side"].detach()} for part in subsets(names)}


def test_responses_of_two_are_the_authors() -> None:
    f = {"".join(part): held["side"] for part, held in padded(["a", "b"]).items()}
    torch.testing.assert_close(response(padded(["a", "b"]), ["a", "b"], "a", "side"), (f["ab"] - f["b"] + f["a"]) / 2)
    torch.testing.assert_close(response(padded(["a", "b"]), ["a", "b"], "b", "side"), (f["ab"] - f["a"] + f["b"]) / 2)


def test_a_response_of_three_by_hand() -> None:
    """One third of the first and the last marginal each, one sixth of the two between."""
    f = {"".join(part): held["side"] for part, held in padded(["a", "b", "c"]).items()}
    expected = f["a"] / 3 + (f["ab"] - f["b"] + f["ac"] - f["c"]) / 6 + (f["abc"] - f["bc"]) / 3
    torch.testing.assert_close(response(padded(["a", "b", "c"]), ["a", "b", "c"], "a", "side"), expected)


@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "c"]])
def test_responses_add_up_to_the_prediction(names: list[str]) -> None:
    held = padded(names)
    total = sum((response(held, names, name, "side") for name in names), start=torch.zeros(1, 2))
    torch.testing.assert_close(total, held[tuple(names)]["side"])


@pytest.mark.parametrize(("sign", "expected"), [("agm", (-1 / 2, 1 / 3)), ("bmsfed", (1 / 3, -1 / 2))])
def test_the_first_step_by_hand(sign: Any, expected: tuple[float, float]) -> None:
    """s_a = −ln 0.75, s_v = ln 2: r_a = 1.5 and r_v = 2/3 against running ratios of 1. BMSFed swaps them."""
    assert modulations(ResponseModulation(1.0, sign), AHEAD) == pytest.approx([math.exp(e) for e in expected], abs=ATOL)


def test_running_means_are_renewed_after_use() -> None:
    """The second step of equal batches has r = R: k = 1. A third, of a better v, moves the mean by a third."""
    model, objective = Added("av"), ResponseModulation(2.0)
    memory: Mapping[str, Tensor] = {}
    for expected in ([math.exp(-1), math.exp(2 / 3)], [1.0, 1.0]):
        _, logged, memory = objective.loss(model, AHEAD, {}, memory)
        assert factors_in(logged, "av") == pytest.approx(expected, abs=ATOL)
    a, v = -math.log(0.75), math.log(2)
    assert floats(memory) == pytest.approx({"mean.a": a, "steps.a": 2, "mean.v": v, "steps.v": 2}, abs=ATOL)
    _, _, memory = objective.loss(model, shown({"a": logits(0.75), "v": logits(0.9)}), {}, memory)
    assert floats(memory)["mean.v"] == pytest.approx((2 * v - math.log(0.9)) / 3, abs=ATOL)


@pytest.mark.parametrize("sign", ["agm", "bmsfed"])
@pytest.mark.parametrize("mean", [0.0, 0.7])
def test_equal_scores_and_means_modulate_nothing(sign: Any, mean: float) -> None:
    """Property 17."""
    memory = {f"mean.{name}": torch.tensor(mean, dtype=torch.float64) for name in "av"}
    equal = shown({name: logits(0.3, 2) for name in "av"})
    assert modulations(ResponseModulation(3.0, sign), equal, memory) == [1.0, 1.0]


def test_factors_are_bounded() -> None:
    found = ResponseModulation(1.0).factors(torch.tensor([18.4, 0.0]).double(), torch.tensor([0.0, 18.4]).double())
    assert found.tolist() == pytest.approx([math.exp(10), 0.0], rel=1e-6)


def test_gradients_through_a_response_are_multiplied_and_the_loss_is_not() -> None:
    """In this model a's response is a's logits, so the slope of a's parameter is k_a times what it was."""
    slopes = []
    for objective in (supervised, ResponseModulation(1.0)):
        model = Added("av")
        loss, _ = objective(model, AHEAD, {})
        slopes.append(torch.autograd.grad(loss, model.parameters["encoder.a.weight"])[0])
        assert loss.item() == pytest.approx(math.log(4 / 3), abs=ATOL)
    assert float(slopes[1]) == pytest.approx(math.exp(-0.5) * float(slopes[0]), abs=ATOL)


def test_with_alpha_zero_gradients_are_those_of_the_loss() -> None:
    architecture = modular({"image": IMAGE, "audio": AUDIO}, {"digit": DIGIT, "pulse": PULSE}, width=4)
    module = architecture.assemble(architecture.components(["image", "audio"], ["digit", "pulse"]))
    batch, found = batch_of([IMAGE, AUDIO], [DIGIT, PULSE]), []

    @dataclass
    class Whole:
        tasks: Mapping[str, Task]
        parameters: Mapping[str, Tensor]

        def __call__(self, given: Batch) -> Outputs:
            outputs: Outputs = module(given)
            return outputs

    model = Whole(architecture.tasks, dict(module.named_parameters()))
    for objective in (supervised, ResponseModulation(0.0)):
        loss, _ = objective(model, batch, {})
        found.append(torch.autograd.grad(loss, list(module.parameters())))
    for plain, modulated in zip(*found, strict=True):
        torch.testing.assert_close(modulated, plain, rtol=1e-4, atol=1e-5)


def test_running_means_stay_with_multi_modal_clients_from_round_to_round() -> None:
    """Client 2 alone has two modalities; it takes two steps an epoch or more, three rounds of two epochs."""
    outcome = final("agm")
    assert {client for client, held in outcome.personal.items() if MEANS in held} == {2}
    kept = floats(outcome.personal[2][MEANS])
    assert set(kept) == {"mean.audio", "steps.audio", "mean.image", "steps.image"}
    steps = floats(final("agm", rounds=1).personal[2][MEANS])["steps.audio"]
    assert kept["steps.audio"] == kept["steps.image"] == 3 * steps > 0
    assert final("agm").digest != final("fedavg").digest != final("agm", method__sign="bmsfed").digest


# -------------------------------------------------------------------------- when, and for whom


def asked(local: Modulated, round_number: int, active: str, personal: Any = None) -> tuple[Fit, Any]:
    """Answer the fit of one client; return it and what training ends with."""
    data = table_of([VECTOR], [DIGIT], 3).everything()
    client = Client.of(Card(0, "client 0", ("vector",), ("digit",), 3), data, data, data)
    start = {"a": torch.zeros(2)}
    clock = Clock(0, round_number, 100)
    work = local(Training(client, clock, start, start, data, frozenset(active), Recipe(), personal or {}))
    request = next(work)
    assert isinstance(request, Fit)
    with pytest.raises(StopIteration) as end:
        work.send(Fitted(start, 7, {"loss": 1.5}, {"mean.a": torch.tensor(2.0)}))
    return request, end.value.value


def test_it_is_used_in_the_first_rounds_with_several_modalities() -> None:
    objective = GradientModulation()
    local = Modulated(objective, rounds=71)
    assert [asked(local, number, "av")[0].objective for number in (1, 71)] == [objective, objective]
    assert asked(local, 72, "av")[0].objective is supervised
    assert asked(local, 1, "a")[0].objective is supervised
    trained = asked(local, 1, "av")[1]
    assert (trained.numbers, trained.personal) == ({"loss": 1.5, "steps": 7.0}, {})


def test_memory_goes_in_and_comes_out() -> None:
    before = {MEANS: {"mean.a": torch.tensor(1.0)}}
    request, trained = asked(Modulated(ResponseModulation(), keeps=MEANS), 200, "av", before)
    assert request.memory == before[MEANS]
    assert floats(trained.personal[MEANS]) == {"mean.a": 2.0}


def test_a_fit_in_which_nothing_moves_ends_with_the_memory_it_began_with() -> None:
    data, memory = table_of([VECTOR], [DIGIT], 3).everything(), {"mean.a": torch.tensor(1.0)}
    start, active = Toy().initial(0), frozenset({"vector"})
    request = Fit(ResponseModulation(), start, data, Recipe(), active, frozenset(), memory=memory)
    card = Card(0, "client 0", ("vector",), ("digit",), 3, ("net",))
    assert Trainer(Toy()).fit(card, request, ("key",)).memory == memory


@pytest.mark.parametrize("build", [ogm_ge, agm])
def test_a_federation_without_a_classification_task_is_refused(build: Any) -> None:
    context = Context(Recipe(), lambda modalities, tasks: (), tasks={"pulse": PULSE})
    with pytest.raises(UserError, match="compared by how they classify; there is no classification task among pulse"):
        build(context)
    assert isinstance(build(Context(Recipe(), lambda modalities, tasks: (), tasks={"digit": DIGIT})), Averaging)


@pytest.mark.parametrize("objective", [GradientModulation(), ResponseModulation()])
def test_one_modality_is_trained_as_usual(objective: Any) -> None:
    batch = shown({"a": logits(0.75)})
    loss, logged, memory = objective.loss(Added("a"), batch, {}, {})
    assert loss.item() == pytest.approx(-math.log(0.75), abs=ATOL)
    assert (set(logged), memory) == ({"loss.side"}, {})


def test_tokens_are_padded_with_zeros() -> None:
    text = Modality("text", "tokens", (3,), vocabulary=5)
    batch = keeping(batch_of([text, VECTOR], [DIGIT]), ("vector",))
    assert batch.inputs["text"].dtype == torch.int64
    assert int(batch.inputs["text"].abs().sum()) == 0
    assert bool(batch.present["text"].all())
