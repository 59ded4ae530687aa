from __future__ import annotations

from collections.abc import Iterator

import pytest

from polyfed.rng import seeded


@pytest.fixture(autouse=True)
def fixed_draws() -> Iterator[None]:
    """Modules and data drawn from torch's own generator are the same on every run."""
    with seeded("tests of models"):
        yield
