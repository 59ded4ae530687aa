"""Modalities (named inputs) and tasks (named outputs)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ModalityKind = Literal["image", "audio", "sensor", "vector", "tokens"]
TaskKind = Literal["classification", "regression", "generation", "language"]
Form = Literal["image", "audio"]
Reduction = Literal["token_mean", "sample_sum"]

IGNORED = -100
"""What stands in the targets of a language task where there is nothing to be learned."""


@dataclass(frozen=True)
class Modality:
    """A named input.

    ``shape`` is that of one sample: ``image`` (channels, height, width), ``audio`` (1, frequency bins, frames: a
    spectrogram), ``sensor`` (channels, time), ``vector`` (features,), ``tokens`` (length,) of ids below
    ``vocabulary``; id 0 is padding. ``family`` names the kind of knowledge that modalities of several datasets have in
    common, such as ``image`` for ``av_image`` and ``fm_image``; left empty it becomes the modality's own name.
    """

    name: str
    kind: ModalityKind
    shape: tuple[int, ...]
    vocabulary: int = 0
    family: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "family", self.family or self.name)


@dataclass(frozen=True)
class Task:
    """A named output.

    ``classification`` has ``classes`` and int64 targets of shape (); ``regression`` and ``generation`` have float32
    targets of ``shape``. What a generation makes has a ``form``: ``image`` (channels, height, width) or ``audio``, a
    spectrogram (1, frequency bins, frames). ``language`` has int64 targets of shape (length,): the tokens of the answer
    where they stand in the text, ``IGNORED`` elsewhere; ``metric`` says how the texts that are generated are judged,
    ``reduction`` whether the loss is the mean over a batch's answer tokens or over its samples of their sum.
    """

    name: str
    kind: TaskKind
    shape: tuple[int, ...] = ()
    classes: int = 0
    labels: tuple[str, ...] = ()
    form: Form = "image"
    metric: str = ""
    reduction: Reduction = "token_mean"
