"""Errors that polyfed raises on purpose."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path


class PolyfedError(Exception):
    """Base of every error polyfed raises on purpose."""


class UserError(PolyfedError):
    """A mistake in what the user gave: shown as one message, without a traceback, with exit code 2.

    The message names the value, the place (file, row, client, component) and, where there are some, the
    choices.
    """


class RunError(PolyfedError):
    """A run that could not go on although the input was sound (exit code 1), for instance a lost quorum."""


def unknown(kind: str, value: object, choices: Iterable[str], *, place: str = "") -> UserError:
    """Build the error for a value that is none of the choices.

    Example: ``unknown("method", "fedpox", METHODS.names())`` reads "unknown method 'fedpox'; did you mean
    'fedprox'? Choices: fedavg, fedprox, ...".
    """
    names = sorted(str(choice) for choice in choices)
    close = get_close_matches(str(value), names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    where = f"{place}: " if place else ""
    return UserError(f"{where}unknown {kind} {value!r}{hint} Choices: {', '.join(names) or 'none'}")


def count_of(number: int, noun: str) -> str:
    """Count in words: ``count_of(1, "group")`` is "1 group", ``count_of(3, "group")`` is "3 groups"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def up_to(number: int, noun: str) -> str:
    """Name a range from one: ``up_to(1, "client")`` is "1 client", ``up_to(3, "client")`` is "1 to 3 clients"."""
    return count_of(number, noun) if number == 1 else f"1 to {number} {noun}s"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, a file or folder of a run is written; where the system refuses, that is a UserError naming it.

    Whoever writes takes care that what was saved before stays as it was.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else f"cannot be written: {error.strerror or error}"
        raise UserError(f"{path}: {reason}; what was saved before is intact") from error
