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

from polyfed.engine import loop, simulator, trainer
from polyfed.engine.simulator import PersonalStates, Simulator
from polyfed.engine.trainer import Trainer
from polyfed.errors import RunError
from polyfed.method.averaging import Averaging
from polyfed.method.combine import MeanOverHolders
from polyfed.method.protocol import Fitted, expected
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
    patch.setattr(trainer, "torch_generator", lambda *key: torch.Generator().manual_seed(next(count)))


def seed_the_process(patch: Patch) -> None:
    @contextmanager
    def careless(*key: Any, **options: Any) -> Any:
        torch.manual_seed(0)
        yield

    patch.setattr(trainer, "seeded", careless)


def draw_from_the_process(patch: Patch) -> None:
    patch.setattr(trainer, "seeded", lambda *key, **options: nullcontext())
    patch.setattr(trainer, "torch_generator", lambda *key: torch.default_generator)


def take_replies_as_they_come(patch: Patch) -> None:
    def unsorted(self: Simulator, orders: Any, clock: Any, number: int) -> Any:
        for client, order in orders.items():
            yield from self._advance([(client, order)], clock, number)

    patch.setattr(Simulator, "_answers", unsorted)


def forget_personal_states(patch: Patch) -> None:
    patch.setattr(PersonalStates, "take_changed", lambda self: {})


def believe_every_reply(patch: Patch) -> None:
    patch.setattr(simulator, "screen", lambda *arguments, **options: None)


def miscount_bytes(patch: Patch) -> None:
    patch.setattr(simulator, "reply_bytes", lambda reply, components: {"envelope": 1})


def evaluate_carelessly(patch: Patch) -> None:
    honest = loop.evaluate

    def careless(federation: Any, used: Any, parameters_of: Any, *rest: Any) -> Any:
        def nudged(card: Any) -> Any:
            return {name: value.add_(1e-3) for name, value in parameters_of(card).items()}

        return honest(federation, used, nudged, *rest)

    patch.setattr(loop, "evaluate", careless)


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
    patch.setattr(Trainer, "fit", lambda self, card, request, key: Fitted(request.start, 1, {"loss": 1.0}))


def work_on_what_was_sent(patch: Patch) -> None:
    honest = Averaging.train

    def careless(self: Averaging, order: Any, personal: Any, client: Any, clock: Any) -> Any:
        for value in order.tensors["parameters"].values():
            value.add_(1.0)
        return honest(self, order, personal, client, clock)

    patch.setattr(Averaging, "train", careless)


LAWS: dict[str, tuple[Break, Callable[[Patch, Path], None]]] = {
    "only shared names leave": (
        leak_personal_parameters,
        lambda patch, path: laws.test_replies_hold_what_was_asked_for_and_nothing_else("local", patch),
    ),
    "only own components are sent": (
        send_everything_to_everybody,
        lambda patch, path: laws.test_a_client_is_sent_only_components_of_its_own_model("fedavg", patch),
    ),
    "same seed, same bits": (
        shuffle_by_chance,
        lambda patch, path: laws.test_the_same_seed_gives_the_same_bits_and_another_seed_does_not("fedavg"),
    ),
    "the process-wide generator is left alone": (
        seed_the_process,
        lambda patch, path: laws.test_the_process_wide_generator_is_left_alone("fedavg"),
    ),
    "earlier draws do not matter": (
        draw_from_the_process,
        lambda patch, path: laws.test_what_was_drawn_before_does_not_matter("fedavg"),
    ),
    "order is irrelevant": (
        take_replies_as_they_come,
        lambda patch, path: laws.test_the_order_in_which_orders_are_written_down_is_irrelevant("fedavg"),
    ),
    "resuming changes nothing": (
        forget_personal_states,
        lambda patch, path: laws.test_stopping_and_resuming_changes_no_bit("local", path),
    ),
    "bad replies are refused": (
        believe_every_reply,
        lambda patch, path: laws.test_a_bad_reply_is_refused_by_name_and_changes_nothing("fedavg", "absurd norm"),
    ),
    "bytes are counted": (
        miscount_bytes,
        lambda patch, path: laws.test_counted_bytes_are_those_of_the_encoded_messages("fedavg", patch),
    ),
    "evaluating disturbs nothing": (
        evaluate_carelessly,
        lambda patch, path: laws.test_evaluating_more_often_changes_no_bit("fedavg"),
    ),
    "state is not changed": (
        update_in_place,
        lambda patch, path: laws.test_a_round_changes_neither_the_state_nor_the_replies_it_was_given("fedavg"),
    ),
    "orders are not changed": (
        work_on_what_was_sent,
        lambda patch, path: laws.test_a_client_does_not_change_what_it_was_sent("fedavg", patch),
    ),
    "identical replies": (
        average_by_sum,
        lambda patch, path: laws.test_identical_replies_come_back_unchanged("fedavg"),
    ),
    "training helps": (train_nothing, lambda patch, path: laws.test_training_helps("fedavg")),
}


@pytest.mark.parametrize("law", LAWS)
def test_a_broken_promise_is_noticed(law: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    break_it, check = LAWS[law]
    break_it(monkeypatch)
    with pytest.raises((AssertionError, ValueError, RunError)):
        check(monkeypatch, tmp_path)
