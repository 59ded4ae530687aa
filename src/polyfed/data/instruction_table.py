"""Instructions as a table: token ids, where the answer stands among them, and what the vision tower sees.

The tokenizer and the vision tower are those of a LLaVA checkpoint. The tower is frozen, so every picture goes through
it once, before training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyfed.data.columns import IndirectColumn, TensorColumn
from polyfed.data.dataset import Dataset
from polyfed.data.samples import Table
from polyfed.data.schema import IGNORED, Modality, Task
from polyfed.errors import UserError

IMAGE, TEXT = "image", "text"
IMAGES_AT_ONCE = 64


@dataclass(frozen=True)
class Instruction:
    """One example: what is asked (without the picture's mark), the right answers, of which the first is learned.

    ``picture`` opens it (a PIL image); None where there is none. ``client`` numbers its natural client.
    """

    task: str
    text: str
    answers: tuple[str, ...]
    picture: Callable[[], Any] | None = None
    client: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """What of a LLaVA checkpoint makes tables of instructions: its processor and its vision tower."""

    processor: Any
    tower: Any
    layer: int
    whole: bool
    longest: int

    @property
    def tokens(self) -> int:
        """Image tokens of one picture."""
        vision = self.tower.config
        return int((vision.image_size // vision.patch_size) ** 2) + self.whole

    @torch.no_grad()
    def features(self, pictures: Sequence[Callable[[], Any]]) -> Tensor:
        """Return what the tower makes of pictures: (pictures, tokens, features) float32."""
        found = []
        for start in range(0, len(pictures), IMAGES_AT_ONCE):
            images = [each() for each in pictures[start : start + IMAGES_AT_ONCE]]
            pixels = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
            hidden = self.tower(pixels, output_hidden_states=True).hidden_states[self.layer]
            found.append(hidden if self.whole else hidden[:, 1:])
        return torch.cat(found).float()

    def encoded(self, instruction: Instruction, place: str) -> tuple[list[int], int]:
        """Return the tokens of an instruction with its answer, and how many of them come before the answer.

        Raises UserError naming ``place`` where the text is too long or its template does not part question and answer.
        """
        asked: list[dict[str, str]] = [{"type": "text", "text": instruction.text}]
        if instruction.picture is not None:
            asked.insert(0, {"type": "image"})
        question = {"role": "user", "content": asked}
        answer = {"role": "assistant", "content": [{"type": "text", "text": instruction.answers[0]}]}
        before, whole = (
            self._tokens(self.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompting))
            for turns, prompting in (([question], True), ([question, answer], False))
        )
        if whole[: len(before)] != before or len(whole) == len(before):
            raise UserError(f"{place}: the checkpoint's chat template does not put the answer behind the question")
        if len(whole) > self.longest:
            raise UserError(f"{place}: the text has {len(whole)} tokens; at most {self.longest} are allowed")
        return whole, len(before)

    def _tokens(self, text: str) -> list[int]:
        mark = self.processor.image_token
        text = text.replace(mark, mark * self.tokens)
        found: list[int] = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found


def load_checkpoint(path: str, longest: int) -> Checkpoint:
    """Load the processor and the vision tower of a LLaVA; raises UserError if one of them is missing."""
    try:
        from transformers import LlavaForConditionalGeneration, LlavaProcessor
    except ImportError as error:
        raise UserError(f"instructions need transformers ({error}): pip install 'polyfed[mllm]'") from error
    local = Path(path).is_dir()
    try:
        processor = LlavaProcessor.from_pretrained(path, local_files_only=local)
        model = LlavaForConditionalGeneration.from_pretrained(path, use_safetensors=True, local_files_only=local)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"data.checkpoint: {path!r} cannot be loaded as a LLaVA with its processor ({error}); give a folder as "
            "save_pretrained writes it, or a name on the hub"
        ) from error
    whole, layer = model.config.vision_feature_select_strategy == "full", model.config.vision_feature_layer
    if not isinstance(layer, int):
        raise UserError(f"data.checkpoint: {path!r} takes features from the layers {layer}; one layer is supported")
    return Checkpoint(processor, model.model.vision_tower.eval(), layer, whole, longest)


def instruction_dataset(
    name: str,
    train: Sequence[Instruction],
    test: Sequence[Instruction] | None,
    metrics: dict[str, str],
    found: Checkpoint,
) -> Dataset:
    """Make a dataset of instructions; ``metrics`` says, by task, how its answers are judged."""
    parts = [part for part in (train, test) if part is not None]
    encoded = [[found.encoded(each, f"{name}, example {place}") for place, each in enumerate(part)] for part in parts]
    length = max(len(tokens) for part in encoded for tokens, _ in part)
    features = found.tower.config.hidden_size
    tables = [table(part, held, length, metrics, found) for part, held in zip(parts, encoded, strict=True)]
    return Dataset(
        name,
        {
            IMAGE: Modality(IMAGE, "vector", (found.tokens, features)),
            TEXT: Modality(TEXT, "tokens", (length,), vocabulary=len(found.processor.tokenizer)),
        },
        {task: Task(task, "language", (length,), metric=metric) for task, metric in metrics.items()},
        tables[0],
        tables[1] if test is not None else None,
    )


def table(
    part: Sequence[Instruction],
    encoded: Sequence[tuple[list[int], int]],
    length: int,
    metrics: Iterable[str],
    found: Checkpoint,
) -> Table:
    """Make a table of one part; texts are padded on the right to ``length``."""
    padding = found.processor.tokenizer.pad_token_id
    tokens = torch.full((len(part), length), padding, dtype=torch.int64)
    targets = torch.full((len(part), length), IGNORED, dtype=torch.int64)
    for row, (held, before) in enumerate(encoded):
        tokens[row, : len(held)] = torch.tensor(held)
        targets[row, before : len(held)] = torch.tensor(held[before:])
    seen = torch.tensor([each.picture is not None for each in part])
    pictures = [each.picture for each in part if each.picture is not None]
    features = found.features(pictures) if pictures else torch.zeros(1, found.tokens, found.tower.config.hidden_size)
    index = (seen.long().cumsum(0) - 1).clamp(min=0)
    return Table(
        {IMAGE: IndirectColumn(TensorColumn(features), index), TEXT: TensorColumn(tokens)},
        {task: TensorColumn(targets) for task in metrics},
        {"client": torch.tensor([each.client for each in part])},
        {IMAGE: seen},
        {task: torch.tensor([each.task == task for each in part]) for task in metrics},
        [each.answers for each in part],
    )
