"""A checkpoint on its way from the training to the disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from polyfed.engine.checkpoint import Checkpoints
from polyfed.engine.records import Recorder
from polyfed.method.protocol import Groups
from polyfed.scenario.federation import ClientId


@dataclass(frozen=True)
class Save:
    """A checkpoint to be written later: what it is to hold, and the records it counts on."""

    checkpoints: Checkpoints
    recorder: Recorder
    round: int
    state: Any
    changed: Mapping[ClientId, Groups]
    progress: Mapping[str, Any]

    def write(self) -> None:
        """Write it; the records flushed when it was made are on the disk before it counts on them."""
        self.recorder.sync()
        self.checkpoints.write(self.round, self.state, self.changed, self.progress)

    def replaced_by(self, newer: Save) -> Save:
        """Return what to write instead of both; the personal states that only this one has are still to be saved."""
        return replace(newer, changed={**self.changed, **newer.changed})
