"""Random generators keyed by what they are for.

Every random draw in polyfed comes from a generator whose seed is a hash of (seed, purpose, ...). So a draw
depends neither on what was drawn before it nor on who runs it, and the process-wide generators are left alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

Key = int | str


def seed_of(*key: Key) -> int:
    """Hash a key such as ``(seed, round, client, "batches")`` to a seed below 2**63."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(*key: Key) -> torch.Generator:
    """Return a CPU generator seeded by the key."""
    generator = torch.Generator()
    generator.manual_seed(seed_of(*key))
    return generator


def numpy_generator(*key: Key) -> np.random.Generator:
    """Return a NumPy generator seeded by the key."""
    return np.random.default_rng(seed_of(*key))


@contextmanager
def seeded(*key: Key, device: torch.device | None = None) -> Iterator[None]:
    """Run code that draws from torch's process-wide generators (module initialisation, dropout).

    They are seeded by the key inside and put back as they were afterwards: the CPU's and that of a CUDA ``device``.
    """
    on_gpu = device is not None and device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed_of(*key))
        if on_gpu:
            torch.cuda.manual_seed(seed_of(*key))
        yield
