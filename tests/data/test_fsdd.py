from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyfed.data import fsdd
from polyfed.data.catalog import DATASETS
from polyfed.errors import UserError


def write_wav(path: Path, samples: list[int], rate: int = 8000, channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as stream:
        stream.setnchannels(channels)
        stream.setsampwidth(2)
        stream.setframerate(rate)
        stream.writeframes(np.array(samples, dtype="<i2").tobytes())


def write_recordings(folder: Path) -> None:
    write_wav(folder / "7_lucas_5.wav", [5, 6])
    write_wav(folder / "7_anna_10.wav", [3, -4, 32767])
    write_wav(folder / "7_anna_4.wav", [1])
    write_wav(folder / "2_lucas_0.wav", [-32768])
    (folder / "notes.txt").write_text("not a recording")


PACKED: dict[str, Any] = {
    "audio": np.array([1, 3, -4, 32767, -32768, 5, 6], dtype=np.int16),
    "offsets": np.array([0, 1, 4, 5, 7]),
    "label": np.array([7, 7, 2, 7], dtype=np.uint8),
    "speaker": np.array([0, 0, 1, 1], dtype=np.uint8),
    "take": np.array([4, 10, 0, 5], dtype=np.uint8),
    "speaker_names": np.array(["anna", "lucas"]),
    "sample_rate": np.array(8000),
}


@pytest.mark.parametrize("folder", ["free-spoken-digit-dataset/recordings", "fsdd", "recordings"])
def test_recordings_and_the_packed_file_read_the_same(tmp_path: Path, folder: str) -> None:
    write_recordings(tmp_path / "wav" / folder)
    (tmp_path / "packed").mkdir()
    np.savez(tmp_path / "packed/fsdd.npz", **PACKED)
    wavs, packed = fsdd.clips(tmp_path / "wav"), fsdd.clips(tmp_path / "packed")
    assert wavs.speaker_names == packed.speaker_names == ("anna", "lucas")
    for name in ("audio", "offsets", "label", "speaker", "take"):
        np.testing.assert_array_equal(getattr(wavs, name), PACKED[name])
        np.testing.assert_array_equal(getattr(packed, name), PACKED[name])
    assert fsdd.digest(wavs) == fsdd.digest(packed)


def test_the_split_is_by_take(tmp_path: Path) -> None:
    write_recordings(tmp_path / "fsdd")
    data = fsdd.fsdd(tmp_path, bins=8, frames=4)
    assert data.test is not None
    assert data.modalities["audio"].shape == (1, 8, 4)
    assert data.tasks["speaker"].labels == ("anna", "lucas")
    assert data.train.fields["take"].tolist() == [10, 5]
    train, test = data.train.everything().batch(), data.test.everything().batch()
    assert train.inputs["audio"].shape == (2, 1, 8, 4)
    assert (train.targets["digit"].tolist(), train.targets["speaker"].tolist()) == ([7, 7], [0, 1])
    assert (test.targets["digit"].tolist(), test.targets["speaker"].tolist()) == ([7, 2], [0, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": np.array([7, 7, 12, 7], dtype=np.uint8)}, "row 2 has label 12, expected below 10"),
        ({"speaker": np.array([0, 0, 1, 2], dtype=np.uint8)}, "row 3 has speaker 2, expected below 2"),
        ({"take": np.array([0], dtype=np.uint8)}, r"'take' has shape \(1,\), expected \(4,\)"),
        ({"offsets": np.array([0, 1, 4, 5, 8])}, "'offsets' do not cut 'audio'"),
        ({"sample_rate": np.array(16000)}, "'sample_rate' 8000"),
        ({"audio": np.zeros(7)}, "'audio' has type float64"),
        ({"speaker_names": np.array([{}, {}])}, "'speaker_names' is damaged or holds Python objects"),
    ],
)
def test_a_packed_file_that_contradicts_itself_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "fsdd.npz", **{**PACKED, **change})
    with pytest.raises(UserError, match=message) as caught:
        fsdd.clips(tmp_path)
    assert "fsdd.npz" in str(caught.value)


def test_a_packed_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fsdd.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(UserError, match=r"fsdd\.npz: damaged"):
        fsdd.clips(tmp_path)
    np.save(tmp_path / "array.npy", PACKED["audio"])
    (tmp_path / "array.npy").replace(tmp_path / "fsdd.npz")
    with pytest.raises(UserError, match=r"fsdd\.npz: is a single array"):
        fsdd.clips(tmp_path)
    np.savez(tmp_path / "fsdd.npz", audio=PACKED["audio"])
    with pytest.raises(UserError, match=r"fsdd\.npz: lacks the arrays \['label', 'offsets'"):
        fsdd.clips(tmp_path)


def test_wav_files_of_another_form_are_refused_by_name(tmp_path: Path) -> None:
    write_wav(tmp_path / "rate/1_anna_0.wav", [1], rate=16000)
    with pytest.raises(UserError, match=r"1_anna_0\.wav: .* \(1, 16, 16000\), expected \(1, 16, 8000\)"):
        fsdd.read_wavs(tmp_path / "rate")
    write_wav(tmp_path / "cut/1_anna_0.wav", [1, 2, 3])
    whole = (tmp_path / "cut/1_anna_0.wav").read_bytes()
    (tmp_path / "cut/1_anna_0.wav").write_bytes(whole[:-4])
    with pytest.raises(UserError, match=r"1_anna_0\.wav: the header promises 3 samples, the file holds 1"):
        fsdd.read_wavs(tmp_path / "cut")
    (tmp_path / "cut/1_anna_0.wav").write_bytes(b"RIFF")
    with pytest.raises(UserError, match=r"1_anna_0\.wav: not a readable wav file"):
        fsdd.read_wavs(tmp_path / "cut")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no file named like"):
        fsdd.read_wavs(tmp_path / "empty")


def test_natural_clients_have_the_speakers_names(tmp_path: Path) -> None:
    write_recordings(tmp_path / "recordings")
    assert fsdd.fsdd(tmp_path).field_labels == {"speaker": ("anna", "lucas")}


def test_the_published_recordings_have_the_known_counts(published: Path) -> None:
    read = fsdd.clips(published)
    assert len(read) == 3000
    assert np.bincount(read.label).tolist() == [300] * 10
    assert np.bincount(read.speaker).tolist() == [500] * 6
    assert np.median(np.diff(read.offsets)) == 3358.5
    data = DATASETS.build("fsdd", {"bins": 20, "frames": 32}, published)
    assert data.test is not None
    assert (len(data.train), len(data.test)) == (2700, 300)
    audio = data.train.inputs["audio"].gather(torch.arange(2700))
    assert audio.dtype == torch.float32
    assert data.modalities["audio"].shape == audio.shape[1:] == (1, 20, 32)
    assert audio.min() == 0
    assert 0.9 < audio.max() < 1.1
