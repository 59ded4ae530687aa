"""Samples for instruction tuning: a picture or none, what a person says and what the model shall answer.

The format is LLaVA's (haotian-liu/LLaVA, docs/Finetune_Custom_Data.md) with further keys of ours, which other programs
ignore; docs/datasets.md describes it in full.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from polyfed.data.boxes import Box

IMAGE = "<image>"
"""Marks in the first turn that the sample has a picture."""

Speaker = Literal["human", "gpt"]
Split = Literal["train", "val", "test"]


class Turn(NamedTuple):
    """What one side says."""

    speaker: Speaker
    text: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """One sample.

    ``image`` is the picture's name relative to the folder of pictures, with ``/``. ``turns`` alternate and begin with
    the human's; with a picture the first one begins with ``<image>`` on a line of its own. ``answers`` are the
    references of the last turn where there are others than its own text (several captions, the answers of ten people).
    ``box`` is that of the object asked for, in the frame of the padded square. ``choices`` are the options of a
    multiple-choice question, which is answered by a letter. ``line`` is where the sample stood in its file.
    """

    id: str
    image: str | None
    turns: tuple[Turn, ...]
    task: str | None = None
    client: str | None = None
    split: Split | None = None
    answers: tuple[str, ...] = ()
    box: Box | None = None
    choices: tuple[str, ...] = ()
    line: int = field(default=0, compare=False)

    @property
    def instruction(self) -> str:
        """The first turn's text without the mark of the picture."""
        return self.turns[0].text.removeprefix(IMAGE).removeprefix("\n") if self.image else self.turns[0].text

    @property
    def references(self) -> tuple[str, ...]:
        """The answers that the last one of the model is compared with."""
        return self.answers or (self.turns[-1].text,)

    def as_json(self) -> dict[str, Any]:
        """Return the sample as it stands in a file; keys without a value are left out."""
        found: dict[str, Any] = {
            "id": self.id,
            "image": self.image,
            "conversations": [{"from": turn.speaker, "value": turn.text} for turn in self.turns],
            "task": self.task,
            "client": self.client,
            "split": self.split,
            "answers": list(self.answers),
            "box": self.box and list(self.box),
            "choices": list(self.choices),
        }
        return {key: value for key, value in found.items() if value}
