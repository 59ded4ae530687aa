"""Names under which an experiment finds models and their parts."""

from __future__ import annotations

from polyfed.model.architecture import Architecture
from polyfed.model.experts import experts
from polyfed.model.llava_builder import llava
from polyfed.model.modular import modular
from polyfed.model.parts import ENCODERS, FUSIONS, HEADS
from polyfed.registry import Registry

__all__ = ["ENCODERS", "FUSIONS", "HEADS", "MODELS"]

# A builder is called as ``builder(modalities, tasks, **options)`` with those of the federation.
MODELS: Registry[Architecture] = Registry("model")
MODELS.add("modular", modular)
MODELS.add("experts", experts)
MODELS.add("llava", llava)
