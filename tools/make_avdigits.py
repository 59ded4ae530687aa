"""Make src/polyfed/data/avdigits.npz: real written digits and synthetic spoken digits.

Needs scikit-learn (the images) and the program espeak-ng (the speech). The result depends only on the seed and on
the two versions, which are stored in the file::

    python tools/make_avdigits.py
"""

from __future__ import annotations

import argparse
import io
import subprocess
import wave
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = (
    "en",
    "en-us",
    "en-gb-scotland",
    "en-029",
    "en-gb-x-rp",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-us-nyc",
)
TRAIN_SPEAKERS = ("m1", "m2", "m3", "m5", "m6", "m8", "f1", "f2", "f4", "f5", "croak", "klatt")
TEST_SPEAKERS = ("m4", "m7", "f3")  # no voice of the test split shares its timbre with a training voice
RATE = 22_050
BINS, FRAMES = 20, 24
WINDOW, SECONDS = 1024, 0.75
RANGE_DB = 60.0
SNR_DB = (0.0, 20.0)
REVERBERATION_SECONDS = (0.05, 0.3)

Floats = NDArray[np.float64]


class Utterance(NamedTuple):
    word: str
    accent: str
    speaker: str
    pitch: int
    words_per_minute: int


def speak(utterance: Utterance) -> Floats:
    """Return the waveform, full scale 1, with the silence around it cut off."""
    command = ["espeak-ng", "--stdout", "-v", f"{utterance.accent}+{utterance.speaker}"]
    command += ["-p", str(utterance.pitch), "-s", str(utterance.words_per_minute), utterance.word]
    answer = subprocess.run(command, check=True, capture_output=True).stdout
    with wave.open(io.BytesIO(answer)) as sound:
        if (sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) != (RATE, 1, 2):
            raise SystemExit(f"espeak-ng gave another sound format than 16 bit mono at {RATE} Hz")
        # A stream written to a pipe carries no true length in its header: read what follows the header instead.
    samples = np.frombuffer(answer[44:], dtype="<i2").astype(np.float64) / 32768
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    return samples[loud[0] : loud[-1] + 1]


def placed(samples: Floats, draw: np.random.Generator) -> Floats:
    """Put the waveform at a random place in (or cut it to) the fixed length."""
    length = int(SECONDS * RATE)
    samples = samples[:length]
    start = int(draw.integers(0, length - len(samples) + 1))
    return np.pad(samples, (start, length - len(samples) - start))


def recorded(samples: Floats, draw: np.random.Generator) -> Floats:
    """Add a room (an exponentially fading impulse response) and white noise."""
    fading = draw.uniform(*REVERBERATION_SECONDS) * RATE
    times = np.arange(int(fading))
    echo = draw.normal(size=len(times)) * np.exp(-6.9 * times / fading)  # -60 dB at the end
    room = 0.5 * echo / np.linalg.norm(echo)
    room[0] = 1.0
    heard = np.convolve(samples, room)[: len(samples)]
    noise = draw.normal(size=len(heard))
    snr = draw.uniform(*SNR_DB)
    return heard + noise * np.sqrt(np.mean(heard**2) / np.mean(noise**2) / 10 ** (snr / 10))


def mel_filters() -> Floats:
    """Return triangular filters (bins, WINDOW // 2 + 1), equally spaced on the mel scale from 80 to 8000 Hz."""
    mel = np.linspace(*(2595 * np.log10(1 + np.array([80.0, 8000.0]) / 700)), BINS + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    frequency = np.fft.rfftfreq(WINDOW, 1 / RATE)
    rising = (frequency - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - frequency) / np.diff(edges)[1:, None]
    return np.clip(np.minimum(rising, falling), 0, None)


def log_mel(samples: Floats) -> NDArray[np.uint8]:
    """Return (BINS, FRAMES): 255 is the loudest point of the clip, 0 is RANGE_DB below it or less."""
    centres = (np.arange(FRAMES) + 0.5) * len(samples) / FRAMES
    padded = np.pad(samples, WINDOW // 2)
    frames = np.stack([padded[int(centre) : int(centre) + WINDOW] for centre in centres])
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW), axis=1)) ** 2
    decibel = 10 * np.log10(mel_filters() @ power.T + 1e-12)
    return np.rint(255 * np.clip(1 + (decibel - decibel.max()) / RANGE_DB, 0, 1)).astype(np.uint8)


def utterances(draw: np.random.Generator) -> list[Utterance]:
    """Return every word by every voice; each voice has its own pitch and pace and varies a little around them."""
    spoken = []
    for speaker in (*TRAIN_SPEAKERS, *TEST_SPEAKERS):
        for accent in ACCENTS:
            pitch, pace = int(draw.integers(25, 75)), int(draw.integers(120, 210))
            for word in WORDS:
                jitter = draw.integers(-8, 9, size=2)
                spoken.append(Utterance(word, accent, speaker, pitch + int(jitter[0]), pace + int(jitter[1])))
    return spoken


def images(seed: int) -> dict[str, NDArray[np.generic]]:
    """Return the written digits, 0..16, and which of them are test images (20 %, stratified)."""
    digits = load_digits()
    labels = digits.target.astype(np.uint8)
    held_out = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=seed)[1]
    test = np.zeros(len(labels), dtype=np.bool_)
    test[held_out] = True
    return {"image": digits.images.astype(np.uint8), "image_label": labels, "image_test": test}


def sounds(seed: int) -> dict[str, NDArray[np.generic]]:
    """Return the spoken digits as log-mel spectrograms with their voices."""
    draw = np.random.default_rng(seed)
    spoken = utterances(draw)
    voices = sorted({f"{item.accent}+{item.speaker}" for item in spoken})
    return {
        "audio": np.stack([log_mel(recorded(placed(speak(item), draw), draw)) for item in spoken]),
        "audio_label": np.array([WORDS.index(item.word) for item in spoken], dtype=np.uint8),
        "audio_voice": np.array([voices.index(f"{item.accent}+{item.speaker}") for item in spoken], dtype=np.uint8),
        "audio_test": np.array([item.speaker in TEST_SPEAKERS for item in spoken]),
        "voice_names": np.array(voices),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).parents[1] / "src/polyfed/data/avdigits.npz"
    parser.add_argument("--output", type=Path, default=default)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    version = subprocess.run(["espeak-ng", "--version"], check=True, capture_output=True, text=True).stdout
    made_with = {
        "seed": np.array(chosen.seed),
        "espeak_version": np.array(version.split("  ")[0].strip()),
        "sklearn_version": np.array(sklearn.__version__),
    }
    np.savez_compressed(chosen.output, **images(chosen.seed), **sounds(chosen.seed), **made_with)
    print(f"{chosen.output}: {chosen.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
