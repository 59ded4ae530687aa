"""Transformers' own progress bars are hidden while we load and save, and come back."""

from __future__ import annotations

import pytest

from polyfed.data.quiet_loading import without_bars

logging = pytest.importorskip("transformers.utils.logging", reason="the extra 'mllm' is not installed")


def test_bars_come_back_even_after_an_error() -> None:
    assert logging.is_progress_bar_enabled()
    with pytest.raises(KeyError), without_bars():
        assert not logging.is_progress_bar_enabled()
        raise KeyError
    assert logging.is_progress_bar_enabled()


def test_bars_that_were_hidden_stay_hidden() -> None:
    logging.disable_progress_bar()
    try:
        with without_bars():
            pass
        assert not logging.is_progress_bar_enabled()
    finally:
        logging.enable_progress_bar()
