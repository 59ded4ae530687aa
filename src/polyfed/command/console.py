"""What every command shares: where output goes, and which exit code an error becomes."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import IO, ParamSpec, TypeVar

import click
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from polyfed.errors import RunError, UserError

P = ParamSpec("P")
T = TypeVar("T")

FAILURE, MISTAKE, STOPPED, UNREAD = 1, 2, 130, 141
"""Exit codes: a run that failed, a mistake of the user's, and, as shells count them, Ctrl-C and a closed pipe."""

PIPE_WIDTH = 200
"""Columns for tables that go to a file or another program, where nothing has to fit a screen."""


class Commands(TyperGroup):
    """Commands that answer a mistyped name with one suggestion, where typer and click would each add theirs."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; raises UsageError, with the names that are close, if there is none."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            suggested = "Did you mean" in error.message
            raise click.UsageError(error.message if suggested else error.format_message(), ctx) from None


class PipedConsole(Console):
    """A console that ends the program without a word when nobody reads on (``| head``)."""

    def on_broken_pipe(self) -> None:
        """Leave, with the exit code that shells give to programs ended by a closed pipe."""
        leave_pipe(self.file)
        raise SystemExit(UNREAD)


def leave_pipe(stream: IO[str]) -> None:
    """Point a stream whose pipe was closed at nothing, so that what it still holds is dropped at the end."""
    with contextlib.suppress(OSError):  # a stream without a descriptor needs nothing
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)


def console(*, stderr: bool = False) -> Console:
    """Return the console of standard output, or of standard error, where progress and errors go.

    Brackets in names are no markup, and what goes to a file or pipe is neither coloured nor cut at 80 columns.
    """
    found = PipedConsole(stderr=stderr, markup=False, highlight=False, emoji=False)
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


def add_columns(table: Table, *headings: str, right: bool = False) -> None:
    """Add columns that fold what is too long for them, for cut names may look alike."""
    for heading in headings:
        table.add_column(heading, justify="right" if right else "left", overflow="fold")


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
        except typer.Exit:
            raise
        except BrokenPipeError:
            leave_pipe(sys.stdout)
            raise typer.Exit(UNREAD) from None
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
