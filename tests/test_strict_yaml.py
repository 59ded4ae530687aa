from __future__ import annotations

from pathlib import Path

import pytest

from polyfed import strict_yaml
from polyfed.errors import UserError
from polyfed.experiment import config


def test_values_and_aliases_are_read_as_a_tree() -> None:
    found = strict_yaml.parse("a: &one {x: [1, 2.5, true, null, text]}\nb: *one\n", "here")
    assert found == {"a": {"x": [1, 2.5, True, None, "text"]}, "b": {"x": [1, 2.5, True, None, "text"]}}
    assert found["a"] is not found["b"]


def test_aliases_of_aliases_do_not_unfold_without_end() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(UserError, match="here: unfolds to more than 100000 values"):
        strict_yaml.parse("\n".join(lines), "here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", r"here, line 2, column 1: not valid YAML: the key 'a' is given twice"),
        ("a: [1", r"here, line 1, column 6: not valid YAML"),
        ("!!python/object/apply:os.system [ls]", "here, line 1, column 1: not valid YAML: could not determine"),
        ("a: 2001-99-99", "here: not valid YAML: month must be in"),
        ("[" * 5000, "here: not valid YAML"),
    ],
)
def test_faults_are_named_with_their_place(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        strict_yaml.parse(text, "here")


def test_a_list_that_holds_itself_is_refused() -> None:
    with pytest.raises(UserError, match="here"):
        strict_yaml.parse("&a [*a]", "here")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.yaml: no such file"):
        strict_yaml.read(tmp_path / "nothing.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"binary\.yaml cannot be read"):
        strict_yaml.read(tmp_path / "binary.yaml")


@pytest.mark.parametrize("text", ["on", "off", "auto", "'on'"])
def test_batching_is_switched_with_words_that_yaml_takes_for_truth_values(text: str) -> None:
    experiment = config.load(None, dict([config.read_setting(f"engine.batching={text}")]))
    assert experiment.engine.batching == text.strip("'")
