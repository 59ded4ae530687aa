"""Tiny models of the architecture ``experts``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from polyfed.data.schema import Modality, Task
from polyfed.model.architecture import Architecture
from polyfed.model.catalog import MODELS
from tests.model.examples import AUDIO, DIGIT, IMAGE, PICTURE, PULSE, TEXT

PHOTO = Modality("photo", "image", (1, 6, 6), family="image")
MODALITIES = {m.name: m for m in (IMAGE, AUDIO, TEXT, PHOTO)}
TASKS = {t.name: t for t in (DIGIT, PULSE, PICTURE)}
TINY = {"width": 6, "heads": 2, "ratio": 1.5, "queries": 3}
GRIDS = ("pairs", "axes", "module")
GATES = ("uniform", "learned", "input")
VARIANTS = [("pairs", "learned"), ("pairs", "input"), ("axes", "uniform"), ("module", "uniform")]


def small(
    modalities: Mapping[str, Modality] = MODALITIES, tasks: Mapping[str, Task] = TASKS, **options: Any
) -> Architecture:
    return MODELS.build("experts", {**TINY, **options}, modalities, tasks)


def loaded(model: Architecture, modalities: list[str], tasks: list[str], gates: float = 0.0) -> nn.Module:
    """The assembled model of a client with the first values of seed 0, gates moved by random numbers."""
    module = model.assemble(model.components(modalities, tasks))
    first = model.initial(0)
    values = {name: first[name] for name in module.state_dict()}
    generator = torch.Generator().manual_seed(1)
    moved = {k: v + gates * torch.randn(v.shape, generator=generator) for k, v in values.items() if k[:5] == "gate."}
    module.load_state_dict(values | moved)
    return module
