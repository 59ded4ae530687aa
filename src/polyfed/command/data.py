"""``polyfed data``: which datasets are there, whether they are sound, and getting those that are not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from polyfed.command.console import FAILURE, Commands, add_columns, console, guarded, plain_table
from polyfed.errors import UserError

app = typer.Typer(cls=Commands, no_args_is_help=True, help="List, check and download datasets.")

Root = Annotated[
    Path | None, typer.Option("--root", metavar="DIR", help="Folder of downloaded sets; default: POLYFED_DATA.")
]


@app.command("list", epilog="Example: polyfed data list --root data")
@guarded
def list_command(root: Root = None) -> None:
    """Say of every dataset whether it is there, where it lies or how to get it."""
    from polyfed.data.check import status
    from polyfed.data.source import VARIABLE, data_root

    folder = data_root(str(root) if root else None)
    out = console()
    place = folder if folder is not None else f"not named; give --root DIR or set {VARIABLE}"
    out.print(f"folder of downloaded sets: {place}", soft_wrap=True)
    table = plain_table()
    add_columns(table, "dataset", "there", "layout", "where, or how to get it")
    for each in status(folder):
        table.add_row(each.name, "yes" if each.found else "no", each.layout, each.detail)
    out.print(table)


@app.command("check", epilog="Examples:\n\npolyfed data check\n\npolyfed data check mnist --root data")
@guarded
def check_command(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Dataset; default: all that are there.")] = None,
    root: Root = None,
) -> None:
    """Compare datasets with what was published; exit code 1 if one of them differs."""
    from polyfed.data.check import check, status
    from polyfed.data.source import data_root

    folder = data_root(str(root) if root else None)
    names = [each.name for each in status(folder) if each.found] if name is None else [name]
    faulty = False
    for each in names:
        problems = check(each, folder)
        faulty = faulty or bool(problems)
        console().print(f"{each}: {'sound' if not problems else 'NOT SOUND'}")
        for problem in problems:
            console().print(f"  {problem}", soft_wrap=True)
    if faulty:
        raise typer.Exit(FAILURE)


@app.command("fetch", epilog="Example: polyfed data fetch mnist --root data")
@guarded
def fetch_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Dataset to download; see polyfed data list.")],
    root: Root = None,
) -> None:
    """Download a dataset, check it, and put it into the folder of downloaded sets."""
    from polyfed.data.fetch import fetch
    from polyfed.data.source import VARIABLE

    named = str(root) if root else os.environ.get(VARIABLE)
    if not named:
        raise UserError(f"where to? Give --root DIR, or set {VARIABLE} to the folder of downloaded sets")
    progress = console(stderr=True).is_terminal
    paths = fetch(name, Path(named).expanduser(), progress=progress)
    for path in paths:
        console().print(f"{name}: {path}", soft_wrap=True)
    if not paths:
        console().print(f"{name} ships inside polyfed; there is nothing to download")
