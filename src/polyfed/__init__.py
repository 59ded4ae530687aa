"""Federated learning for clients that do not look alike.

``polyfed.load`` reads an experiment, ``polyfed.run`` trains it, ``polyfed.compare`` trains it with several methods. The
registries (``METHODS``, ``DATASETS``, ...) name everything an experiment can choose from and take in your own parts.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyfed.data.catalog import DATASETS
    from polyfed.errors import RunError, UserError
    from polyfed.experiment.comparing import Comparison, compare
    from polyfed.experiment.config import Experiment, load
    from polyfed.experiment.running import Run, run
    from polyfed.method.catalog import METHODS
    from polyfed.method.selections import SELECTORS
    from polyfed.model.catalog import ENCODERS, FUSIONS, HEADS, MODELS
    from polyfed.scenario.catalog import MODALITY_SETS, PARTITIONS, TASK_SETS

__all__ = [
    "DATASETS",
    "ENCODERS",
    "FUSIONS",
    "HEADS",
    "METHODS",
    "MODALITY_SETS",
    "MODELS",
    "PARTITIONS",
    "SELECTORS",
    "TASK_SETS",
    "Comparison",
    "Experiment",
    "Run",
    "RunError",
    "UserError",
    "compare",
    "load",
    "run",
]
__version__ = "0.1.0"

_HOME = {
    "polyfed.experiment.comparing": ("Comparison", "compare"),
    "polyfed.experiment.config": ("Experiment", "load"),
    "polyfed.data.catalog": ("DATASETS",),
    "polyfed.errors": ("RunError", "UserError"),
    "polyfed.method.catalog": ("METHODS",),
    "polyfed.method.selections": ("SELECTORS",),
    "polyfed.model.catalog": ("ENCODERS", "FUSIONS", "HEADS", "MODELS"),
    "polyfed.experiment.running": ("Run", "run"),
    "polyfed.scenario.catalog": ("MODALITY_SETS", "PARTITIONS", "TASK_SETS"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used, so that importing polyfed does not import torch."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
