"""The vision tower is read without the rest of a LLaVA, and is the one that a whole LLaVA has."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.language import shared_checkpoint

from polyfed.data.instruction_checkpoint import load_checkpoint
from polyfed.errors import UserError

transformers = pytest.importorskip("transformers", reason="language models need the extra polyfed[mllm]")

WEIGHTS = "model.safetensors"


def published(name: str) -> str:
    """As llava-hf/llava-1.5-7b-hf and other checkpoints of transformers 4 are written."""
    return name.replace("vision_tower.", "vision_tower.vision_model.")


def nested(name: str) -> str:
    """As some of later versions are."""
    name = name.replace("language_model.lm_head", "lm_head").replace("language_model.model", "model.language_model")
    return re.sub(r"^(vision_tower|multi_modal_projector)", r"model.\1", name)


def copied(folder: Path, renamed: Callable[[str], str] = str) -> Path:
    """Copy the small checkpoint, whose weights get other names."""
    shutil.copytree(shared_checkpoint(), folder)
    weights = load_file(folder / WEIGHTS)
    assert all(name.startswith(("language_model.", "vision_tower.", "multi_modal_")) for name in weights)
    save_file({renamed(name): value for name, value in weights.items()}, folder / WEIGHTS, {"format": "pt"})
    return folder


def same_tower(path: Path) -> bool:
    """Whether the tower alone is bit for bit that of the whole model."""
    whole = transformers.LlavaForConditionalGeneration.from_pretrained(path, local_files_only=True)
    wanted, tower = whole.model.vision_tower.state_dict(), load_checkpoint(str(path), 8).tower
    found = tower.state_dict()
    assert not tower.training
    assert type(tower) is type(whole.model.vision_tower)
    assert {value.dtype for value in found.values()} == {torch.float32}
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name].float()) for name in wanted)


@pytest.mark.parametrize("layout", [str, published, nested, lambda name: nested(published(name))])
def test_the_tower_is_that_of_the_whole_model(layout: Callable[[str], str], tmp_path: Path) -> None:
    path = copied(tmp_path / "checkpoint", layout)
    assert same_tower(path)
    first = load_checkpoint(shared_checkpoint(), 8)
    assert load_checkpoint(str(path), 8).digest == first.digest, "kept features are found again"


def test_the_tower_is_read_from_several_files_and_from_half_precision(tmp_path: Path) -> None:
    path = copied(tmp_path / "checkpoint")
    whole = transformers.LlavaForConditionalGeneration.from_pretrained(path).half()
    (path / WEIGHTS).unlink()
    whole.save_pretrained(path, max_shard_size="20KB")
    assert len(list(path.glob("model-*.safetensors"))) > 2
    assert same_tower(path)


def test_nothing_but_the_tower_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the language model was made")

    monkeypatch.setattr(transformers.LlamaModel, "__init__", refuse)
    found = load_checkpoint(shared_checkpoint(), 8)
    assert "tower" not in vars(found), "not even that, until it is asked for"
    assert sum(value.numel() for value in found.tower.parameters()) > 0


def test_a_tower_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    path = copied(tmp_path / "part", lambda name: name.replace("pre_layrnorm", "pre_layernorm"))
    with pytest.raises(UserError, match=r"part' has no weights for 'vision_tower.pre_layrnorm.bias' of its vision"):
        _ = load_checkpoint(str(path), 8).tower
    (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes()[:-9])
    with pytest.raises(UserError, match=r"^data.checkpoint: the vision tower of .* cannot be loaded"):
        _ = load_checkpoint(str(path), 8).tower
    (path / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"^data.checkpoint: the vision tower of .* cannot be loaded"):
        _ = load_checkpoint(str(path), 8).tower
