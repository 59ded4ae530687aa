"""A dataset: named modalities and tasks, a training table and, where the source has one, a test table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from polyfed.data.samples import Table
from polyfed.data.schema import Modality, Task
from polyfed.errors import UserError, unknown
from polyfed.registry import Registry

DOMAIN = "domain"  # the field that tells, where a dataset has several sources, which of them a row is from


@dataclass(frozen=True)
class Dataset:
    """What a loader returns.

    ``test`` is the official test split; None means that each client's test part is cut from its own samples.
    ``unit`` names the field whose groups must not be torn apart by a split (overlapping windows of one bout,
    rows with one recording).
    ``field_labels`` names the values 0, 1, ... of a field where they have names (speakers, hospitals).
    ``absent`` says of tasks that the set may have, but has not in these files, why that is.
    """

    name: str
    modalities: Mapping[str, Modality]
    tasks: Mapping[str, Task]
    train: Table
    test: Table | None = None
    unit: str | None = None
    field_labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)


def unknown_task(name: str, dataset: Dataset, place: str) -> UserError:
    """Build the error for a task that a dataset does not have, with the reason where it could have it."""
    error, reason = unknown("task", name, dataset.tasks, place=place), dataset.absent.get(name)
    return error if reason is None else UserError(f"{error}. {reason}")


# The folder of downloaded sets; None when the user has not named one (a set inside the package needs none).
Root = Path | None

# Filled by ``polyfed.data.catalog``; here, so that a dataset made of others can build them by name.
# A builder is called as ``builder(root, **options)`` with the folder of downloaded sets (or None).
DATASETS: Registry[Dataset] = Registry("dataset")
