"""What every command shares: where output goes, and which exit code an error becomes."""

from __future__ import annotations

import contextlib
import functools
import os
import traceback
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from polyfed.errors import RunError, UserError

P = ParamSpec("P")
T = TypeVar("T")

FAILURE, MISTAKE, STOPPED = 1, 2, 130
"""Exit codes: a run that failed, a mistake of the user's, and Ctrl-C (as shells count it)."""

PIPE_WIDTH = 200
"""Columns for tables that go to a file or another program, where nothing has to fit a screen."""


def console(*, stderr: bool = False) -> Console:
    """Return the console of standard output, or of standard error, where progress and errors go.

    Brackets in names are no markup, and what goes to a file or pipe is neither coloured nor cut at 80 columns.
    """
    found = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not found.is_terminal and not os.environ.get("COLUMNS"):
        found.width = PIPE_WIDTH
    return found


def plain_table(title: str = "") -> Table:
    """Return an empty table without vertical lines, which leaves more room on narrow screens."""
    return Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )


def tell(message: str) -> None:
    """Print a message on standard error, its lines unbroken so that paths can be copied."""
    console(stderr=True).print(message, soft_wrap=True)


def guarded(command: Callable[P, T]) -> Callable[P, T]:
    """Turn the errors of a command into messages and exit codes.

    Mistakes of the user's and failed runs are one message; anything else is a bug and shows its traceback.
    POLYFED_DEBUG=1 shows tracebacks always.
    """

    @functools.wraps(command)
    def call(*arguments: P.args, **options: P.kwargs) -> T:
        try:
            return command(*arguments, **options)
        except (typer.Exit, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            tell("stopped")
            raise typer.Exit(STOPPED) from None
        except UserError as error:
            raise _exit(MISTAKE, f"error: {error}", debugging()) from None
        except RunError as error:
            raise _exit(FAILURE, f"the run failed: {error}", debugging()) from None
        except OSError as error:
            raise _exit(FAILURE, f"failed: {error}", debugging() or error.filename is None) from None
        except Exception as error:
            message = f"polyfed stopped on an error it did not expect: {fault(error)}. Please report it."
            raise _exit(FAILURE, message, True) from None

    return call


def _exit(code: int, message: str, traced: bool) -> typer.Exit:
    if traced:
        tell(traceback.format_exc().rstrip())
    tell(message)
    return typer.Exit(code)


def fault(error: BaseException) -> str:
    """Name an error that is no message of polyfed's own."""
    return f"{type(error).__name__}: {error}"


def debugging() -> bool:
    """Whether the user asked for tracebacks."""
    return os.environ.get("POLYFED_DEBUG", "") not in ("", "0")


@contextlib.contextmanager
def stoppable(advice: Callable[[], str]) -> Iterator[None]:
    """Inside, Ctrl-C ends the program with the advice how to go on (as it is then)."""
    try:
        yield
    except KeyboardInterrupt:
        tell(f"stopped; {advice()}")
        raise typer.Exit(STOPPED) from None
