"""What FedHGB costs: rounds of the UCI-HAR experiment with fedhgb beside the same rounds with fedavg.

Both run in this process and take turns; a round's time is the engine's own. Uni-modal heads and four measurements per
client are what FedHGB has beyond FedAvg.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import polyfed
from benchmarks.engine import NEVER, as_the_command_line
from polyfed.experiment import config

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "fedhgb" / "uci_har_a.yaml"
ROUNDS = 6
SETTINGS: Mapping[str, Mapping[str, object]] = {
    "encoders of the example (MLP)": {},
    "default encoders (convolutions)": {"model.encoders": {}},
}
METHODS = ("fedavg", "fedhgb")


def seconds(method: str, changes: Mapping[str, object]) -> list[float]:
    """Return the time of each round but the first."""
    found: list[float] = []

    def note(record: Mapping[str, Any]) -> None:
        if record["kind"] == "round":
            found.append(record["seconds"])

    engine = {"engine.evaluate_every": NEVER, "engine.server_test": False, "engine.diagnostics": False}
    experiment = config.load(EXAMPLE, {"method.name": method, "rounds": ROUNDS, **engine, **changes})
    polyfed.run(experiment, observers=[note])
    return found[1:]


def measure(repeats: int) -> dict[str, dict[str, float]]:
    """Return by setting the median seconds of a round with either method, and the median ratio of turns."""
    as_the_command_line()
    results = {}
    for name, changes in SETTINGS.items():
        turns = [{method: median(seconds(method, changes)) for method in METHODS} for _ in range(max(3, repeats))]
        results[name] = {method: median(turn[method] for turn in turns) for method in METHODS} | {
            "ratio": median(turn["fedhgb"] / turn["fedavg"] for turn in turns)
        }
    return results
