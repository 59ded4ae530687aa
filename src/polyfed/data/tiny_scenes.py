"""The tiny world as a dataset: nine clients who describe, answer and find things in drawn scenes."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from pydantic import Field

from polyfed.data.dataset import Dataset, Root
from polyfed.data.instruction_table import Instruction, instruction_dataset, load_checkpoint
from polyfed.data.scene_examples import CLIENTS, TASKS, Example, Part, client_examples

METRICS = {"vqa": "vqa", "caption": "caption", "grounding": "grounding"}


def tiny_scenes(
    root: Root,
    *,
    checkpoint: Annotated[str, Field(description="folder of the tiny LLaVA: its tokenizer and its vision tower")],
    examples: Annotated[int, Field(ge=1, description="training examples per client")] = 400,
    test_examples: Annotated[int, Field(ge=1, description="test examples per client")] = 100,
    alpha: Annotated[
        float | None, Field(gt=0, description="how much clients' scenes differ: less is more; null: not at all")
    ] = 1.0,
    seed: Annotated[int, Field(description="seed of the scenes")] = 0,
) -> Dataset:
    """Instruction tuning in a tiny drawn world: 9 clients, of which 3 each answer questions, caption, and find objects.

    Drawn by us, nothing is downloaded. Field ``client``: partition by it.
    """

    def drawn_for_all(part: Part, count: int) -> list[Instruction]:
        held = [client_examples(client, count, seed, alpha=alpha, part=part) for client in range(CLIENTS)]
        return [as_instruction(example) for part in held for example in part]

    found = load_checkpoint(checkpoint, longest=512)
    train, test = drawn_for_all("train", examples), drawn_for_all("test", test_examples)
    return instruction_dataset("tiny-scenes", train, test, {task: METRICS[task] for task in TASKS}, found)


def as_instruction(example: Example) -> Instruction:
    """Return an example of the tiny world as an instruction."""
    return Instruction(example.task, example.instruction, example.answers, partial(drawn, example), example.client or 0)


def drawn(example: Example) -> Any:
    """Return the picture of an example for an image processor: (3, height, width) bytes as an array."""
    return example.image.numpy()
