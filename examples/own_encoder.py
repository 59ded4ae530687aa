"""Your own torch module as an encoder, in an experiment that is built here and run in memory.

An encoder is built from the modality and the width of the features; it maps (batch, *shape) to (batch, width).
What comes after the ``*`` are its options. ``plugin.yaml`` uses the same file from the command line.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

import polyfed
from polyfed.data.schema import Modality


class Listener(nn.Module):
    """Reads a spectrogram frame by frame, in both directions, and keeps the largest value of each unit."""

    def __init__(
        self, modality: Modality, width: int, *, hidden: Annotated[int, Field(ge=1, description="units")] = 32
    ) -> None:
        super().__init__()
        _, bins, _ = modality.shape
        self.gru = nn.GRU(bins, hidden, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(2 * hidden)
        self.project = nn.Linear(2 * hidden, width)

    def forward(self, sound: Tensor) -> Tensor:
        """(batch, 1, bins, frames) -> (batch, width)."""
        frames = sound.squeeze(1).transpose(1, 2)
        heard, _ = self.gru(4 * frames - 2)  # values in [0, 1] -> [-2, 2]
        projected: Tensor = self.project(self.norm(heard.amax(dim=1)))
        return projected


polyfed.ENCODERS.add("listener", Listener)


def main() -> None:
    encoders = {"default": {}, "listener": {"audio": {"name": "listener", "hidden": 32}}}
    print("mean test accuracy of the clients that have only audio\nencoder   digit  parity")
    for name, chosen in encoders.items():
        experiment = polyfed.load(changes={"rounds": 6, "baseline": None, "model.encoders": chosen})
        tasks = polyfed.run(experiment).summary["tasks"]
        digit, parity = (tasks[task]["accuracy"]["by_modalities"]["audio"] for task in ("digit", "parity"))
        print(f"{name:9} {digit:.3f}  {parity:.3f}")


if __name__ == "__main__":
    main()
