"""The tiny world as a dataset: nine clients who describe, answer and find things in drawn scenes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from polyfed.data.dataset import Dataset, Root
from polyfed.data.instruction_table import Instruction, Vision, instruction_dataset, load_checkpoint
from polyfed.data.scene_examples import CLIENTS, TASKS, Example, client_examples, client_task, common_examples

METRICS = {"vqa": "vqa", "caption": "caption", "grounding": "grounding"}


def tiny_scenes(
    root: Root,
    *,
    checkpoint: Annotated[str, Field(description="folder of the tiny LLaVA: its tokenizer and its vision tower")],
    examples: Annotated[int, Field(ge=1, description="training examples per client")] = 400,
    test_examples: Annotated[int, Field(ge=1, description="test examples per client")] = 100,
    test: Annotated[
        Literal["common", "own"],
        Field(description="test on scenes of the whole world, the same for the clients of a task, or of their own"),
    ] = "common",
    alpha: Annotated[
        float | None, Field(gt=0, description="how much clients' scenes differ: less is more; null: not at all")
    ] = 1.0,
    vision: Annotated[
        Vision, Field(description="give models what the vision tower makes of pictures, or pixels, to train the tower")
    ] = "features",
    seed: Annotated[int, Field(description="seed of the scenes")] = 0,
) -> Dataset:
    """Instruction tuning in a tiny drawn world: 9 clients, of which 3 each answer questions, caption, and find objects.

    Drawn by us, nothing is downloaded. Field ``client``: partition by it.
    """

    def tests(client: int) -> list[Example]:
        if test == "own":
            return client_examples(client, test_examples, seed, alpha=alpha, part="test")
        drawn = common_examples(client_task(client), test_examples, seed)
        return [replace(example, client=client) for example in drawn]

    found = load_checkpoint(checkpoint, longest=512)
    train, held_out = (
        [as_instruction(example) for client in range(CLIENTS) for example in drawn(client)]
        for drawn in (lambda client: client_examples(client, examples, seed, alpha=alpha), tests)
    )
    return instruction_dataset("tiny-scenes", train, held_out, {task: METRICS[task] for task in TASKS}, found, vision)


def as_instruction(example: Example) -> Instruction:
    """Return an example of the tiny world as an instruction."""
    return Instruction(
        example.task, example.instruction, example.answers, partial(picture_of, example), example.client or 0
    )


def picture_of(example: Example) -> npt.NDArray[np.uint8]:
    """Return the picture of an example for an image processor: (3, height, width) bytes as an array."""
    found: npt.NDArray[np.uint8] = example.image.numpy()
    return found
