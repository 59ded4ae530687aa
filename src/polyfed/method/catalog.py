"""The methods polyfed knows, by name."""

from __future__ import annotations

from typing import Any

from polyfed.method.agm import agm
from polyfed.method.bmsfed import bmsfed, fedproto, pmr
from polyfed.method.classic import (
    centralized,
    fedadagrad,
    fedadam,
    fedavg,
    fedavgm,
    fedprox,
    fedyogi,
    local,
    multi_fedavg,
)
from polyfed.method.disentafl import disentafl
from polyfed.method.fedattn import fedattn
from polyfed.method.feddat import feddat
from polyfed.method.feddpa import feddpa
from polyfed.method.fedhgb import fedhgb
from polyfed.method.fedmsplit import fedmsplit
from polyfed.method.fednova import fednova
from polyfed.method.modality_drop import modality_drop
from polyfed.method.ogm_ge import ogm_ge
from polyfed.method.pilot import pilot
from polyfed.method.protocol import Method
from polyfed.method.scaffold import scaffold
from polyfed.method.shepherd import shepherd
from polyfed.registry import Registry

# A builder is called as ``builder(context, **options)``.
METHODS: Registry[Method[Any]] = Registry("method")
METHODS.add("local", local)
METHODS.add("centralized", centralized)
METHODS.add("fedavg", fedavg)
METHODS.add("fedavgm", fedavgm)
METHODS.add("fedprox", fedprox)
METHODS.add("fedadam", fedadam)
METHODS.add("fedyogi", fedyogi)
METHODS.add("fedadagrad", fedadagrad)
METHODS.add("multi-fedavg", multi_fedavg)
METHODS.add("fednova", fednova)
METHODS.add("fedattn", fedattn)
METHODS.add("fedhgb", fedhgb)
METHODS.add("bmsfed", bmsfed)
METHODS.add("fedproto", fedproto)
METHODS.add("pmr", pmr)
METHODS.add("ogm-ge", ogm_ge)
METHODS.add("agm", agm)
METHODS.add("modality-drop", modality_drop)
METHODS.add("scaffold", scaffold)
METHODS.add("disentafl", disentafl)
METHODS.add("fedmsplit", fedmsplit)
METHODS.add("pilot", pilot)
METHODS.add("shepherd", shepherd)
METHODS.add("feddpa", feddpa)
METHODS.add("feddat", feddat)

# Methods that train on the pooled federation instead of exchanging anything.
POOLED = frozenset({"centralized"})

# Methods that train heads on single modalities beside the fused head.
UNIMODAL_HEADS = frozenset({"fedhgb"})

# Methods for language models, and the adapters that their models have (model.adapters).
ADAPTERS = {"pilot": "pilot", "shepherd": "one", "feddpa": "dual", "feddat": "triple"}

# Methods that judge by the clients' validation samples while they train.
VALIDATING = frozenset({"fedhgb"})
