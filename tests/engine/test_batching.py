"""Which fits are stacked, and why not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from polyfed.engine.batching import LARGEST_ON_CPU, Rule, layout, signature, trial
from polyfed.engine.resident import Resident
from polyfed.engine.trainer import Trainer
from polyfed.method.objective import Proximal, supervised
from polyfed.method.protocol import Fit, Fitted, Recipe
from polyfed.model.architecture import Architecture
from polyfed.model.losses import Share, sample_losses
from polyfed.model.modular import modular
from tests.engine.cohorts import Toy, alone, answers, cohort, fit_of, together
from tests.model.examples import DIGIT, IMAGE, VECTOR

RECIPE = Recipe(lr=0.1, momentum=0.5, epochs=2, batch_size=4)
COUNTS = (9, 4, 6)
WHY_NOT = "one by one: the objective cannot be stacked: "


def assert_same_bits(found: list[Fitted], expected: list[Fitted]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.steps, one.numbers) == (other.steps, other.numbers)
        assert all(torch.equal(one.parameters[name], value) for name, value in other.parameters.items())


def of_size(parameters: int) -> Resident:
    return Resident(nn.Linear(parameters, 1, bias=False), {})


# -------------------------------------------------------------------------- the rule


@pytest.mark.parametrize(
    ("rule", "module", "reason"),
    [
        (Rule("auto"), nn.Linear(64, 10), None),
        (Rule("auto"), nn.Linear(LARGEST_ON_CPU, 1, bias=False), None),
        (Rule("auto"), nn.Linear(LARGEST_ON_CPU + 1, 1, bias=False), "a model of more than 20000 parameters is faster"),
        (Rule("auto"), nn.Conv2d(1, 2, 3), "convolutions are faster one by one on a CPU"),
        (Rule("auto"), nn.Conv1d(1, 2, 3), "convolutions are faster one by one on a CPU"),
        (Rule("auto", accelerated=True), nn.Conv2d(1, 2, 3), None),
        (Rule("auto", accelerated=True), nn.Linear(LARGEST_ON_CPU + 1, 1), None),
        (Rule("on"), nn.Conv2d(1, 2, 3), None),
        (Rule("on"), nn.Linear(LARGEST_ON_CPU + 1, 1), None),
        (Rule("off"), nn.Linear(64, 10), "batching is switched off"),
        (Rule("off", accelerated=True), nn.Linear(64, 10), "batching is switched off"),
    ],
)
def test_the_rule_follows_configuration_model_and_device(rule: Rule, module: nn.Module, reason: str | None) -> None:
    found = rule.against(Resident(module, {}))
    assert found is None if reason is None else found is not None and found.startswith(reason)


def test_a_tiny_model_is_stacked_by_default_and_a_convolution_is_not() -> None:
    convolution = modular({"image": IMAGE}, {"digit": DIGIT}, width=8, encoders={"image": {"channels": [4]}})
    large = modular({"vector": VECTOR}, {"digit": DIGIT}, encoders={"vector": {"hidden": [300, 100]}})
    architectures: dict[str, Architecture] = {"tiny": Toy(), "convolution": convolution, "large": large}
    paths = {}
    for name, architecture in architectures.items():
        trainer = Trainer(architecture)
        answers(trainer, cohort(architecture, COUNTS, RECIPE))
        paths[name] = dict(trainer.paths)
    assert paths == {
        "tiny": {"stacked": 3},
        "convolution": {"one by one: convolutions are faster one by one on a CPU": 3},
        "large": {"one by one: a model of more than 20000 parameters is faster one by one on a CPU": 3},
    }


def test_width_and_chunks_follow_the_memory() -> None:
    """1000 float32 parameters: 4 copies with sgd, 5 with adam, 6 when it is not known which; 8 samples of 500 bytes."""
    model = of_size(1000)
    rule = Rule("on", memory=240_000)
    assert rule.width(model) == 10
    assert rule.clients(model, Recipe("sgd", batch_size=8), 0) == 15
    assert rule.clients(model, Recipe("adam", batch_size=8), 0) == 12
    assert rule.clients(model, Recipe("sgd", batch_size=8), 500) == 12
    assert Rule("on", memory=1).clients(model, Recipe(), 10**12) == Rule("on", memory=1).width(model) == 1
    assert Rule("off").width(model) == 1


def test_a_memory_limit_counts_what_training_keeps_of_the_samples() -> None:
    """A model of few parameters on large samples: it is the samples that fill the memory."""
    found = trial(Toy(), Trainer(Toy()).model(("net",)), request_of(Toy()))
    assert found.obstacle is None
    assert 4 * 5 <= found.sample_bytes <= 4 * 5 * 50


def test_the_last_chunk_may_be_one_client_and_all_are_stacked_all_the_same() -> None:
    pending = cohort(Toy(), (4,) * 7, RECIPE)
    trainer = Trainer(Toy(), rule=Rule("on", memory=1))
    for one, other in zip(answers(trainer, pending), together(Toy(), pending), strict=True):
        for name, value in other.parameters.items():
            torch.testing.assert_close(one.parameters[name], value, rtol=1e-4, atol=1e-6)
    assert dict(trainer.paths) == {"stacked": 7}


# -------------------------------------------------------------------------- what has to be alike


def request_of(architecture: Any, **changes: Any) -> Fit:
    (pending,) = cohort(architecture, (4,), RECIPE)
    return replace(fit_of(pending), **changes)


def test_fits_that_differ_in_more_than_values_samples_and_seeds_have_other_signatures() -> None:
    request = request_of(Toy(), extra={"anchor": {"w": torch.zeros(2)}})
    key = signature(("net",), request)
    alike = replace(
        request,
        start={name: value + 1 for name, value in request.start.items()},
        data=request.data.span(0, 2),
        extra={"anchor": {"w": torch.ones(2)}},
    )
    assert signature(("net",), alike) == key
    others = [
        replace(request, objective=Proximal(0.1)),
        replace(request, recipe=replace(RECIPE, lr=0.2)),
        replace(request, trains=frozenset({"net"})),
        replace(request, active=frozenset()),
        replace(request, data=request.data.only(["vector"], [])),
        replace(request, data=replace(request.data, table=replace(request.data.table))),
        replace(request, extra={}),
        replace(request, extra={"anchor": {"v": torch.zeros(2)}}),
        replace(request, extra={"anchor": {"w": torch.zeros(3)}}),
        replace(request, extra={"anchor": {"w": torch.zeros(2, dtype=torch.float64)}}),
    ]
    found = [signature(("net",), other) for other in others]
    assert len({key, *found}) == 1 + len(others)
    assert signature(("other",), request) != key
    assert layout({"w": torch.zeros(2)}) == layout({"w": torch.ones(2)})


def test_equal_objectives_are_stacked_though_they_are_two_objects() -> None:
    anchor = Toy().initial(0)
    pending = cohort(Toy(), COUNTS, RECIPE, extra=lambda client: {"anchor": anchor})
    pending = [replace(one, request=replace(fit_of(one), objective=Proximal(0.1))) for one in pending]
    assert together(Toy(), pending)


def test_a_client_that_is_the_only_one_of_its_kind_trains_alone() -> None:
    pending = cohort(Toy(), (4, 4, 4), RECIPE)
    pending[1] = replace(pending[1], request=replace(fit_of(pending[1]), recipe=replace(RECIPE, lr=0.2)))
    trainer = Trainer(Toy())
    answers(trainer, pending)
    assert dict(trainer.paths) == {
        "stacked": 2,
        "one by one: no other client has the same model, objective and kinds of samples": 1,
    }


# -------------------------------------------------------------------------- objectives that cannot be stacked


def branching(model: Any, batch: Any, extra: Any) -> Any:
    loss, logged = supervised(model, batch, extra)
    return (loss * 2 if loss > 1 else loss), logged


def reading_a_value(model: Any, batch: Any, extra: Any) -> Any:
    loss, logged = supervised(model, batch, extra)
    return loss * float(loss.detach()), logged


def drawing(model: Any, batch: Any, extra: Any) -> Any:
    loss, logged = supervised(model, batch, extra)
    return loss * torch.rand(()), logged


def with_noise(model: Any, batch: Any, extra: Any) -> Any:
    loss, logged = supervised(model, batch, extra)
    return loss + torch.randn_like(model.parameters["net.left"]).mul(model.parameters["net.left"]).sum(), logged


def branching_on_a_constant(model: Any, batch: Any, extra: Any) -> Any:
    loss, logged = supervised(model, batch, extra)
    return (loss * 2 if extra["weight"]["value"] > 1 else loss), logged


@pytest.mark.parametrize(
    "objective",
    [branching, reading_a_value, drawing, with_noise, branching_on_a_constant],
    ids=lambda one: one.__name__,
)
def test_an_objective_that_cannot_be_stacked_is_trained_one_by_one_and_says_why(objective: Any) -> None:
    """Constants differ between clients: that they may be branched on would show too late, in the middle of a run."""
    constants = [{"weight": {"value": torch.tensor(0.5 + client)}} for client in range(3)]
    pending = cohort(Toy(), COUNTS, RECIPE, objective=objective, extra=lambda client: constants[client])
    trainer = Trainer(Toy(), rule=Rule("on"))
    found = answers(trainer, pending)
    ((path, count),) = trainer.paths.items()
    assert path.startswith(WHY_NOT) and count == 3
    assert "\n" not in path and len(path) < 320
    assert_same_bits(found, alone(Toy(), pending))


@pytest.mark.parametrize("evaluated", [False, True])
def test_a_model_that_draws_random_numbers_is_trained_one_by_one(evaluated: bool) -> None:
    """Also if it was evaluated before, when dropout is out of the way."""
    architecture = Toy(lambda: nn.Sequential(nn.Linear(5, 10), nn.Dropout(0.5)))
    pending = cohort(architecture, COUNTS, RECIPE)
    trainer = Trainer(architecture, rule=Rule("on"))
    if evaluated:
        trainer.model(("net",)).module.eval()
    found = answers(trainer, pending)
    ((path, _),) = trainer.paths.items()
    assert path.startswith(WHY_NOT) and "random" in path
    assert_same_bits(found, alone(architecture, pending))


def test_what_a_trial_found_is_remembered() -> None:
    calls = 0

    def counted(model: Any, batch: Any, extra: Any) -> Any:
        nonlocal calls
        calls += 1
        return supervised(model, batch, extra)

    trainer = Trainer(Toy())
    pending = cohort(Toy(), (4, 4), replace(RECIPE, epochs=1), objective=counted)
    answers(trainer, pending)
    assert calls == 3  # the trial, without and with padding, and a step
    answers(trainer, pending)
    assert calls == 4


def regardless_of_labels(model: Any, batch: Any, extra: Any) -> Any:
    loss = torch.nn.functional.cross_entropy(model(batch).predictions["digit"], batch.targets["digit"])
    return loss, {}


def averaged_over_everybody(model: Any, batch: Any, extra: Any) -> Any:
    losses = sample_losses(DIGIT, model(batch).predictions["digit"], batch.targets["digit"], batch.labelled["digit"])
    return (losses * batch.labelled["digit"]).mean(), {}


def logging_regardless_of_labels(model: Any, batch: Any, extra: Any) -> Any:
    loss, logged = supervised(model, batch, extra)
    return loss, {**logged, "label": batch.targets["digit"].float().mean()}


@pytest.mark.parametrize(
    "objective",
    [regardless_of_labels, averaged_over_everybody, logging_regardless_of_labels],
    ids=lambda one: one.__name__,
)
def test_an_objective_that_padding_would_change_is_trained_one_by_one(objective: Any) -> None:
    pending = cohort(Toy(), COUNTS, RECIPE, objective=objective)
    trainer = Trainer(Toy(), rule=Rule("on"))
    found = answers(trainer, pending)
    reason = "the objective or the model counts samples that are absent and unlabelled, as padding is"
    assert dict(trainer.paths) == {f"one by one: {reason}": 3}
    assert_same_bits(found, alone(Toy(), pending))


class Remembering(nn.Module):
    """A layer that puts another tensor in the place of its buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 10)
        self.register_buffer("last", torch.zeros(()), persistent=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        self.last = values.detach().mean(-1)
        predicted: torch.Tensor = self.layer(values)
        return predicted


def test_a_model_that_keeps_state_is_trained_one_by_one() -> None:
    architecture = Toy(Remembering)
    pending = cohort(architecture, COUNTS, RECIPE)
    trainer = Trainer(architecture, rule=Rule("on"))
    found = answers(trainer, pending)
    assert dict(trainer.paths) == {"one by one: the model keeps state in its buffer 'net.linear.last'": 3}
    assert_same_bits(found, alone(architecture, pending))


def test_a_trial_does_not_depend_on_the_values_a_model_happens_to_hold() -> None:
    def branching(model: Any, batch: Any, extra: Any) -> Any:
        return supervised(model, batch, extra)

    pending = cohort(Toy(), COUNTS, RECIPE, objective=branching)
    fresh, used = Trainer(Toy(), rule=Rule("on")), Trainer(Toy(), rule=Rule("on"))
    with torch.no_grad():
        used.model(("net",)).values.fill_(float("nan"))
    answers(fresh, pending), answers(used, pending)
    assert fresh.paths == used.paths


def test_one_client_for_want_of_memory_is_told_so() -> None:
    (pending,) = cohort(Toy(), (4,), RECIPE)
    for rule, reason in (
        (Rule("on", 1), "engine.batching_memory holds one client only"),
        (Rule("on"), "no other client"),
    ):
        trainer = Trainer(Toy(), rule=rule)
        answers(trainer, [pending])
        ((path, _),) = trainer.paths.items()
        assert path.startswith(f"one by one: {reason}")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("rule", ["on", "off"])
def test_mixed_precision_stays_close_to_float32(precision: Any, rule: Any) -> None:
    """Over many steps: weights must not be rounded once and then kept for the whole fit."""
    pending = cohort(Toy(), COUNTS, replace(RECIPE, epochs=6))
    exact = alone(Toy(), pending)
    found = answers(Trainer(Toy(), rule=Rule(rule), precision=precision), pending)
    for one, other, asked in zip(found, exact, pending, strict=True):
        for name, value in other.parameters.items():
            moved = torch.linalg.vector_norm(value - fit_of(asked).start[name])
            assert torch.linalg.vector_norm(one.parameters[name] - value) <= 0.05 * moved + 1e-6, name
            assert one.parameters[name].dtype == torch.float32


def test_what_an_objective_logs_may_hang_on_its_graph() -> None:
    def attached(model: Any, batch: Any, extra: Any) -> Any:
        loss, logged = supervised(model, batch, extra)
        count = batch.labelled["digit"].sum()
        return loss, {**logged, "again": Share(loss * count, count)}

    pending = cohort(Toy(), COUNTS, RECIPE, objective=attached)
    for fitted in (*together(Toy(), pending), *alone(Toy(), pending)):
        assert fitted.numbers["again"] == pytest.approx(fitted.numbers["loss.digit"])


def test_stacking_disturbs_no_other_request_of_the_same_models() -> None:
    """Stacked, measured, alone and stacked again: the resident model carries nothing over."""
    pending = cohort(Toy(), COUNTS, RECIPE)
    trainer = Trainer(Toy(), rule=Rule("on"))
    first = answers(trainer, pending)
    one = pending[0]
    lonely = trainer.fit(one.card, replace(fit_of(one), trains=frozenset({"net"})), one.key)
    assert_same_bits(answers(trainer, pending), first)
    assert_same_bits([lonely], alone(Toy(), pending)[:1])
