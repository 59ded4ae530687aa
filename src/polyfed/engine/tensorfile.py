"""safetensors files, written straight out of the tensors' memory.

safetensors' own ``save`` builds the whole file in memory and keeps all other threads waiting meanwhile; its
``save_file`` tells of a full disk in words only, and neither gives the checksum. Reading is left to safetensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from polyfed.errors import UserError

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}


def raw(tensor: Tensor) -> memoryview:
    """Return a tensor's bytes in the usual order, without a copy where it lies so on the CPU."""
    plain = tensor.detach().cpu().contiguous().resolve_conj().resolve_neg()
    return plain.reshape(-1).view(torch.uint8).numpy().data


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Write tensors and texts to a file, have it on the disk, and return its SHA-256.

    Takes the memory of one tensor at most. Raises UserError for a kind of tensor that cannot be written.
    """
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in _parts(tensors, metadata):
            digest.update(part)
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _parts(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """Yield the file: the length of its head, the head, and the tensors, the widest numbers first (for alignment)."""
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    head: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, value in ordered:
        if value.dtype not in NAMES or value.layout is not torch.strided:
            choices = ", ".join(str(dtype).removeprefix("torch.") for dtype in NAMES)
            raise UserError(
                f"state at {name} is a tensor of {value.dtype}, {value.layout}, which cannot be saved. "
                f"Choices: strided tensors of {choices}"
            )
        start, end = end, end + value.numel() * value.element_size()
        head[name] = {"dtype": NAMES[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for _, value in ordered:
        yield raw(value)


def read_tensors(content: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and texts from what ``write_tensors`` wrote; raises ValueError where it is something else."""
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise ValueError(f"not safetensors: {error}") from error
    (length,) = struct.unpack("<Q", content[:8])
    return tensors, json.loads(content[8 : 8 + length]).get("__metadata__", {})
