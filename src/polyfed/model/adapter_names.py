"""Names of the components of language models: one connector, or adapters of tasks and clients; text adapters."""

from __future__ import annotations

CONNECTOR, LORA = "connector", "lora"
PERSONAL_LORA, FROZEN_LORA, MIXING = "personal_lora", "frozen_lora", "mixing"
"""A second text adapter that stays with its client, a third that is never trained, and how the first two are mixed."""

CLIENT, ROUTER = "client_adapter", "router"
TASK, OTHER, CROSS = "task_adapter", "other_adapter", "cross_adapter"


def task_adapter(task: str) -> str:
    """Name the adapter of a client's own task."""
    return f"{TASK}.{task}"


def other_adapter(task: str) -> str:
    """Name another task's adapter, as a client holds it."""
    return f"{OTHER}.{task}"


def cross_adapter(task: str) -> str:
    """Name the adapter with which a client takes from another task."""
    return f"{CROSS}.{task}"
