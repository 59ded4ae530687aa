"""Written and spoken digits that ship inside the package: no download, seconds to train."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from polyfed import rng
from polyfed.data.columns import IndirectColumn, TensorColumn
from polyfed.data.dataset import Dataset, Root
from polyfed.data.pairing import pair_by_class
from polyfed.data.samples import Table
from polyfed.data.schema import Modality, Task

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Recordings(NamedTuple):
    """The embedded arrays: images 0..16, spectrograms 0..255, labels, test masks and voices."""

    image: Tensor
    image_label: Tensor
    image_test: Tensor
    audio: Tensor
    audio_label: Tensor
    audio_test: Tensor
    audio_voice: Tensor
    voice_names: tuple[str, ...]


def avdigits(
    root: Root,
    *,
    pairs_per_image: Annotated[
        int, Field(ge=1, le=100, description="rows made of each written digit, each with its own spoken digit")
    ] = 1,
    seed: Annotated[int, Field(ge=0, description="seed of the pairing")] = 0,
) -> Dataset:
    """Written digits paired with spoken digits of the same class; ships with polyfed.

    Modalities ``image`` (1, 8, 8) and ``audio`` (1, 20, 24), values in [0, 1]; tasks ``digit`` (10 classes) and
    ``parity`` (even, odd); fields ``voice`` (0..119, an accent and a speaker) and ``clip`` (0..1199, the utterance, in
    several rows where it is paired with several images). 1,437 training and 360 test images.

    The images are real: 1,797 digits of the Optical Recognition of Handwritten Digits data (Alpaydin and Kaynak, UCI
    1998), as scikit-learn distributes them. The speech is SYNTHETIC: 1,200 words by the speech synthesiser eSpeak NG
    in 8 accents and 15 timbres, with noise (0 to 20 dB) and reverberation added, as log-mel spectrograms (20 bands,
    24 frames, 0.75 s). Use it to learn and to test, not to report how well speech is recognised.

    The rows of one utterance stay together when samples are dealt to clients or held out; those of one image (with
    ``pairs_per_image`` above 1) do not. No image is in both splits, and the three timbres heard in
    the test split are not heard in training. ``root`` is not used.
    """
    held = recordings()
    tables = [paired(held, test, pairs_per_image, seed) for test in (False, True)]
    return Dataset(
        name="avdigits",
        modalities={
            "image": Modality("image", "image", (1, 8, 8)),
            "audio": Modality("audio", "audio", (1, 20, 24)),
        },
        tasks={
            "digit": Task("digit", "classification", classes=10, labels=DIGIT_NAMES),
            "parity": Task("parity", "classification", classes=2, labels=("even", "odd")),
        },
        train=tables[0],
        test=tables[1],
        unit="clip",
        field_labels={"voice": held.voice_names},
    )


@cache
def recordings() -> Recordings:
    """Read the embedded arrays, once per process."""
    with (files("polyfed.data") / "avdigits.npz").open("rb") as stream, np.load(stream) as arrays:
        read = {name: torch.from_numpy(arrays[name]) for name in Recordings._fields if name != "voice_names"}
        voices = tuple(str(name) for name in arrays["voice_names"])
    read["image"], read["audio"] = read["image"].unsqueeze(1), read["audio"].unsqueeze(1)
    return Recordings(**read, voice_names=voices)


def paired(held: Recordings, test: bool, pairs_per_image: int, seed: int) -> Table:
    """Build one split: its images (repeated), each with an utterance of its class from the same split."""
    image = torch.nonzero(held.image_test == test)[:, 0].repeat_interleave(pairs_per_image)
    heard = torch.nonzero(held.audio_test == test)[:, 0]
    digit = held.image_label[image].long()
    draw = rng.numpy_generator(seed, "avdigits", "test" if test else "train")
    audio = heard[pair_by_class(digit, held.audio_label[heard].long(), draw)]
    return Table(
        inputs={
            "image": IndirectColumn(TensorColumn(held.image, 1 / 16), image),
            "audio": IndirectColumn(TensorColumn(held.audio, 1 / 255), audio),
        },
        targets={"digit": TensorColumn(digit), "parity": TensorColumn(digit % 2)},
        fields={"voice": held.audio_voice[audio].long(), "clip": audio},
    )
