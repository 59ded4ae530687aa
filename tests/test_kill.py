"""Kill −9 at random moments of a run; each resumed, it ends with the bits of the uninterrupted run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.worlds import TINY

KILLS = 10


def command(experiment: Path, out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "polyfed", "run", str(experiment), "--out", str(out), "--quiet", *options]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many short rounds with personal state (local) and server memory (the run itself)."""
    path = tmp_path_factory.mktemp("kill") / "experiment.yaml"
    long = {**TINY, "rounds": 120, "baseline": "local", "method": {"name": "fedadam"}}
    path.write_text(yaml.safe_dump(long))
    return path


def test_ten_kills_change_no_bit(experiment: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(experiment, whole), check=True, env=environment(), timeout=300)
    draw = random.Random(0)
    kills = 0
    options: tuple[str, ...] = ()
    while kills < KILLS:
        process = subprocess.Popen(command(experiment, killed, *options), env=environment())
        # Wait until the run is under way (it has a checkpoint), then strike at a random moment of its next rounds.
        started = newest(killed)
        while process.poll() is None and newest(killed) == started:
            time.sleep(0.005)
        time.sleep(draw.uniform(0.0, 0.25))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        options = ("--resume",)
    assert kills == KILLS, "the run was too short to be killed ten times"
    subprocess.run(command(experiment, killed, "--resume"), check=True, env=environment(), timeout=300)
    for folder in (".", "baseline"):
        one, other = summary(whole / folder), summary(killed / folder)
        for key in ("digest", "personal_digest", "bytes", "tasks", "best", "rounds"):
            assert one[key] == other[key], (folder, key)
        assert lines(whole / folder) == lines(killed / folder)


def newest(folder: Path) -> str:
    """Name the newest checkpoint; only folders that stay are looked into, for others vanish meanwhile."""
    places = (folder / "baseline" / "checkpoints", folder / "checkpoints")
    found = [path.relative_to(folder).as_posix() for place in places for path in sorted(place.glob("round-*"))]
    return found[-1] if found else ""
