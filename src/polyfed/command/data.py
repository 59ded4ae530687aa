"""``polyfed data``: which datasets are there, whether they are sound, getting those that are not, and converting."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from polyfed.command.console import FAILURE, Commands, add_columns, console, guarded, plain_table
from polyfed.errors import UserError

app = typer.Typer(cls=Commands, no_args_is_help=True, help="List, check, download and convert datasets.")

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


@app.command(
    "check",
    epilog="Examples:\n\npolyfed data check\n\npolyfed data check mnist --root data\n\n"
    "polyfed data check data/mine/instructions.json --images data/mine/images",
)
@guarded
def check_command(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Dataset, or file of samples; default: all datasets that are there."),
    ] = None,
    root: Root = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", metavar="DIR", help="Folder of a file's pictures; default: that of the file."),
    ] = None,
) -> None:
    """Compare datasets with what was published, or check your own samples.

    NAME is a dataset of polyfed data list, or a file for instruction tuning
    (.json or .jsonl, either may end in .gz). The exit code is 1 if a dataset
    differs or a picture is missing, and 2 if a sample is malformed.
    """
    from polyfed.data.check import check, status
    from polyfed.data.checkpoint_place import expanded
    from polyfed.data.conversation_check import SUFFIXES
    from polyfed.data.source import data_root

    if name is not None and name.endswith(SUFFIXES):
        _check_file(expanded(name), images)
        return
    if images is not None:
        raise UserError(f"--images goes with a file of samples, whose name ends in {', '.join(SUFFIXES)}")
    folder = data_root(str(root) if root else None)
    names = [each.name for each in status(folder) if each.found] if name is None else [name]
    sound = [_judge(each, check(each, folder)) for each in names]
    if not all(sound):
        raise typer.Exit(FAILURE)


def _check_file(path: Path, images: Path | None) -> None:
    """Say what a file of samples holds and which pictures it lacks."""
    from polyfed.data.conversation_check import check_conversations
    from polyfed.data.source import existing_folder

    found = check_conversations(path, None if images is None else existing_folder(str(images), "--images"))
    out = console()
    table = plain_table()
    add_columns(table, "task", "split")
    add_columns(table, "samples", right=True)
    for (task, split), count in sorted(found.samples.items(), key=lambda each: [name or "" for name in each[0]]):
        table.add_row(task or "not named", split or "not named", f"{count:,}")
    out.print(table)
    if clients := {name: count for name, count in found.clients.items() if name is not None}:
        out.print(f"clients: {len(clients):,}; their samples: {min(clients.values()):,} to {max(clients.values()):,}")
        if unnamed := found.clients[None]:
            out.print(f"samples that name no client: {unnamed:,}")
    out.print(f"pictures: {found.pictures:,}, of which missing or damaged: {len(found.problems):,}")
    if not _judge(str(path), found.problems, SHOWN):
        raise typer.Exit(FAILURE)


SHOWN = 20  # problems with pictures; where a folder is wrong, there are as many as pictures


def _judge(name: str, problems: Sequence[str], shown: int | None = None) -> bool:
    """Print whether something is sound, and the first so many problems."""
    console().print(f"{name}: {'sound' if not problems else 'NOT SOUND'}", soft_wrap=True)
    for problem in problems[:shown]:
        console().print(f"  {problem}", soft_wrap=True)
    if shown is not None and len(problems) > shown:
        console().print(f"  and {len(problems) - shown:,} more")
    return not problems


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


@app.command(
    "convert",
    epilog="Examples:\n\n"
    "polyfed data convert gqa --from gqa --to data/gqa\n\n"
    "polyfed data convert refcoco --from 'refcoco/refs(unc).json' --images coco --to data/refcoco\n\n"
    "polyfed data convert coco-mini --to data/coco-mini --test-share 0.2",
)
@guarded
def convert_command(
    kind: Annotated[
        str,
        typer.Argument(metavar="KIND", help="What is converted."),
    ],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Folder to make; new or empty.")],
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="PATH",
            help="Folder or file of the dataset; coco-mini and scienceqa-text are looked for in POLYFED_DATA, too.",
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option("--images", metavar="DIR", help="Folder of the pictures; default: that of PATH.")
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", metavar="NAME", help="Another name for the task, such as gqa.")
    ] = None,
    test_share: Annotated[
        float | None,
        typer.Option(
            "--test-share", metavar="SHARE", help="Draw this share of the pictures as test; default: official splits."
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of all draws.")] = 0,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out samples whose picture is missing.")
    ] = False,
    copy_images: Annotated[bool, typer.Option("--copy-images", help="Copy the pictures into the folder.")] = False,
) -> None:
    """Make a public dataset a file for instruction tuning, in LLaVA's format.

    KIND is coco-captions, gqa, refcoco, scienceqa, ocr-vqa, coco-mini or
    scienceqa-text; docs/datasets.md says what each is made of. The folder
    gets instructions.json and appears when it is complete.
    """
    from polyfed.data.convert.kinds import Options, convert

    options = Options(images, task, test_share, seed, skip_missing, copy_images)
    out = console()
    made = convert(kind, source, to, options, progress=console(stderr=True).is_terminal)
    table = plain_table()
    add_columns(table, "task", "split")
    add_columns(table, "samples", right=True)
    for (name, split), count in sorted(made.counts.items()):
        table.add_row(name, split, f"{count:,}")
    out.print(table)
    for reason, count in made.left_out.items():
        out.print(f"{count:,} left out: {reason}", soft_wrap=True)
    out.print(f"samples: {made.file}", soft_wrap=True)
    if made.images is not None:
        out.print(f"pictures: {made.images}", soft_wrap=True)
