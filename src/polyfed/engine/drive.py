"""Drive a conversation: hand each exchange to somebody who can hold it, and the answer back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from polyfed.method.protocol import Ask, Conversation, Note

T = TypeVar("T")


def unheard(said: Note) -> None:
    """Let a note go."""


def drive(conversation: Conversation[T], exchange: Callable[[Ask], Any], record: Callable[[Note], None] = unheard) -> T:
    """Run a conversation to its end and return its value; ``record`` is given what it notes."""
    try:
        wanted = next(conversation)
        while True:
            if isinstance(wanted, Note):
                record(wanted)
                wanted = next(conversation)
            else:
                wanted = conversation.send(exchange(wanted))
    except StopIteration as end:
        value: T = end.value
        return value
