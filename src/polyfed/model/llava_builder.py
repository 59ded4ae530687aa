"""The model ``llava`` as an experiment names it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from polyfed.data.schema import Modality, Reduction, Task
from polyfed.errors import UserError
from polyfed.model.adapter_names import FROZEN_LORA, LORA, PERSONAL_LORA
from polyfed.model.connectors import RouterLevel
from polyfed.model.llava import Cross, Llava, Parts
from polyfed.model.llava_base import LlavaBase, LoraSizes, Weights, load_base
from polyfed.model.llava_model import IMAGE, TEXT
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
    tower: Annotated[
        bool, Field(description="adapters in the vision tower, too (CT-CLIP); needs data.vision: pixels")
    ] = False
    tower_scale: Annotated[float, Field(gt=0, description="factor of the sum of adapters there")] = 0.5


Adapters = Literal["one", "pilot", "dual", "triple"]
TEXT_ADAPTERS: Mapping[str, tuple[str, ...]] = {
    "one": (LORA,),
    "dual": (LORA, PERSONAL_LORA),
    "triple": (LORA, PERSONAL_LORA, FROZEN_LORA),
}
"""The text adapters of a model; those of Pilot have one."""

LORA_OPTIONS = LoraOptions()
PILOT = PilotAdapters()


def llava(
    modalities: Mapping[str, Modality],
    tasks: Mapping[str, Task],
    *,
    path: Annotated[str, Field(description="checkpoint folder of a LLaVA, or hf://owner/name on the hub")],
    weights: Annotated[Weights, Field(description="type of the frozen weights; 4bit: NF4, on a GPU")] = "float32",
    checkpointing: Annotated[bool, Field(description="gradient checkpointing: less memory, more time")] = False,
    lora: Annotated[LoraOptions, Field(description="low-rank adapters of the language model")] = LORA_OPTIONS,
    adapters: Annotated[
        Adapters | None,
        Field(
            description="one connector and one text adapter; the adapters of Pilot; a second text adapter of the "
            "client's own (dual); and a third, frozen one (triple). null: what the method trains"
        ),
    ] = None,
    pilot: Annotated[PilotAdapters, Field(description="the adapters of Pilot")] = PILOT,
    answer_tokens: Annotated[int, Field(ge=1, description="longest answer that is written in an evaluation")] = 64,
    loss: Annotated[
        Reduction, Field(description="mean over a batch's answer tokens, or over its samples of their sum")
    ] = "token_mean",
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
    check_effects(adapters, pilot)
    learned = {name: replace(task, reduction=loss) for name, task in tasks.items()}
    base = load_base(path, weights, checkpointing)
    held = modalities.get(IMAGE)
    if held is not None:
        check_pictures(held.shape, base, path, tower=adapters == "pilot" and pilot.tower)
    parts = Parts(*pilot.model_dump().values())
    sizes = LoraSizes(lora.rank, lora.alpha, lora.dropout)
    chosen = parts if adapters == "pilot" else None
    texts = TEXT_ADAPTERS.get(adapters or "one", TEXT_ADAPTERS["one"])
    return Llava(dict(modalities), learned, base, sizes, chosen, answer_tokens, texts)


def check_effects(adapters: Adapters | None, pilot: PilotAdapters) -> None:
    """Raise UserError for an option that is not left as it is and changes nothing, given the others."""
    if adapters != "pilot" and pilot != PILOT:
        raise UserError("model.pilot: has no effect, because the model has other adapters than those of Pilot")
    if not pilot.tower and pilot.tower_scale != PILOT.tower_scale:
        raise UserError("model.pilot.tower_scale: has no effect, because model.pilot.tower is false")


def check_pictures(shape: tuple[int, ...], base: LlavaBase, path: str, *, tower: bool) -> None:
    """Raise UserError where pictures, features or pixels, are not what the base takes."""
    side = base.model.config.vision_config.image_size
    features, pixels = (base.tokens, base.features), (3, side, side)
    if shape not in (features, pixels):
        raise UserError(
            f"model.path: {path!r} takes features of shape {features} or pixels of {pixels}, the dataset has {shape}: "
            "give model.path and data.checkpoint the same checkpoint"
        )
    if tower and shape != pixels:
        raise UserError("model.pilot.tower: the vision tower is trained and must see pictures: set data.vision: pixels")
