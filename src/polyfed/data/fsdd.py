"""Free Spoken Digit Dataset: English digits spoken by six people, 8 kHz.

Source: repository Jakobovski/free-spoken-digit-dataset (Z. Jackson and others), licence CC BY-SA 4.0.
"""

from __future__ import annotations

import hashlib
import re
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from polyfed.data.arrays import Array, read_npz, same_length
from polyfed.data.avdigits import DIGIT_NAMES
from polyfed.data.columns import TensorColumn
from polyfed.data.dataset import Dataset, Root
from polyfed.data.samples import Table
from polyfed.data.schema import Modality, Task
from polyfed.data.source import Layout, locate
from polyfed.data.spectrogram import FLOOR, fit_length, log_mel
from polyfed.errors import UserError

FOLDERS = (
    "free-spoken-digit-dataset/recordings",
    "free-spoken-digit-dataset-master/recordings",
    "free-spoken-digit-dataset-1.0.10/recordings",
    "fsdd/recordings",
    "fsdd",
    "recordings",
)
LAYOUTS = (Layout("packed", (("fsdd.npz",),)), Layout("wav", (FOLDERS,)))
NAME = re.compile(r"(\d)_([a-z]+)_(\d{1,2})\.wav")
RATE = 8000  # Hz
TEST_TAKES = 5  # takes 0 to 4 are the official test split
WINDOW, HOP = 256, 128  # samples: frames of 32 ms every 16 ms at 8 kHz


@dataclass(frozen=True)
class Clips:
    """All recordings, ordered by speaker, digit and take.

    ``audio`` int16 holds the waveforms end to end, full scale 32768; clip i is ``audio[offsets[i]:offsets[i + 1]]``.
    ``label``, ``speaker`` (index into ``speaker_names``) and ``take`` are (clips,) uint8; ``sample_rate`` is in Hz.
    """

    audio: npt.NDArray[np.int16]
    offsets: npt.NDArray[np.int64]
    label: npt.NDArray[np.uint8]
    speaker: npt.NDArray[np.uint8]
    take: npt.NDArray[np.uint8]
    speaker_names: tuple[str, ...]
    sample_rate: int

    def __len__(self) -> int:
        return len(self.label)

    def named(self) -> Iterator[tuple[str, npt.NDArray[np.int16]]]:
        """Iterate over (original file name, waveform) in the clips' order."""
        for i in range(len(self)):
            name = f"{self.label[i]}_{self.speaker_names[self.speaker[i]]}_{self.take[i]}.wav"
            yield name, self.audio[self.offsets[i] : self.offsets[i + 1]]


def clips(root: Root) -> Clips:
    """Read the recordings from ``fsdd.npz`` or from a folder of ``{digit}_{speaker}_{take}.wav`` files.

    Raises UserError where neither is found, or a file is damaged or of another format.
    """
    found = locate("The Free Spoken Digit Dataset", "fsdd", root, LAYOUTS)
    return read_packed(found.paths[0]) if found.layout == "packed" else read_wavs(found.paths[0])


def fsdd(
    root: Root,
    *,
    bins: Annotated[int, Field(ge=4, le=80, description="mel bands from 0 to 4 kHz")] = 32,
    frames: Annotated[int, Field(ge=4, le=200, description="frames of 32 ms, one every 16 ms")] = 64,
) -> Dataset:
    """Spoken digits: 2,700 training and 300 test recordings of six speakers.

    Modality ``audio`` (1, bins, frames): log-mel power, 0 at 80 dB below a full-scale sine or softer and 1 at its
    level, float32. Clips are cut or padded with silence at the end to ``frames`` frames; 64 are 1.04 s, which 99.5 %
    of the clips fit in. Loudness is kept: it differs between speakers by up to 22 dB and is a part of the shift
    between them. Tasks ``digit`` (10 classes) and ``speaker`` (6); fields ``speaker`` and ``take``. The split is the
    official one: takes 0-4 test, 5-49 train.
    """
    read = clips(root)
    audio = spectrograms(read, bins, frames)
    names = read.speaker_names
    return Dataset(
        name="fsdd",
        modalities={"audio": Modality("audio", "audio", (1, bins, frames))},
        tasks={
            "digit": Task("digit", "classification", classes=10, labels=DIGIT_NAMES),
            "speaker": Task("speaker", "classification", classes=len(names), labels=names),
        },
        train=_table(read, audio, torch.from_numpy(read.take >= TEST_TAKES)),
        test=_table(read, audio, torch.from_numpy(read.take < TEST_TAKES)),
        field_labels={"speaker": names},
    )


