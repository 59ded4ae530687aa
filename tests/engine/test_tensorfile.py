from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load
from torch import Tensor

from polyfed.engine.tensorfile import NAMES, raw, read_tensors, write_tensors
from polyfed.errors import UserError


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, Tensor]:
    """Tensors of every kind and order in memory, with empty ones, scalars and names of any letters."""
    found = {}
    for name in draw(st.sets(st.text(st.characters(exclude_categories=["Cs"])), max_size=4)):
        shape = draw(st.lists(st.integers(0, 3), max_size=4))
        value = torch.arange(1.0, 1 + torch.Size(shape).numel()).reshape(shape).to(draw(st.sampled_from(list(NAMES))))
        if draw(st.booleans()):
            value = value.transpose(0, -1) if shape else value.conj()
        found[name] = value
    return found


@settings(max_examples=50)
@given(held=tensors(), metadata=st.dictionaries(st.text("aé", max_size=3), st.text("b\n", max_size=3), max_size=2))
def test_safetensors_reads_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, held: dict[str, Tensor], metadata: dict[str, str]
) -> None:
    held.pop("__metadata__", None)
    path = tmp_path_factory.mktemp("file") / "held.safetensors"
    digest = write_tensors(path, held, metadata)
    content = path.read_bytes()
    assert digest == hashlib.sha256(content).hexdigest()
    read, texts = read_tensors(content)
    assert texts == metadata
    assert set(read) == set(load(content)) == set(held)
    for name, value in held.items():
        assert read[name].dtype == value.dtype
        assert torch.equal(read[name], value)


def test_channels_last_weights_are_written_in_the_usual_order(tmp_path: Path) -> None:
    usual = torch.arange(16.0).reshape(2, 2, 2, 2)
    one, other = tmp_path / "one", tmp_path / "other"
    last = usual.to(memory_format=torch.channels_last)
    assert not last.is_contiguous()
    assert write_tensors(one, {"w": usual}, {}) == write_tensors(other, {"w": last}, {})


def test_bytes_in_the_usual_order_are_not_copied() -> None:
    value = torch.zeros(3)
    view = raw(value)
    value[0] = 1.0
    assert bytes(view) == bytes.fromhex("0000803f") + bytes(8)


@pytest.mark.parametrize("value", [torch.zeros(1, dtype=torch.complex128), torch.zeros(2).to_sparse()])
def test_a_kind_of_tensor_that_cannot_be_written_is_named(tmp_path: Path, value: Tensor) -> None:
    with pytest.raises(UserError, match=r"state at /memory is a tensor of torch\..*cannot be saved.*float64"):
        write_tensors(tmp_path / "held", {"/memory": value}, {})


def test_bytes_that_are_no_safetensors_are_refused() -> None:
    with pytest.raises(ValueError, match="not safetensors"):
        read_tensors(b"12345678901234567890")
