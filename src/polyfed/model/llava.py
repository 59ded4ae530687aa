"""LLaVA-style models: a frozen base, of which connectors and low-rank adapters are the components.

A client's model is made of the components at hand. With ``connector`` it is an ordinary LLaVA. With a task adapter and
the client's adapter it is the model of Pilot's first stage, with the adapters of all tasks and a router that of its
second (Xiong et al., AAAI 2025). Beside the shared text adapter there may be one of the client's own, and a frozen one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from polyfed.data.schema import Modality, Task
from polyfed.errors import UserError
from polyfed.model.adapter_names import (
    CLIENT,
    CONNECTOR,
    CROSS,
    FROZEN_LORA,
    LORA,
    MIXING,
    OTHER,
    PERSONAL_LORA,
    ROUTER,
    TASK,
    cross_adapter,
    other_adapter,
    task_adapter,
)
from polyfed.model.adapter_weights import AdapterMixing
from polyfed.model.connectors import COMMON, Mixture, Pair, RouterLevel, Single
from polyfed.model.llava_base import LlavaBase, LoraSizes, add_lora
from polyfed.model.llava_model import TEXT, LlavaModel
from polyfed.model.vision_adapters import Between, VisionAdapter, VisionRouter, adapted_blocks, layer_of
from polyfed.rng import seeded, torch_generator

Cross = Literal["each", "common", "none"]
ROUTER_DEVIATION = 0.02


@dataclass(frozen=True)
class Parts:
    """What a model of Pilot has beside task adapters: see ``Llava``."""

    client: bool = True
    cross: Cross = "each"
    scale: float = 1.0
    level: RouterLevel = "token"
    tower: bool = False
    tower_scale: float = 0.5


@dataclass(frozen=True)
class Llava:
    """The architecture. ``parts`` None: one connector; else those of Pilot. ``answer_tokens``: the longest answer.

    ``texts`` are the sets of low-rank adapters in the language model.
    """

    modalities: Mapping[str, Modality]
    tasks: Mapping[str, Task]
    base: LlavaBase
    lora: LoraSizes
    parts: Parts | None = None
    answer_tokens: int = 64
    texts: tuple[str, ...] = (LORA,)

    @property
    def frozen(self) -> dict[str, int]:
        """Parameters of the base that are used as they are: vision tower and language model."""
        return self.base.frozen

    def components(self, modalities: Collection[str], tasks: Collection[str]) -> tuple[str, ...]:
        """Name the components that a client with these tasks uses, sorted. Pilot's clients have one task each.

        Raises UserError for a client without texts: in them are the questions and the answers.
        """
        if modalities and TEXT not in modalities:
            raise UserError(
                f"model llava: a client with {', '.join(sorted(modalities))} alone has no questions and answers; "
                f"choose scenario.modalities and selections that leave every client its {TEXT!r}"
            )
        if self.parts is None:
            mixing = [MIXING] if set(self.texts) == {LORA, PERSONAL_LORA} else []
            return tuple(sorted([CONNECTOR, *self.texts, *mixing]))
        others = [task for task in self.tasks if task not in tasks]
        names = [LORA, *map(task_adapter, tasks), *map(other_adapter, others)]
        if self.parts.client:
            names.append(CLIENT)
        if others:
            crossing: dict[Cross, Sequence[str]] = {"each": others, "common": [COMMON], "none": []}
            names += [ROUTER, *map(cross_adapter, crossing[self.parts.cross])]
        return tuple(sorted(names))

    def assemble(self, components: Collection[str]) -> LlavaModel:
        """Build a model of these components."""
        twin = self.base.twin()
        adapters = {name: add_lora(twin, name, self.lora) for name in self.texts if name in components}
        modules = self._modules([name for name in components if name not in adapters])
        parts = self.parts or Parts()
        between = []
        for place, block in enumerate(self._blocks(twin)):
            block.mlp = Between(self._connected(layer_of(modules, place), parts.tower_scale))
            between.append(block.mlp)
        connected = self._connected(modules, parts.scale)
        return LlavaModel(self.base, twin, adapters, modules, connected, self.answer_tokens, between)

    def _blocks(self, model: Any) -> list[Any]:
        """Return the blocks of a model's vision tower that are adapted."""
        if self.parts is None or not self.parts.tower:
            return []
        return adapted_blocks(model.model.vision_tower, self.base.layer)

    def _modules(self, components: Collection[str]) -> dict[str, nn.Module]:
        """Build modules, whose first values are to be overwritten."""
        with seeded(0, "assemble"):
            return {name: self._module(name) for name in components}

    def _module(self, component: str) -> nn.Module:
        layers = [block.mlp for block in self._blocks(self.base.model)]
        if component == ROUTER:
            return VisionRouter(self.base.features, len(self.tasks), len(layers))
        if component == MIXING:
            return AdapterMixing(self.base.width)
        return VisionAdapter(self.base.features, self.base.width, layers)

    def _connected(self, modules: Mapping[str, nn.Module], scale: float) -> nn.Module:
        """Put connectors, or layers that are treated as such, together: as many as there are."""
        if CONNECTOR in modules:
            return Single(modules[CONNECTOR])
        assert self.parts is not None
        own, client, router = beginning(modules, TASK), modules.get(CLIENT), modules.get(ROUTER)
        if router is None:
            return Pair(next(iter(own.values())), client, scale)
        tasks = {**own, **beginning(modules, OTHER)}
        return Mixture(tasks, beginning(modules, CROSS), router, client, scale, self.parts.level)

    def initial(self, seed: int) -> dict[str, Tensor]:
        """Return first values: connectors are the pre-trained one, B of the adapters is zero, the router is drawn."""
        found: dict[str, Tensor] = {}
        for component in self._all():
            if component in self.texts:
                # A frozen adapter begins as the copy of the shared one that it is.
                drawn_as = LORA if component == FROZEN_LORA else component
                placed = add_lora(self.base.twin(), component, self.lora, seed, drawn_as)
                held = {name: value.detach() for name, value in placed.items()}
            elif component == MIXING:
                held = AdapterMixing(self.base.width).state_dict()
            elif component == ROUTER:
                generator = torch_generator(seed, ROUTER)
                held = {
                    name: ROUTER_DEVIATION * torch.randn(value.shape, generator=generator)
                    for name, value in self._modules([ROUTER])[ROUTER].state_dict().items()
                }
            else:
                held = {**self._modules([component])[component].state_dict(), **self.base.projector()}
            found |= {f"{component}.{name}": value.clone() for name, value in held.items()}
        return found

    def _all(self) -> list[str]:
        return sorted({name for task in self.tasks for name in self.components(tuple(self.modalities), [task])})


def beginning(modules: Mapping[str, nn.Module], first: str) -> dict[str, nn.Module]:
    """Return the components whose names begin so, by the rest of their names, sorted."""
    return {name.split(".", 1)[1]: modules[name] for name in sorted(modules) if name.split(".", 1)[0] == first}
