"""The model ``llava`` as an experiment names it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from polyfed.data.schema import Modality, Task
from polyfed.errors import UserError
from polyfed.model.connectors import RouterLevel
from polyfed.model.llava import IMAGE, TEXT, Cross, Llava, Parts
from polyfed.model.llava_base import LoraSizes, Weights, load_base
from polyfed.registry import Options


class LoraOptions(Options):
    """Low-rank adapters of the language model."""

    rank: Annotated[int, Field(ge=1, description="rank")] = 64
    alpha: Annotated[int, Field(ge=1, description="their update is multiplied by alpha / rank")] = 128
    dropout: Annotated[float, Field(ge=0, lt=1, description="dropout before them")] = 0.05


class PilotAdapters(Options):
    """What models of Pilot have beside the adapters of tasks."""

    client_adapter: Annotated[bool, Field(description="an adapter of each client's own")] = True
    cross_task: Annotated[
        Cross, Field(description="cross-task adapters: one for each other task, one in common, or none")
    ] = "each"
    combine_scale: Annotated[float, Field(gt=0, description="factor of the sum of adapters")] = 1.0
    router_level: Annotated[RouterLevel, Field(description="route single tokens, or whole images")] = "token"


LORA = LoraOptions()
PILOT = PilotAdapters()


def llava(
    modalities: Mapping[str, Modality],
    tasks: Mapping[str, Task],
    *,
    path: Annotated[str, Field(description="checkpoint folder of a LLaVA, or its name on a hub")],
    weights: Annotated[Weights, Field(description="type of the frozen weights")] = "float32",
    checkpointing: Annotated[bool, Field(description="gradient checkpointing: less memory, more time")] = False,
    lora: Annotated[LoraOptions, Field(description="low-rank adapters of the language model")] = LORA,
    adapters: Annotated[
        Literal["one", "pilot"] | None,
        Field(description="one connector, or the adapters of Pilot; null: what the method trains"),
    ] = None,
    pilot: Annotated[PilotAdapters, Field(description="the adapters of Pilot")] = PILOT,
    answer_tokens: Annotated[int, Field(ge=1, description="longest answer that is written in an evaluation")] = 64,
) -> Llava:
    """A LLaVA of which the connector and low-rank adapters of the language model are trained; the rest is frozen.

    Adapters are in all linear layers of the language model but its head. Needs the extra polyfed[mllm] and a dataset of
    instructions.
    """
    if set(modalities) - {IMAGE, TEXT} or TEXT not in modalities:
        raise UserError(
            f"model llava: takes the modalities {TEXT!r} and {IMAGE!r} of a dataset of instructions, not "
            f"{', '.join(sorted(modalities))}"
        )
    for name, task in tasks.items():
        if task.kind != "language":
            raise UserError(f"model llava: task {name!r} is a {task.kind}; it can only write texts")
    base = load_base(path, weights, checkpointing)
    held = modalities.get(IMAGE)
    if held is not None and held.shape != (base.tokens, base.features):
        raise UserError(
            f"model.path: {path!r} wants {base.tokens} image tokens of {base.features} features, the dataset has "
            f"{held.shape[0]} of {held.shape[1]}: give model.path and data.checkpoint the same checkpoint"
        )
    parts = Parts(pilot.client_adapter, pilot.cross_task, pilot.combine_scale, pilot.router_level)
    sizes = LoraSizes(lora.rank, lora.alpha, lora.dropout)
    chosen = parts if adapters == "pilot" else None
    return Llava(dict(modalities), dict(tasks), base, sizes, chosen, answer_tokens)
