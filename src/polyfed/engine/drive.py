"""Drive a conversation: hand each exchange to somebody who can hold it, and the answer back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from polyfed.method.protocol import Ask, Conversation

T = TypeVar("T")


def drive(conversation: Conversation[T], exchange: Callable[[Ask], Any]) -> T:
    """Run a conversation to its end and return its value."""
    try:
        wanted = next(conversation)
        while True:
            wanted = conversation.send(exchange(wanted))
    except StopIteration as end:
        value: T = end.value
        return value
