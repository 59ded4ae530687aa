"""Where checkpoints are: folders, or repositories that are called so."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.language import experiment

from polyfed.data.checkpoint_place import checkpoint_place
from polyfed.errors import UserError
from polyfed.experiment import config
from polyfed.experiment.world import build_world


def test_a_folder_is_on_this_machine(tmp_path: Path) -> None:
    assert checkpoint_place(str(tmp_path), "model.path") == (str(tmp_path), True)


def test_a_repository_is_told_by_its_beginning() -> None:
    assert checkpoint_place("hf://owner/name", "model.path") == ("owner/name", False)


@pytest.mark.parametrize(
    "named", ["checkpoints/tiny-llava", "owner/name", "nope", "hf:/owner/name", "", "~nosuchuser/x"]
)
def test_a_missing_folder_is_never_looked_for_elsewhere(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"^model\.path: there is no folder '{named}' .*polyfed pretrain tiny-llava"):
        checkpoint_place(named, "model.path")


@pytest.mark.parametrize("named", ["hf://", "hf://name", "hf://a/b/c", "hf:///owner/name", "hf://../name"])
def test_what_no_repository_is_called_is_refused(named: str) -> None:
    with pytest.raises(UserError, match=r"names no repository on the Hugging Face hub; write hf://owner/name"):
        checkpoint_place(named, "model.path")


def test_a_folder_that_libraries_would_take_for_the_repository_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is also a folder here"):
        checkpoint_place("hf://owner/name", "model.path")


def test_a_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="there is no folder"):
        checkpoint_place(str(tmp_path / "file"), "model.path")


def test_an_example_without_its_checkpoint_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers", reason="language models need the extra polyfed[mllm]")
    example = config.load(Path(__file__).parents[2] / "examples" / "pilot" / "tiny.yaml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"data\.checkpoint: .* `polyfed pretrain tiny-llava checkpoints/tiny-llava`"):
        build_world(example)


def test_a_model_without_its_checkpoint_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft", reason="language models need the extra polyfed[mllm]")
    from tests.language import shared_checkpoint

    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^model\.path: there is no folder 'away'"):
        build_world(experiment(shared_checkpoint(), {"model.path": "away"}))
