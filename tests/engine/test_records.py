from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyfed.engine.records import BUFFERED, Recorder, encoded, refuse_constants
from polyfed.errors import UserError

FINITE = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
TREES = st.recursive(FINITE, lambda held: st.lists(held) | st.dictionaries(st.text(), held), max_leaves=20)


@settings(max_examples=50)
@given(record=st.dictionaries(st.text(), TREES))
def test_a_line_says_what_the_record_said(record: dict[str, Any]) -> None:
    """Also with the letters of NaN in a text, and with texts that are not Unicode."""
    line = encoded(record)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert json.loads(line) == record
    refuse_constants(line)


def test_names_that_read_like_constants_are_no_constants() -> None:
    refuse_constants(encoded({"NaN": "Infinity", "-Infinity": ["NaN", "\ud800"]}) * 2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["loss", "\ud800"])
def test_nan_and_infinity_are_never_written(tmp_path: Path, value: float, name: str) -> None:
    with Recorder(tmp_path / "records.jsonl") as recorder:
        recorder.write({"kind": "client", "numbers": {"loss": 0.5}})
        recorder.flush()
        recorder.write({"kind": "client", "numbers": {name: value}})
        with pytest.raises(ValueError, match=r"a record holds (NaN|-?Infinity), which JSON has no way to write"):
            recorder.flush()
    assert (tmp_path / "records.jsonl").read_bytes() == b'{"kind":"client","numbers":{"loss":0.5}}\n'


def test_lines_reach_the_file_by_and_by_at_a_flush_and_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"

    def lines() -> int:
        return len(path.read_bytes().splitlines())

    seen: list[Any] = []
    with Recorder(path, (seen.append,)) as recorder:
        recorder.write({"number": 0})
        assert (lines(), len(seen)) == (0, 1)
        assert recorder.flush() == len(b'{"number":0}\n') == path.stat().st_size
        for number in range(1, BUFFERED + 2):
            recorder.write({"number": number})
        assert lines() == BUFFERED + 1
    assert [json.loads(line)["number"] for line in path.read_bytes().splitlines()] == list(range(BUFFERED + 2))


def test_what_was_written_after_the_checkpoint_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with Recorder(path) as recorder:
        recorder.write({"round": 1})
        length = recorder.flush()
        recorder.write({"round": 2})
    with Recorder(path, at=length) as recorder:
        recorder.write({"round": 3})
    assert path.read_bytes() == b'{"round":1}\n{"round":3}\n'


def test_without_a_file_only_observers_see_records() -> None:
    seen: list[Any] = []
    with Recorder(None, (seen.append,)) as recorder:
        recorder.write({"round": 1})
        recorder.sync()
        assert recorder.flush() == 0
    assert seen == [{"round": 1}]


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "records.jsonl")
    assert recorder._file is not None
    with Path("/dev/full").open("wb") as full:
        os.dup2(full.fileno(), recorder._file.fileno())
    recorder.write({"round": 1})
    with pytest.raises(UserError, match=r"records\.jsonl: the disk is full; what was saved before is intact"):
        recorder.flush()
    with pytest.raises(UserError, match="the disk is full"):
        recorder.close()


def test_a_disk_that_fails_to_sync_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with Recorder(tmp_path / "records.jsonl") as recorder, monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing)
        with pytest.raises(UserError, match=r"records\.jsonl: cannot be written: Input/output error"):
            recorder.sync()
