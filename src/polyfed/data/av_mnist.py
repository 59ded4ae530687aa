"""AV-MNIST: a degraded written digit and a noisy spoken one of the same class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from polyfed import rng
from polyfed.data.avdigits import DIGIT_NAMES
from polyfed.data.columns import Column, IndirectColumn, TensorColumn
from polyfed.data.dataset import Dataset, Root
from polyfed.data.fsdd import Clips, clips
from polyfed.data.idx import Bytes
from polyfed.data.mnist import ImageArrays, digits
from polyfed.data.pairing import stratified
from polyfed.data.samples import Table
from polyfed.data.schema import Modality, Task
from polyfed.data.spoken import pair_with_speech, square_spectrograms

KEPT_VARIANCE = 0.25  # "75 % of the energy removed"


def av_mnist(
    root: Root,
    *,
    noise_db: Annotated[
        float | None, Field(description="signal-to-noise ratio of the speech in dB; null: no noise")
    ] = 10.0,
    generation: Annotated[bool, Field(description="add the tasks clean_image and clean_audio")] = False,
    size: Annotated[int, Field(ge=8, le=512, description="height and width of the spectrogram")] = 112,
    limit: Annotated[int | None, Field(ge=10, description="training rows to keep, stratified; null: all")] = None,
    seed: Annotated[int, Field(ge=0, description="seed of pairing, noise and the choice of rows")] = 0,
) -> Dataset:
    """AV-MNIST: MNIST images with most of their energy removed, and noisy spoken digits of the same class.

    Modalities ``image`` (1, 28, 28): the MNIST digit projected on the leading principal components that reach 25 % of
    the variance of the 60,000 training images, clipped to [0, 1]; ``audio`` (1, size, size): the log-power spectrogram
    of a Free Spoken Digit recording of the same digit, in [0, 1]. Task ``digit`` (10 classes); with ``generation`` also
    ``clean_image`` (1, 28, 28) and ``clean_audio`` (1, size, size), the same sample before anything was removed or
    added. Fields ``speaker`` and ``clip``, the recording's number. 60,000 training and 10,000 test rows, one per image;
    recordings repeat (drawn with replacement), and those of the test split (takes 0-4) never occur in training. The
    rows of one recording stay together when samples are dealt to clients or held out.

    Source: the construction of Vielzeuf et al., "CentralNet", ECCV workshops 2018, with the freely obtainable Free
    Spoken Digit Dataset in place of TIDIGITS; what is made of it carries its licence, CC BY-SA 4.0.
    """
    parts, read = digits(root), clips(root)
    basis = principal_components(parts[0].images, KEPT_VARIANCE)
    speech = {"audio": square_spectrograms(read, size, noise_db, seed)}
    if generation:
        speech["clean_audio"] = square_spectrograms(read, size, None, seed)
    chosen = stratified(torch.from_numpy(parts[0].labels).long(), limit, rng.numpy_generator(seed, "av-mnist", "limit"))
    tasks = {"digit": Task("digit", "classification", classes=10, labels=DIGIT_NAMES)}
    if generation:
        tasks["clean_image"] = Task("clean_image", "generation", shape=(1, 28, 28))
        tasks["clean_audio"] = Task("clean_audio", "generation", shape=(1, size, size), form="audio")
    return Dataset(
        name="av-mnist",
        modalities={
            "image": Modality("image", "image", (1, 28, 28)),
            "audio": Modality("audio", "audio", (1, size, size)),
        },
        tasks=tasks,
        train=_table(parts[0], chosen, basis, read, speech, False, seed),
        test=_table(parts[1], torch.arange(len(parts[1].labels)), basis, read, speech, True, seed),
        unit="clip",
        field_labels={"speaker": read.speaker_names},
    )


@dataclass(frozen=True)
class Basis:
    """Leading principal components of images: ``mean`` (pixels,) and orthonormal ``components`` (count, pixels)."""

    mean: Tensor
    components: Tensor

    def codes(self, images: Bytes) -> Tensor:
        """Project images (N, 28, 28) of bytes to (N, count) float32."""
        parts = [_flat(images[start : start + 10_000]) for start in range(0, len(images), 10_000)]
        return torch.cat([(part - self.mean) @ self.components.T for part in parts])


@dataclass(frozen=True)
class ProjectedColumn:
    """Images kept as their codes, and made when they are asked for: mean + codes · components, clipped to [0, 1]."""

    basis: Basis
    codes: Tensor
    shape: tuple[int, ...]

    @property
    def resident(self) -> bool:
        """Made of codes in memory."""
        return True

    def __len__(self) -> int:
        return len(self.codes)

    def gather(self, rows: Tensor) -> Tensor:
        """Return the named images, (rows, *shape)."""
        flat = torch.addmm(self.basis.mean, self.codes.index_select(0, rows), self.basis.components)
        return flat.clamp_(0, 1).view(-1, *self.shape)


def principal_components(images: Bytes, kept: float) -> Basis:
    """Fit the fewest leading components whose share of the variance of ``images`` (0..1) is at least ``kept``."""
    total = torch.zeros(images[0].size, dtype=torch.float64)
    products = torch.zeros(images[0].size, images[0].size, dtype=torch.float64)
    for start in range(0, len(images), 10_000):
        flat = _flat(images[start : start + 10_000])
        total += flat.sum(0, dtype=torch.float64)
        products += (flat.T @ flat).double()
    mean = total / len(images)
    values, vectors = torch.linalg.eigh(products / len(images) - torch.outer(mean, mean))
    share = values.flip(0).clamp_min(0).cumsum(0) / values.clamp_min(0).sum()
    count = int((share < kept).sum()) + 1
    return Basis(mean.float(), vectors.flip(1)[:, :count].T.contiguous().float())


def _flat(images: Bytes) -> Tensor:
    return torch.from_numpy(images.reshape(len(images), -1).astype(np.float32) / 255)


def _table(
    part: ImageArrays,
    rows: Tensor,
    basis: Basis,
    read: Clips,
    speech: dict[str, Tensor],
    test: bool,
    seed: int,
) -> Table:
    digit = torch.from_numpy(part.labels).long()[rows]
    clip = pair_with_speech(read, digit, test, seed)
    targets: dict[str, Column] = {"digit": TensorColumn(digit)}
    if "clean_audio" in speech:
        clean = TensorColumn(torch.from_numpy(part.images).unsqueeze(1), 1 / 255)
        targets["clean_image"] = IndirectColumn(clean, rows)
        targets["clean_audio"] = IndirectColumn(TensorColumn(speech["clean_audio"], 1 / 255), clip)
    return Table(
        inputs={
            "image": ProjectedColumn(basis, basis.codes(part.images[rows.numpy()]), (1, 28, 28)),
            "audio": IndirectColumn(TensorColumn(speech["audio"], 1 / 255), clip),
        },
        targets=targets,
        fields={"speaker": torch.from_numpy(read.speaker).long()[clip], "clip": clip},
    )