def spectrograms(read: Clips, bins: int, frames: int) -> Tensor:
    """Compute log-mel spectrograms of all clips, (clips, 1, bins, frames) float32; 0 is the floor, 1 full scale."""
    length = WINDOW + (frames - 1) * HOP
    named, parts = list(read.named()), []
    for start in range(0, len(named), 500):  # in parts, so that the waveforms are never all in memory as floats
        waves = [torch.from_numpy(audio.astype(np.float32) / 32768) for _, audio in named[start : start + 500]]
        levels = log_mel(torch.stack([fit_length(one, length) for one in waves]), read.sample_rate, WINDOW, HOP, bins)
        parts.append(1 - levels / FLOOR)
    return torch.cat(parts).unsqueeze(1)


def digest(read: Clips) -> str:
    """Return the sha256 over file names and samples (little-endian int16), in the order of the file names."""
    found = hashlib.sha256()
    for name, audio in sorted(read.named(), key=lambda clip: clip[0]):
        found.update(name.encode() + b"\n" + audio.astype("<i2").tobytes())
    return found.hexdigest()


def read_packed(path: Path) -> Clips:
    """Read ``fsdd.npz``; raises UserError where it is damaged or inconsistent."""
    kinds = {"audio": "i", "offsets": "iu", "label": "u", "speaker": "u", "take": "u", "speaker_names": "U"}
    read = read_npz(path, {**kinds, "sample_rate": "iu"})
    same_length(path, read, len(read["label"]), ("label", "speaker", "take"))
    same_length(path, read, len(read["label"]) + 1, ("offsets",))
    _check_packed(path, read)
    return Clips(
        read["audio"],
        read["offsets"],
        read["label"],
        read["speaker"],
        read["take"],
        tuple(str(name) for name in read["speaker_names"]),
        RATE,
    )


def read_wavs(folder: Path) -> Clips:
    """Read a folder of ``{digit}_{speaker}_{take}.wav``; other files are left alone.

    Raises UserError where there is none, or one is not mono 16-bit sound at 8 kHz.
    """
    matches = [match for path in folder.iterdir() if (match := NAME.fullmatch(path.name))]
    if not matches:
        raise UserError(f"{folder}: holds no file named like 7_jackson_32.wav (digit, speaker, take)")
    names = tuple(sorted({match[2] for match in matches}))
    ordered = sorted((names.index(match[2]), int(match[1]), int(match[3]), match[0]) for match in matches)
    waves = [_wave(folder / name) for *_, name in ordered]
    speaker, label, take = np.array([row[:3] for row in ordered], dtype=np.uint8).T
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in waves])]).astype(np.int64)
    return Clips(np.concatenate(waves), offsets, label, speaker, take, names, RATE)


def _table(read: Clips, audio: Tensor, chosen: Tensor) -> Table:
    speaker = torch.from_numpy(read.speaker).long()[chosen]
    digit = torch.from_numpy(read.label).long()[chosen]
    return Table(
        inputs={"audio": TensorColumn(audio[chosen])},
        targets={"digit": TensorColumn(digit), "speaker": TensorColumn(speaker)},
        fields={"speaker": speaker, "take": torch.from_numpy(read.take).long()[chosen]},
    )


def _check_packed(path: Path, read: dict[str, Array]) -> None:
    offsets, speakers = read["offsets"], len(read["speaker_names"])
    if not len(read["label"]):
        raise UserError(f"{path}: holds no clips")
    if read["audio"].dtype != np.int16 or not np.array_equal(read["sample_rate"], RATE):
        raise UserError(f"{path}: 'audio' must be int16 and 'sample_rate' {RATE}")
    if offsets[0] != 0 or offsets[-1] != len(read["audio"]) or (np.diff(offsets) < 0).any():
        raise UserError(f"{path}: 'offsets' do not cut 'audio' ({len(read['audio'])} samples) into clips")
    for name, limit in (("label", 10), ("speaker", speakers)):
        if read[name].max() >= limit:
            raise UserError(
                f"{path}: row {int(read[name].argmax())} has {name} {read[name].max()}, expected below {limit}"
            )


def _wave(path: Path) -> npt.NDArray[np.int16]:
    try:
        with wave.open(str(path), "rb") as stream:
            form = stream.getnchannels(), 8 * stream.getsampwidth(), stream.getframerate()
            count = stream.getnframes()
            samples = stream.readframes(count)
    except (OSError, EOFError, wave.Error) as error:
        raise UserError(f"{path}: not a readable wav file ({error or 'cut short'})") from error
    if form != (1, 16, RATE):
        raise UserError(f"{path}: (channels, bits, Hz) are {form}, expected {(1, 16, RATE)}")
    if len(samples) != 2 * count:
        raise UserError(f"{path}: the header promises {count} samples, the file holds {len(samples) // 2}")
    return np.frombuffer(samples, dtype="<i2").astype(np.int16)
