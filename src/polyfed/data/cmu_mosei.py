"""CMU-MOSEI: opinions in 23,000 spoken utterances, as word-aligned features of text, voice and face.

Source: Zadeh, Liang, Poria, Cambria and Morency, "Multimodal language analysis in the wild: CMU-MOSEI dataset and
interpretable dynamic fusion graph", ACL 2018. Reading the files is in ``cmu_mosei_files``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from polyfed.data.arrays import Array, check_range
from polyfed.data.cmu_mosei_files import BLOCK, MODALITIES, Part, parts
from polyfed.data.columns import TensorColumn
from polyfed.data.dataset import Dataset, Root
from polyfed.data.samples import Table
from polyfed.data.schema import Modality, Task

EMOTIONS = slice(1, 4)  # happiness, sadness and anger, the most frequent of the six
ONE_COLUMN = "These files have no emotions: the array 'labels' has one column, the sentiment, but needs seven for them"

Float = npt.NDArray[np.float64]
Classes = Annotated[Literal[9, 7, 3], Field(description="steps that the sentiment is divided into")]


class Scale(NamedTuple):
    """Mean and standard deviation of each feature, (features,); a constant feature has the deviation 1."""

    mean: Float
    deviation: Float


def cmu_mosei(root: Root, *, sentiment_classes: Classes = 9) -> Dataset:
    """Sentiment and emotions of speakers, from what they say, how it sounds and what their faces show.

    Modalities ``text``, ``audio`` and ``video``, usually (300, 50), (74, 50) and (35, 50): features by steps, one per
    word. Every feature is standardised by the training split; a value that is not finite (the public audio features
    have some) is not counted there and becomes 0, the mean. Steps of zeros only are padding and stay zero.

    Task ``sentiment``: the score from -3 to 3 in steps. 9: round(4/3 score), halves away from zero; 7: rounded to whole
    numbers, halves to even; 3: negative, zero, positive. Task ``emotions``, where the files have them: happiness,
    sadness and anger (3,), standardised by the training split. The splits train and valid are the training table (each
    client's validation part is cut from its own samples), the split test is the test table.
    """
    train, valid, test = parts(root)
    scales = {name: scale_of(train.features[name]) for name in MODALITIES}
    modalities = {name: Modality(name, "sensor", train.features[name].shape[:0:-1]) for name in MODALITIES}
    tasks = {
        "sentiment": Task("sentiment", "classification", classes=sentiment_classes, labels=steps(sentiment_classes))
    }
    emotions = emotion_scale(train.labels)
    if emotions is not None:
        tasks["emotions"] = Task("emotions", "regression", shape=emotions.mean.shape)

    def table(held: Sequence[Part]) -> Table:
        inputs = {name: filled(held, name, scales[name]) for name in MODALITIES}
        labels = np.concatenate([part.labels for part in held])
        targets = {"sentiment": torch.from_numpy(sentiment(labels[:, 0], sentiment_classes))}
        if emotions is not None:
            scaled = (labels[:, EMOTIONS] - emotions.mean) / emotions.deviation
            targets["emotions"] = torch.from_numpy(scaled.astype(np.float32))
        return Table(
            {name: TensorColumn(values) for name, values in inputs.items()},
            {name: TensorColumn(values) for name, values in targets.items()},
        )

    absent = {} if emotions is not None else {"emotions": ONE_COLUMN}
    return Dataset("cmu-mosei", modalities, tasks, table([train, valid]), table([test]), absent=absent)


def steps(classes: int) -> tuple[str, ...]:
    """Return the names of the steps of the sentiment, lowest first."""
    if classes == 3:
        return ("negative", "zero", "positive")
    return tuple(str(step) for step in range(-(classes // 2), classes // 2 + 1))


def sentiment(score: Float, classes: int) -> npt.NDArray[np.int64]:
    """Return the class of each score from -3 to 3, (rows,)."""
    if classes == 3:
        step = np.sign(score)
    elif classes == 7:
        step = np.round(score)
    else:
        step = np.sign(score) * np.floor(np.abs(score) * 4 / 3 + 0.5)
    return step.astype(np.int64) + classes // 2


def emotion_scale(labels: Float) -> Scale | None:
    """Return mean and deviation of the three emotions over the training split; None if only the sentiment is there."""
    held = labels[:, EMOTIONS]
    return Scale(held.mean(0), positive(held.std(0))) if held.shape[1] else None


def scale_of(values: Array) -> Scale:
    """Return mean and deviation of each feature of (rows, steps, features) over what is finite and no padding."""
    count, total, squares = (np.zeros(values.shape[2]) for _ in range(3))
    for block, known in blocks(values):
        count += known.sum((0, 1))
        total += block.sum((0, 1))
    mean = total / np.maximum(count, 1)
    for block, known in blocks(values):
        squares += (np.where(known, block - mean, 0) ** 2).sum((0, 1))
    return Scale(mean, positive(np.sqrt(squares / np.maximum(count, 1))))


def filled(held: Sequence[Part], name: str, scale: Scale) -> Tensor:
    """Standardise the features of a modality, one part below the other: (all rows, features, steps) float32.

    They are taken out of the parts: each is given back as soon as its standardised copy is there.
    """
    _, length, features = held[0].features[name].shape
    found = torch.empty(sum(len(part.labels) for part in held), features, length)
    row = 0
    for part in held:
        for block, known in blocks(part.features.pop(name)):
            scaled = np.where(known, (block - scale.mean) / scale.deviation, 0)
            check_range(part.path, name, scaled, " when standardised by the training split")
            found[row : row + len(block)] = torch.from_numpy(scaled.transpose(0, 2, 1))
            row += len(block)
    return found


def blocks(values: Array) -> Iterator[tuple[Float, npt.NDArray[np.bool_]]]:
    """Yield some rows at a time as float64, unknown values zero, and which values are known."""
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK].astype(np.float64)
        finite = np.isfinite(block)
        block = np.where(finite, block, 0)
        yield block, finite & block.any(axis=2, keepdims=True)


def positive(deviation: Float) -> Float:
    """Return the deviations with 1 in place of 0, so that a constant becomes 0."""
    return np.where(deviation > 0, deviation, 1.0)
