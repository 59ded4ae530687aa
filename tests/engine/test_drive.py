from __future__ import annotations

from polyfed.engine.drive import drive
from polyfed.method.protocol import Ask, Conversation, Order, Reply, ask


def test_a_conversation_can_be_driven_by_a_dictionary() -> None:
    def conversation() -> Conversation[float]:
        orders = {client: Order("measure", frozenset()) for client in (2, 1)}
        replies = yield from ask(orders)
        again = yield from ask({max(replies, key=lambda k: replies[k].numbers["loss"]): Order("measure", frozenset())})
        return sum(reply.numbers["loss"] for reply in again.values())

    losses = {1: 0.5, 2: 0.25}

    def exchange(wanted: Ask) -> dict[int, Reply]:
        return {client: Reply(1, {}, {"loss": losses[client]}) for client in wanted.orders}

    assert drive(conversation(), exchange) == 0.5


def test_a_conversation_without_exchanges_ends_at_once() -> None:
    def conversation() -> Conversation[int]:
        yield from ()
        return 7

    assert drive(conversation(), lambda wanted: None) == 7
