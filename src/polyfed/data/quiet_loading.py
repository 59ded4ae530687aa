"""Transformers without its own progress bars: ours say what is going on, and a pipe wants none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


@contextmanager
def without_bars() -> Iterator[None]:
    """Inside, transformers shows no bars for reading and writing weights; afterwards as before.

    Raises ImportError if transformers is not installed.
    """
    logging: Any = import_module("transformers.utils.logging")  # its functions have no types
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
