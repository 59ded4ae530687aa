"""``polyfed pretrain``: models that federated tuning starts from, trained in one place."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polyfed.command.console import Commands, add_columns, console, guarded, plain_table, stoppable

if TYPE_CHECKING:
    from rich.table import Table

    from polyfed.data.scene_examples import SceneTask

app = typer.Typer(cls=Commands, no_args_is_help=True, help="Train the models that federated tuning starts from.")


@app.command(
    "tiny-llava",
    epilog="Examples:\n\n"
    "polyfed pretrain tiny-llava checkpoints/tiny-llava\n\n"
    "polyfed pretrain tiny-llava checkpoints/other --seed 1 --language-steps 2000",
)
@guarded
def tiny_llava_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to make; new or empty.")],
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of weights, scenes and their order.")] = 0,
    vision_steps: Annotated[
        int, typer.Option("--vision-steps", metavar="N", min=0, help="Steps of the vision tower, 32 pictures each.")
    ] = 1000,
    language_steps: Annotated[
        int,
        typer.Option(
            "--language-steps", metavar="N", min=0, help="Steps of connector and language model, 12 pictures each."
        ),
    ] = 1100,
    test_examples: Annotated[
        int, typer.Option("--test-examples", metavar="N", min=0, help="Test examples per task; 0: no test.")
    ] = 200,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Make a tiny LLaVA that knows the broad part of the drawn world.

    It describes pictures of 32 x 32 pixels with a few coloured shapes,
    answers questions about them and finds objects in them. Takes three to
    four minutes on one processor core. FOLDER must be new or empty; it is
    written when the model is complete, as an ordinary checkpoint of Hugging
    Face's transformers. docs/instruction-tuning.md says more.
    """
    from polyfed.command.progress import StageProgress
    from polyfed.model.tiny_llava import refuse_used, save_checkpoint
    from polyfed.model.tiny_pretraining import LANGUAGE, VISION, Steps, pretrain, scores

    refuse_used(folder)
    watch = StageProgress(console(stderr=True), {VISION: vision_steps, LANGUAGE: language_steps}, quiet=quiet)
    with stoppable(lambda: "nothing was written"), watch:
        model, processor = pretrain(seed, Steps(vision_steps, language_steps), watch)
        found = scores(model, processor, test_examples, seed) if test_examples and not quiet else {}
        save_checkpoint(model, processor, folder)
    if quiet:
        return
    if found:
        console().print(_table(found))
    console().print(f"{folder}", soft_wrap=True)


def _table(found: dict[SceneTask, tuple[dict[str, float], ...]]) -> Table:
    """Return the main metric of every task: in the part of the world trained on, and in the whole."""
    from polyfed.report.formats import shown

    table = plain_table()
    add_columns(table, "task", "metric")
    add_columns(table, "broad part", "whole world", right=True)
    for task, parts in found.items():
        metric = next(iter(parts[0]))
        table.add_row(task, metric, *(shown(metric, values[metric]) for values in parts))
    return table
