"""``polyfed pretrain tiny-llava`` with very few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from polyfed.command.progress import StageProgress
from polyfed.model import tiny_pretraining
from polyfed.model.tiny_llava import tiny_llava
from tests.language import SMALL
from tests.test_cli import OLD_TYPER, call, refused

pytest.importorskip("transformers", reason="the extra 'mllm' is not installed")
pytestmark = pytest.mark.filterwarnings(f"ignore:{OLD_TYPER}:DeprecationWarning")

QUICK = ["--vision-steps", "2", "--language-steps", "2", "--test-examples", "2"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    def smaller(seed: int, sizes: Any = None) -> Any:
        return tiny_llava(seed, sizes or SMALL)

    monkeypatch.setattr(tiny_pretraining, "tiny_llava", smaller)


def test_a_checkpoint_is_written_and_the_scores_are_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from polyfed.data.instruction_checkpoint import load_checkpoint
    from polyfed.model.llava_base import load_base

    folder = tmp_path / "models" / "tiny"
    done = call("pretrain", "tiny-llava", str(folder), *QUICK)
    assert done.exit_code == 0, done
    assert [line.split()[:2] for line in done.stdout.splitlines() if "%" in line or "cider" in line] == [
        ["vqa", "accuracy"],
        ["caption", "cider"],
        ["grounding", "accuracy"],
    ]
    assert done.stdout.endswith(f"{folder}\n")
    assert [line.split(", loss")[0] for line in done.stderr.splitlines()] == [
        "vision tower: step 1/2",
        "vision tower: step 2/2",
        "language model: step 1/2",
        "language model: step 2/2",
    ]
    base = load_base(str(folder))
    assert base.tokens == (SMALL.image // SMALL.patch) ** 2
    assert load_checkpoint(str(folder), 512).tower.config.hidden_size == SMALL.vision_width
    assert capfd.readouterr().err == ""  # no bars of transformers' own


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert call("pretrain", "tiny-llava", str(tmp_path / name), *QUICK, "--quiet", "--seed", str(seed)).stderr == ""
    one, again, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert one == again
    assert one != other


def test_a_folder_in_use_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert "is not empty" in refused("pretrain", "tiny-llava", str(tmp_path), *QUICK)
    assert "is a file" in refused("pretrain", "tiny-llava", str(tmp_path / "mine.txt"), *QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("option", ["--vision-steps", "--language-steps", "--test-examples"])
def test_negative_numbers_are_refused(option: str, tmp_path: Path) -> None:
    assert option in refused("pretrain", "tiny-llava", str(tmp_path / "new"), option, "-1")


def test_stopping_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny_pretraining, "train_language", stopped)
    done = call("pretrain", "tiny-llava", str(tmp_path / "new"), *QUICK)
    assert done.exit_code == 130
    assert "nothing was written" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_ten_lines_are_printed_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    watch = StageProgress(Console(stderr=True, width=200), {"one": 100, "other": 3})
    with watch:
        for done in range(1, 101):
            watch("one", done, 0.5)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"one: step {done}/100" for done in range(10, 101, 10)]
