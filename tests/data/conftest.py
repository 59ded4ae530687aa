from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def published() -> Path:
    """The folder of real downloaded sets that POLYFED_DATA names."""
    named = os.environ.get("POLYFED_DATA")
    if not named or not Path(named).is_dir():
        pytest.skip("POLYFED_DATA names no folder of downloaded sets")
    return Path(named)


@pytest.fixture(scope="session")
def small_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out like downloaded sets: 60 + 30 random MNIST and Fashion-MNIST images and 80 spoken digits.

    The clips are noisy tones of 300 Hz and 100 Hz more per digit, by two speakers, takes 0, 4, 5 and 6.
    """
    root, draw = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    for folder in ("mnist", "fashion_mnist"):
        (root / folder).mkdir()
        for split, rows in (("train", 60), ("t10k", 30)):
            images = draw.integers(0, 256, size=(rows, 28, 28), dtype=np.uint8)
            labels = draw.permutation(np.arange(rows, dtype=np.uint8) % 10)
            header = struct.pack(">4i", 2051, rows, 28, 28)
            (root / folder / f"{split}-images-idx3-ubyte").write_bytes(header + images.tobytes())
            (root / folder / f"{split}-labels-idx1-ubyte").write_bytes(
                struct.pack(">2i", 2049, rows) + labels.tobytes()
            )
    clips = [(speaker, digit, take) for speaker in range(2) for digit in range(10) for take in (0, 4, 5, 6)]
    lengths = draw.integers(3000, 9000, size=len(clips))
    waves = [
        3000 * np.sin(2 * np.pi * (300 + 100 * digit) * np.arange(length) / 8000) + draw.normal(scale=20, size=length)
        for (_, digit, _), length in zip(clips, lengths, strict=True)
    ]
    speaker, label, take = np.array(clips, dtype=np.uint8).T
    np.savez(
        root / "fsdd.npz",
        audio=np.concatenate(waves).astype(np.int16),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        label=label,
        speaker=speaker,
        take=take,
        speaker_names=np.array(["ann", "bob"]),
        sample_rate=np.array(8000),
    )
    return root
