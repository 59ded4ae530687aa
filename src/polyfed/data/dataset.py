"""A dataset: named modalities and tasks, a training table and, where the source has one, a test table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from polyfed.data.samples import Table
from polyfed.data.schema import Modality, Task


@dataclass(frozen=True)
class Dataset:
    """What a loader returns.

    ``test`` is the official test split; None means that each client's test part is cut from its own samples.
    ``unit`` names the field whose groups must not be torn apart by a split (overlapping windows of one bout).
    """

    name: str
    modalities: Mapping[str, Modality]
    tasks: Mapping[str, Task]
    train: Table
    test: Table | None = None
    unit: str | None = None


# The folder of downloaded sets; None when the user has not named one (a set inside the package needs none).
Root = Path | None
