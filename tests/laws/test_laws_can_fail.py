"""Each law, with its promise broken on purpose: the law must notice."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from polyfed.engine import batching, checklist, minibatches, simulator, trainer
from polyfed.engine.minibatches import StackedBatches
from polyfed.engine.simulator import PersonalStates, Simulator
from polyfed.engine.steps import Alone
from polyfed.engine.trainer import Trainer
from polyfed.errors import RunError
from polyfed.method.averaging import Averaging
from polyfed.method.combine import MeanOverHolders
from polyfed.method.protocol import Fit, Fitted, expected
from polyfed.method.server import Replace
from tests.laws import test_methods as laws

Patch = pytest.MonkeyPatch
Break = Callable[[Patch], None]


def leak_personal_parameters(patch: Patch) -> None:
    honest = Averaging.train

    def leaking(self: Averaging, order: Any, personal: Any, client: Any, clock: Any) -> Any:
        reply, kept = yield from honest(self, order, personal, client, clock)
        return replace(reply, tensors={"parameters": {**reply.tensors["parameters"], **kept["parameters"]}}), kept

    patch.setattr(Averaging, "train", leaking)


def send_everything_to_everybody(patch: Patch) -> None:
    honest = Averaging.orders

    def generous(self: Averaging, state: Any, roster: Any, chosen: Any) -> Any:
        orders = honest(self, state, roster, chosen)
        whole = {"parameters": state.parameters}
        return {k: replace(order, tensors=whole, expects=expected(whole)) for k, order in orders.items()}

    patch.setattr(Averaging, "orders", generous)


def shuffle_by_chance(patch: Patch) -> None:
    count = itertools.count()
    patch.setattr(minibatches, "torch_generator", lambda *key: torch.Generator().manual_seed(next(count)))


def seed_the_process(patch: Patch) -> None:
    @contextmanager
    def careless(*key: Any, **options: Any) -> Any:
        torch.manual_seed(0)
        yield

    patch.setattr(trainer, "seeded", careless)


def seed_the_process_for_a_stack(patch: Patch) -> None:
    patch.setattr(minibatches, "torch_generator", lambda *key: torch.manual_seed(0))


def pass_every_reply(patch: Patch) -> None:
    patch.setattr(checklist.Checklist, "passes", lambda *arguments: True)


def move_clients_whose_steps_are_over(patch: Patch) -> None:
    honest = StackedBatches.at

    def careless(self: StackedBatches, step: int) -> Any:
        own, self.steps = self.steps, [self.steps[0]] * len(self.steps)
        try:
            return honest(self, step)
        finally:
            self.steps = own

    patch.setattr(StackedBatches, "at", careless)


def count_padding_as_labelled(patch: Patch) -> None:
    honest = StackedBatches.at

    def careless(self: StackedBatches, step: int) -> Any:
        found = honest(self, step)
        labelled = {name: torch.ones_like(mask) for name, mask in found.batch.labelled.items()}
        return replace(found, batch=found.batch._replace(labelled=labelled))

    patch.setattr(StackedBatches, "at", careless)


def forget_that_modalities_are_missing(patch: Patch) -> None:
    honest = StackedBatches.at

    def careless(self: StackedBatches, step: int) -> Any:
        found = honest(self, step)
        present = {name: torch.ones_like(mask) for name, mask in found.batch.present.items()}
        return replace(found, batch=found.batch._replace(present=present))

    patch.setattr(StackedBatches, "at", careless)


def train_one_by_one_whatever_is_asked(patch: Patch) -> None:
    patch.setattr(batching.Rule, "against", lambda self, model: "never")


def draw_from_the_process(patch: Patch) -> None:
    patch.setattr(trainer, "seeded", lambda *key, **options: nullcontext())
    patch.setattr(minibatches, "torch_generator", lambda *key: torch.default_generator)


def take_replies_as_they_come(patch: Patch) -> None:
    honest = Simulator._answers

    def unsorted(self: Simulator, wanted: Any, clock: Any, number: int) -> Any:
        answers = {pair[0].client: pair for pair in honest(self, wanted, clock, number)}
        return iter([answers[client] for client in wanted.orders])

    patch.setattr(Simulator, "_answers", unsorted)


def forget_personal_states(patch: Patch) -> None:
    patch.setattr(PersonalStates, "take_changed", lambda self: {})


def believe_every_reply(patch: Patch) -> None:
    patch.setattr(simulator, "screen", lambda *arguments, **options: None)


def miscount_bytes(patch: Patch) -> None:
    for module in (checklist, simulator):
        patch.setattr(module, "reply_bytes", lambda reply, components: {"envelope": 1})


def evaluate_carelessly(patch: Patch) -> None:
    honest = Alone.evaluate

    def careless(self: Alone, clients: Any, parameters_of: Any) -> Any:
        def nudged(client: int) -> Any:
            return tuple({name: value.add_(1e-3) for name, value in part.items()} for part in parameters_of(client))

        return honest(self, clients, nudged)

    patch.setattr(Alone, "evaluate", careless)


def update_in_place(patch: Patch) -> None:
    def careless(self: Replace, current: Any, average: Any, memory: Any) -> Any:
        for name, value in average.items():
            current[name].copy_(value)
        return current, memory

    patch.setattr(Replace, "update", careless)


def average_by_sum(patch: Patch) -> None:
    honest = MeanOverHolders.finish

    def summed(self: MeanOverHolders) -> Any:
        mean = honest(self)
        return replace(mean, values={name: value * mean.weights[name] / 100 for name, value in mean.values.items()})

    patch.setattr(MeanOverHolders, "finish", summed)


def train_nothing(patch: Patch) -> None:
    def idle(request: Fit) -> Fitted:
        return Fitted(request.start, 1, {"loss": 1.0})

    patch.setattr(Trainer, "fit", lambda self, card, request, key: idle(request))
    patch.setattr(trainer, "fit_stacked", lambda model, moving, requests, *rest: [idle(one) for one in requests])


def work_on_what_was_sent(patch: Patch) -> None:
    honest = Averaging.train

    def careless(self: Averaging, order: Any, personal: Any, client: Any, clock: Any) -> Any:
        for value in order.tensors["parameters"].values():
            value.add_(1.0)
        return honest(self, order, personal, client, clock)

    patch.setattr(Averaging, "train", careless)


Check = Callable[[Patch, Path], object]


def agreement(patch: Patch, folder: Path) -> None:
    laws.test_training_stacked_and_one_by_one_agree_up_to_rounding("fedavg", folder)


LAWS: dict[str, tuple[Break, Check]] = {
    "only own components are sent": (
        send_everything_to_everybody,
        lambda patch, folder: laws.test_a_client_is_sent_only_components_of_its_own_model("fedavg", patch),
    ),
    "bad replies are refused by the screen": (
        believe_every_reply,
        lambda patch, folder: laws.test_bad_replies_are_refused_by_name_and_change_nothing("fedavg"),
    ),
    "bad replies are refused by the checklist": (
        pass_every_reply,
        lambda patch, folder: laws.test_bad_replies_are_refused_by_name_and_change_nothing("fedavg"),
    ),
    "bytes are counted": (
        miscount_bytes,
        lambda patch, folder: laws.test_counted_bytes_are_those_of_the_encoded_messages("fedavg", patch),
    ),
    "identical replies": (
        average_by_sum,
        lambda patch, folder: laws.test_identical_replies_come_back_unchanged("fedavg"),
    ),
    "one who trains alone seeds no process": (
        seed_the_process,
        lambda patch, folder: laws.test_the_process_wide_generator_is_left_alone("fedavg", laws.ALONE),
    ),
    "a stack seeds no process": (
        seed_the_process_for_a_stack,
        lambda patch, folder: laws.test_the_process_wide_generator_is_left_alone("fedavg", laws.STACKED),
    ),
    "who is finished does not move": (move_clients_whose_steps_are_over, agreement),
    "padding is not labelled": (count_padding_as_labelled, agreement),
    "missing modalities are masked": (forget_that_modalities_are_missing, agreement),
    "the path asked for is taken": (train_one_by_one_whatever_is_asked, agreement),
}

LAWS_OF_BOTH_PATHS: dict[str, tuple[Break, Callable[[str, Patch, Path], object]]] = {
    "only shared names leave": (
        leak_personal_parameters,
        lambda path, patch, folder: laws.test_replies_hold_what_was_asked_for_and_nothing_else("local", path, patch),
    ),
    "same seed, same bits": (
        shuffle_by_chance,
        lambda path, patch, folder: laws.test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(
            "fedavg", path
        ),
    ),
    "earlier draws do not matter": (
        draw_from_the_process,
        lambda path, patch, folder: laws.test_what_was_drawn_before_does_not_matter("fedavg", path),
    ),
    "order is irrelevant": (
        take_replies_as_they_come,
        lambda path, patch, folder: laws.test_the_order_in_which_orders_are_written_down_is_irrelevant("fedavg", path),
    ),
    "resuming changes nothing": (
        forget_personal_states,
        lambda path, patch, folder: laws.test_stopping_and_resuming_changes_no_bit("local", path, folder),
    ),
    "evaluating disturbs nothing": (
        evaluate_carelessly,
        lambda path, patch, folder: laws.test_evaluating_more_often_changes_no_bit("fedavg", path),
    ),
    "state is not changed": (
        update_in_place,
        lambda path, patch, folder: laws.test_a_round_changes_neither_the_state_nor_the_replies_it_was_given(
            "fedavg", path
        ),
    ),
    "orders are not changed": (
        work_on_what_was_sent,
        lambda path, patch, folder: laws.test_a_client_does_not_change_what_it_was_sent("fedavg", path, patch),
    ),
    "training helps": (train_nothing, lambda path, patch, folder: laws.test_training_helps("fedavg", path)),
}


NOTICED = (AssertionError, ValueError, LookupError, RunError)  # a LookupError: the client itself refuses strange names


@pytest.mark.parametrize("law", LAWS)
def test_a_broken_promise_is_noticed(law: str, monkeypatch: Patch, tmp_path: Path) -> None:
    break_it, check = LAWS[law]
    break_it(monkeypatch)
    with pytest.raises(NOTICED):
        check(monkeypatch, tmp_path)


@pytest.mark.parametrize("path", laws.PATHS)
@pytest.mark.parametrize("law", LAWS_OF_BOTH_PATHS)
def test_a_broken_promise_is_noticed_on_both_paths(law: str, path: str, monkeypatch: Patch, tmp_path: Path) -> None:
    break_it, check = LAWS_OF_BOTH_PATHS[law]
    break_it(monkeypatch)
    with pytest.raises(NOTICED):
        check(path, monkeypatch, tmp_path)
