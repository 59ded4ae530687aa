"""The reduction: 50 replies of a 22-million-parameter model averaged one by one, beside the floor.

The floor adds each reply to one flat buffer in place, the least that any sum must do. ``python -m benchmarks.fold``
prints seconds and memory as JSON; it is a process of its own so that memory can be read.
"""

from __future__ import annotations

import json
import sys
import time
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from polyfed.method.combine import MeanOverHolders
from polyfed.method.protocol import Reply

REPLIES = 50
DIFFERENT = 4  # 50 different replies would be 4.4 GB; these few are far larger than the caches already
WIDTH, LAYERS = 384, 12


def layout(width: int = WIDTH, layers: int = LAYERS) -> dict[str, tuple[int, ...]]:
    """Name the tensors of a small vision transformer (22,049,512 parameters by default)."""
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (width, 3, 16, 16), "positions": (1, 196, width)}
    for layer in range(layers):
        for name, shape in {
            "norm1": (width,),
            "attention.joint": (3 * width, width),
            "attention.out": (width, width),
            "norm2": (width,),
            "feed.in": (4 * width, width),
            "feed.out": (width, 4 * width),
        }.items():
            shapes[f"layer{layer}.{name}.weight"] = shape
            shapes[f"layer{layer}.{name}.bias"] = shape[:1]
    norm_and_head = {"norm.weight": (width,), "norm.bias": (width,), "head.weight": (1000, width), "head.bias": (1000,)}
    return {**shapes, **norm_and_head}


def replies(shapes: dict[str, tuple[int, ...]]) -> tuple[list[Tensor], list[Reply]]:
    """Make replies as the engine hands them on: views of one flat buffer each."""
    sizes = [prod(shape) for shape in shapes.values()]
    generator = torch.Generator().manual_seed(0)
    flats = [torch.randn(sum(sizes), generator=generator) for _ in range(DIFFERENT)]
    made = []
    for flat in flats:
        pieces = zip(shapes.items(), torch.split(flat, sizes), strict=True)
        made.append(Reply(10, {"parameters": {name: piece.view(shape) for (name, shape), piece in pieces}}))
    return flats, made


def reduced(made: list[Reply], count: int) -> Any:
    """Average ``count`` replies, weighted by examples."""
    reducer = MeanOverHolders(lambda client, reply: float(reply.examples))
    for client in range(count):
        reducer.add(client, made[client % len(made)])
    return reducer.finish()


def summed(flats: list[Tensor], count: int) -> Tensor:
    """Add ``count`` replies in place."""
    total = torch.zeros_like(flats[0])
    for client in range(count):
        total.add_(flats[client % len(flats)])
    return total


def peak_and_now() -> tuple[float, float]:
    """Return the largest memory of this process since it was last forgotten, and the present one, in bytes."""
    found = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key in ("VmHWM", "VmRSS"):
            found[key] = 1024.0 * int(value.split()[0])
    return found["VmHWM"], found["VmRSS"]


def measure(repeats: int, shapes: dict[str, tuple[int, ...]] | None = None, count: int = REPLIES) -> dict[str, Any]:
    """Time reduction and floor in turns; memory is that beyond the replies, in models."""
    flats, made = replies(shapes or layout())
    model = flats[0].numel() * flats[0].element_size()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    _, before = peak_and_now()
    ours, floor, extra = [], [], 0.0
    for repeat in range(repeats):
        started = time.perf_counter()
        held = reduced(made, count)
        ours.append(time.perf_counter() - started)
        if repeat == 0:
            extra = (peak_and_now()[0] - before) / model
        del held
        started = time.perf_counter()
        summed(flats, count)
        floor.append(time.perf_counter() - started)
    return {
        "parameters": flats[0].numel(),
        "replies": count,
        "seconds": median(ours),
        "floor": median(floor),
        "models": extra,
    }


def main() -> None:
    torch.set_num_threads(1)
    print(json.dumps(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 5)))


if __name__ == "__main__":
    main()
