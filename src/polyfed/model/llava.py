"""LLaVA-style models: a frozen base, of which connectors and low-rank adapters are the components.

A client's model is made of the components at hand. With ``connector`` it is an ordinary LLaVA. With a task adapter and
the client's adapter it is the model of Pilot's first stage, with the adapters of all tasks and a router that of its
second (Xiong et al., AAAI 2025).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from polyfed.data.samples import Batch
from polyfed.data.schema import IGNORED, Modality, Task
from polyfed.model.adapter_names import (
    CLIENT,
    CONNECTOR,
    CROSS,
    LORA,
    OTHER,
    ROUTER,
    TASK,
    cross_adapter,
    other_adapter,
    task_adapter,
)
from polyfed.model.architecture import Outputs
from polyfed.model.connectors import COMMON, Connected, Connector, Mixture, Pair, RouterLevel, Single
from polyfed.model.llava_base import LlavaBase, LoraSizes, add_lora
from polyfed.rng import torch_generator

Cross = Literal["each", "common", "none"]
IMAGE, TEXT = "image", "text"
ROUTER_DEVIATION = 0.02


@dataclass(frozen=True)
class Parts:
    """What a model of Pilot has beside task adapters: see ``Llava``."""

    client: bool = True
    cross: Cross = "each"
    scale: float = 1.0
    level: RouterLevel = "token"


@dataclass(frozen=True)
class Llava:
    """The architecture. ``parts`` None: one connector; else those of Pilot. ``answer_tokens``: the longest answer."""

    modalities: Mapping[str, Modality]
    tasks: Mapping[str, Task]
    base: LlavaBase
    lora: LoraSizes
    parts: Parts | None = None
    answer_tokens: int = 64

    def components(self, modalities: Collection[str], tasks: Collection[str]) -> tuple[str, ...]:
        """Name the components that a client with these tasks uses, sorted. Pilot's clients have one task each."""
        if self.parts is None:
            return (CONNECTOR, LORA)
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
        adapters = {LORA: add_lora(twin, LORA, self.lora)} if LORA in components else {}
        modules = {name: self._module(name) for name in components if name != LORA}
        return LlavaModel(self.base, twin, adapters, modules, self._connected(modules), self.answer_tokens)

    def _module(self, component: str) -> nn.Module:
        if component == ROUTER:
            return nn.Linear(self.base.features, len(self.tasks), bias=False)
        return Connector(self.base.features, self.base.width)

    def _connected(self, modules: Mapping[str, nn.Module]) -> nn.Module:
        """Put connectors together, as many as there are."""
        if CONNECTOR in modules:
            return Single(modules[CONNECTOR])
        assert self.parts is not None
        own, client, router = beginning(modules, TASK), modules.get(CLIENT), modules.get(ROUTER)
        if router is None:
            return Pair(next(iter(own.values())), client, self.parts.scale)
        tasks = {**own, **beginning(modules, OTHER)}
        return Mixture(tasks, beginning(modules, CROSS), router, client, self.parts.scale, self.parts.level)

    def initial(self, seed: int) -> dict[str, Tensor]:
        """Return first values: connectors are the pre-trained one, B of the adapters is zero, the router is drawn."""
        found: dict[str, Tensor] = {}
        for component in self._all():
            if component == LORA:
                held = {
                    name: value.detach() for name, value in add_lora(self.base.twin(), LORA, self.lora, seed).items()
                }
            elif component == ROUTER:
                shape = len(self.tasks), self.base.features
                drawn = torch.randn(shape, generator=torch_generator(seed, ROUTER))
                held = {"weight": ROUTER_DEVIATION * drawn}
            else:
                held = self.base.projector()
            found |= {f"{component}.{name}": value.clone() for name, value in held.items()}
        return found

    def _all(self) -> list[str]:
        return sorted({name for task in self.tasks for name in self.components(tuple(self.modalities), [task])})


def beginning(modules: Mapping[str, nn.Module], first: str) -> dict[str, nn.Module]:
    """Return the components whose names begin so, by the rest of their names, sorted."""
    return {name.split(".", 1)[1]: modules[name] for name in sorted(modules) if name.split(".", 1)[0] == first}


