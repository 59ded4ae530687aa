"""A round of Pilot with two clients: the architecture of LLaVA-1.5-7B with random weights on a GPU, else a tiny one."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

import polyfed
from benchmarks.measure import Values
from benchmarks.memory import Peak
from benchmarks.tables import Table
from polyfed.experiment import config
from polyfed.model.tiny_llava import Sizes, llava_config, save_checkpoint, tiny_processor, tiny_tokenizer

ROOT = Path(__file__).resolve().parent.parent
CLIENTS = 2


@dataclass(frozen=True)
class Scale:
    """A LLaVA and how it is tuned."""

    name: str
    sizes: Sizes
    rank: int
    weights: str
    examples: int
    batch_size: int


SCALES = {
    "cuda": Scale(
        "LLaVA-1.5-7B, bfloat16",
        Sizes(336, 14, 1024, 24, 16, 4096, 32, 32, 4096, text_inner=11008, vocabulary=32064),
        rank=64,
        weights="bfloat16",
        examples=64,
        batch_size=16,
    ),
    "cpu": Scale("tiny, float32", Sizes(), rank=8, weights="float32", examples=32, batch_size=16),
}
WAYS = {"plain": False, "gradient checkpointing": True}


def measure(device: str) -> list[Values]:
    """Run one round for each way of training."""
    scale = SCALES[device]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        save_checkpoint(*drawn(scale, device), checkpoint)
        if device == "cuda":
            torch.cuda.empty_cache()
        return [one_round(scale, device, checkpoint, way) for way in WAYS]


def drawn(scale: Scale, device: str) -> tuple[Any, Any]:
    """Return a LLaVA of random weights and its processor."""
    import transformers

    processor = tiny_processor(scale.sizes, tiny_tokenizer())
    whole = llava_config(scale.sizes, processor.tokenizer)
    with torch.device(device):
        made = transformers.LlavaForConditionalGeneration._from_config(whole, dtype=getattr(torch, scale.weights))
    return made, processor


def one_round(scale: Scale, device: str, checkpoint: Path, way: str) -> Values:
    """Train two clients for a round and return what it took."""
    changes = {
        "data.checkpoint": str(checkpoint),
        "data.examples": scale.examples,
        "data.test_examples": 1,
        "scenario.validation": 0,
        "model.path": str(checkpoint),
        "model.weights": scale.weights,
        "model.checkpointing": WAYS[way],
        "model.lora": {"rank": scale.rank, "alpha": 2 * scale.rank},
        "model.answer_tokens": 4,
        "select": {"name": "round_robin", "clients": CLIENTS},
        "train.batch_size": scale.batch_size,
        "rounds": 1,
        "engine.device": device,
        "engine.workers": 1,
    }
    experiment = config.load(ROOT / "examples" / "pilot" / "tiny.yaml", changes)
    records: list[Any] = []
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with Peak(os.getpid()) as peak:
        began = time.perf_counter()
        outcome = polyfed.run(experiment, observers=[records.append])
        whole = time.perf_counter() - began
    fits = [record for record in records if record["kind"] == "client"]
    (round_record,) = (record for record in records if record["kind"] == "round")
    return {
        "scale": scale.name,
        "way": way,
        "frozen": sum(outcome.summary["parameters"]["frozen"].values()),
        "memory": torch.cuda.max_memory_allocated() if device == "cuda" else peak.bytes,
        "steps": {
            step: median(record["seconds"] / record["numbers"]["steps"] for record in fits if record["step"] == step)
            for step in sorted({record["step"] for record in fits})
        },
        "round": round_record["seconds"],
        "up": round_record["bytes"]["up"],
        "down": round_record["bytes"]["down"],
        "whole": whole,
    }


def table(measured: Sequence[Values], device: str) -> Table:
    """Show what was measured."""
    steps = list(measured[0]["steps"])
    rows = [
        [
            f"{held['scale']}, {held['way']}",
            f"{held['frozen'] / 1e9:.3f}",
            f"{held['memory'] / 1e9:.2f} GB",
            *(f"{held['steps'][step]:.3f} s" for step in steps),
            f"{held['round']:.1f} s",
            f"{held['up'] / 1e6:.1f} / {held['down'] / 1e6:.1f} MB",
        ]
        for held in measured
    ]
    head = ["", "frozen, 1e9", "peak memory", *(f"a step of {step}" for step in steps), "round", "up / down"]
    scale = SCALES[device]
    title = f"A round of Pilot with {CLIENTS} clients on {device}: batches of {scale.batch_size}, rank {scale.rank}"
    return Table(title, head, rows)
