"""The datasets polyfed knows, by name."""

from __future__ import annotations

from polyfed.data.dataset import Dataset
from polyfed.registry import Registry

# A builder is called as ``builder(root, **options)`` with the folder of downloaded sets (or None).
DATASETS: Registry[Dataset] = Registry("dataset")
