"""Adapters in the vision tower: Pilot's extension CT-CLIP, where its feed-forward layers are treated as the connector.

Source: Xiong et al., "Pilot: Building the Federated Multimodal Instruction Tuning Framework", AAAI 2025, Table 4. The
paper says no more than that; which layers, what a router reads and the scale are our choice. The last layer of which
features are taken is left out if nothing behind it reads it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from polyfed.model.connectors import Connected, Connector


def adapted_blocks(tower: Any, layer: int) -> list[Any]:
    """Return the tower's blocks that come before the hidden state ``layer``."""
    blocks = list(tower.encoder.layers)
    return blocks[:layer] if layer >= 0 else blocks[: len(blocks) + 1 + layer]


class VisionAdapter(Connector):
    """A connector with feed-forward layers of the vision tower, ``layers``: one for each block that is adapted."""

    def __init__(self, features: int, width: int, layers: Sequence[nn.Module]) -> None:
        super().__init__(features, width)
        self.layers = nn.ModuleList(copy.deepcopy(layer).float().requires_grad_() for layer in layers)


class VisionRouter(nn.Linear):
    """The connector's router with one for each block: (..., features) -> (..., tasks), without bias."""

    def __init__(self, features: int, tasks: int, blocks: int) -> None:
        super().__init__(features, tasks, bias=False)
        self.layers = nn.ModuleList(nn.Linear(features, tasks, bias=False) for _ in range(blocks))


def layer_of(modules: Mapping[str, nn.Module], place: int) -> dict[str, nn.Module]:
    """Return what components with ``layers`` have for one block."""
    return {
        name: module.layers[place]
        for name, module in modules.items()
        if isinstance(module, VisionAdapter | VisionRouter)
    }


class Between(nn.Module):
    """Stands in for a block's feed-forward layer, and keeps what it made last, of which a router's loss is taken."""

    def __init__(self, connected: nn.Module) -> None:
        super().__init__()
        # In a tuple: what it holds is registered with the model's components.
        self._connected = (connected,)
        self.made: Connected | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (images, tokens, features) for these."""
        made: Connected = self._connected[0](hidden.float())
        self.made = made
        return made.image.to(hidden.dtype)