class LlavaModel(nn.Module):
    """A client's model. Its parameters are those of the components; the base, with its weights, is beside it.

    Batches hold token ids ``text`` (batch, length) padded on the right and, for samples with a picture, ``image``
    (batch, tokens, features), what the vision tower makes of it. Predictions of a task are logits (batch, length up to
    the longest sample's, vocabulary).
    """

    stackable = False
    """The base's layers hold the adapters themselves, so other values cannot be put in their place for one call."""

    def __init__(
        self,
        base: LlavaBase,
        twin: Any,
        adapters: Mapping[str, Mapping[str, nn.Parameter]],
        modules: Mapping[str, nn.Module],
        connected: nn.Module,
        answer_tokens: int,
    ) -> None:
        super().__init__()
        for component, module in modules.items():
            put(self, component, module)
        for component, held in adapters.items():
            for name, parameter in held.items():
                put(self, f"{component}.{name}", parameter)
        self._base = base
        self._answer_tokens = answer_tokens
        # In tuples, so that they are no modules of this one: what they hold is registered above, or frozen.
        self._twin = (twin,)
        self._connected = (connected,)

    def _apply(self, change: Callable[[Tensor], Tensor], recurse: bool = True) -> LlavaModel:
        """Move the base along."""
        super()._apply(change, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._twin[0]._apply(change, recurse)
        return self

    def train(self, mode: bool = True) -> LlavaModel:
        """Switch the adapters' dropout, too."""
        super().train(mode)
        self._twin[0].train(mode)
        return self

    def forward(self, batch: Batch) -> Outputs:
        """Predict every position's next token."""
        tokens = trimmed(batch.inputs[TEXT], self._base.padding)
        seen = tokens != self._base.padding
        embedded, connected = self.embedded(tokens, batch)
        answer = self._twin[0](inputs_embeds=embedded, attention_mask=seen.long(), use_cache=False)
        tasks = list(batch.labelled) or []
        inner = (
            {name: value for name, value in connected._asdict().items() if value is not None and name != IMAGE}
            if connected is not None
            else {}
        )
        return Outputs({}, answer.logits[:, -1], dict.fromkeys(tasks, answer.logits), inner=inner)

    @torch.no_grad()
    def write(self, batch: Batch, task: str) -> list[str]:
        """Return the answer to each sample's instruction: what stands before the answer of its target."""
        tokens, target = batch.inputs[TEXT], batch.targets[task]
        answered = target != IGNORED
        asked = torch.where(answered.any(1), answered.int().argmax(1), (tokens != self._base.padding).sum(1))
        embedded, _ = self.embedded(tokens, batch)
        embedded, seen = on_the_right(embedded, asked)
        written = self._twin[0].generate(
            inputs_embeds=embedded, attention_mask=seen.long(), max_new_tokens=self._answer_tokens, do_sample=False
        )
        texts: list[str] = self._base.tokenizer.batch_decode(written, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def embedded(self, tokens: Tensor, batch: Batch) -> tuple[Tensor, Connected | None]:
        """Return the embeddings (batch, length, width) of tokens (batch, length), pictures in place of their marks."""
        values: Tensor = self._twin[0].get_input_embeddings()(tokens)
        if IMAGE not in batch.inputs:
            return values, None
        here = batch.present[IMAGE]
        features = batch.inputs[IMAGE] if IMAGE in batch.everywhere else batch.inputs[IMAGE][here]
        if not len(features):
            return values, None
        connected: Connected = self._connected[0](features)
        marks = tokens == self._base.image_token
        return values.masked_scatter(marks.unsqueeze(-1), connected.image.to(values.dtype)), connected


def on_the_right(embedded: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Move the first ``lengths`` (batch,) positions of (batch, length, width) to the right, and say where they are."""
    longest = int(lengths.max())
    places = torch.arange(longest, device=lengths.device) - (longest - lengths).unsqueeze(1)
    seen = places >= 0
    moved = embedded.gather(1, places.clamp(min=0).unsqueeze(-1).expand(-1, -1, embedded.shape[-1]))
    return moved * seen.unsqueeze(-1), seen


def put(place: nn.Module, path: str, held: nn.Module | nn.Parameter) -> None:
    """Register a module or a parameter under a dotted path, with plain modules on the way."""
    *above, name = path.split(".")
    for step in above:
        if step not in place._modules:
            place.add_module(step, nn.Module())
        place = place.get_submodule(step)
    if isinstance(held, nn.Parameter):
        place.register_parameter(name, held)
    else:
        place.add_module(name, held)


def trimmed(tokens: Tensor, padding: int) -> Tensor:
    """Cut off the columns in which every sample is padding; one is left at least."""
    used = (tokens != padding).any(0).nonzero()
    return tokens[:, : int(used.max()) + 1 if len(used) else 1]
