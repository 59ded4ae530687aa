"""JSON files read piece by piece."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyfed import UserError
from polyfed.data import json_stream
from polyfed.data.json_stream import elements, members, whole

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
OBJECTS = st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=6)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "samples.json"


@pytest.fixture(params=[1, 7, 1 << 20])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many bytes are read at first: with few, every place is cut somewhere."""
    size: int = request.param
    monkeypatch.setattr(json_stream, "CHUNK", size)
    return size


@given(OBJECTS, st.sampled_from([None, 0, 2]), st.booleans(), st.sampled_from([1, 3, 1000]))
def test_a_list_is_read_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, found: list[dict[str, Any]], indent: int | None, ascii: bool, size: int
) -> None:
    path = tmp_path_factory.mktemp("list") / "samples.json"
    path.write_text(json.dumps(found, indent=indent, ensure_ascii=ascii), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK", size)
        assert [piece.value for piece in elements(path)] == found


def test_lines_are_those_where_objects_begin(path: Path, chunk: int) -> None:
    path.write_text('\n[\n {"a": 1}, {"b":\n  2},\n\n\n {"c": "\\n"}\n]\n')
    assert [(piece.line, piece.value) for piece in elements(path)] == [(3, {"a": 1}), (3, {"b": 2}), (7, {"c": "\n"})]


def test_lines_of_json_lines(path: Path, chunk: int) -> None:
    path.write_text('{"a": "é"}\r\n\r\n{"b": 2}\r\n', encoding="utf-8-sig", newline="")
    assert [(piece.line, piece.value) for piece in elements(path)] == [(1, {"a": "é"}), (3, {"b": 2})]


def test_members_of_an_object(path: Path, chunk: int) -> None:
    path.write_text('{\n "one": {"a": 1},\n "two":\n {}\n}')
    assert list(members(path)) == [(2, "one", {"a": 1}), (3, "two", {})]


def test_compressed_files(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n{"a": 2}\n'))
    assert [piece.value["a"] for piece in elements(path)] == [1, 2]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"samples\.jsonl\.gz: cannot be read"):
        list(elements(path))


BROKEN = {
    "": "line 1: must hold a list of objects",
    "   \n": "line 2: must hold a list of objects",
    '"text"': "line 1: must hold a list of objects",
    "[": "line 1: the file ends too early",
    "[\n1]": "line 2: every sample must be an object",
    "[\n{}\n": "line 3: the file ends too early",
    "[\n{},\n": "line 3: the file ends too early",
    "[\n{},\n]": "line 3: not valid JSON: unexpected ']' after ','",
    "[{},]": "line 1: not valid JSON: unexpected ']' after ','",
    "[{},\n,{}]": "line 2: not valid JSON: unexpected ',' after ','",
    "[\n{},\n1]": "line 3: every sample must be an object",
    "[\n{}\n{}]": "line 3: expected a comma or ']'",
    "[{}]\n]": "line 2: something follows the closing ']'",
    "{}\n,{}": "line 2: every sample must be an object",
    '[\n{"a": 1,\n "b" 2}]': "line 3: not valid JSON: Expecting ':' delimiter (in what begins on line 2)",
    '[\n{"a":\n "b]': "line 3: the file ends too early; is it cut off? (in what begins on line 2)",
    '[\n{"a": [1,\n': "line 3: the file ends too early; is it cut off? (in what begins on line 2)",
    '[\n{"a": "\t"}]': "line 2: not valid JSON: Invalid control character at",
    '[\n{"a": NaN}]': "line 2: not valid JSON: NaN is no number",
    '[\n{"a": -Infinity}]': "line 2: not valid JSON: -Infinity is no number",
    '[\n{"a": 1, "a": 2}]': "line 2: not valid JSON: 'a' is given twice in one object",
    f'[\n{{"a": {"9" * 5000}}}]': "line 2: not valid JSON: Exceeds the limit",
    f'[\n{{"a": {"[" * 200_000}': "line 2: not valid JSON: it is nested too deeply",
}


@pytest.mark.parametrize(("text", "message"), BROKEN.items(), ids=[repr(text[:24]) for text in BROKEN])
def test_what_is_broken_is_named_with_its_line(path: Path, chunk: int, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        list(elements(path))
    assert str(caught.value).startswith(f"{path}, {message}")


@pytest.mark.parametrize("raw", [b'[\n{"a": "\xff"}]', b"[\n\xc3", b'[\n{"a": "\xed\xa0\x80"}]'])
def test_bytes_that_are_no_text_are_named_with_their_line(path: Path, chunk: int, raw: bytes) -> None:
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"samples\.json, line 2: not valid UTF-8"):
        list(elements(path))


def test_another_encoding_is_no_text(path: Path) -> None:
    path.write_text("[{}]", encoding="utf-16")
    with pytest.raises(UserError, match="line 1: not valid UTF-8"):
        list(elements(path))


def test_an_object_without_end_is_not_read_forever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "CHUNK", 64)
    monkeypatch.setattr(json_stream, "LARGEST_PIECE", 1000)
    path.write_text('[{},\n{"a": "' + "x" * 10_000)
    with pytest.raises(UserError, match="line 2: one object has more than 1000 characters"):
        list(elements(path))


def test_a_member_must_have_a_name_and_an_object(path: Path) -> None:
    for text, message in (
        ("[]", "must hold one object"),
        ("{1: 2}", "expected a name in double quotes"),
        ('{"a" {}}', "expected ':' after 'a'"),
        ('{\n"a": 1}', "line 2: the value of 'a' must be an object"),
        ('{"a": {}', "the file ends too early"),
        ('{"a": {},\n}', "line 2: not valid JSON: unexpected '}' after ','"),
    ):
        path.write_text(text)
        with pytest.raises(UserError) as caught:
            list(members(path))
        assert message in str(caught.value)


def test_a_whole_file(path: Path) -> None:
    path.write_text('{"a": [1]}')
    assert whole(path) == {"a": [1]}
    for raw, message in (
        (b"[]", "must hold one JSON object, not a list"),
        (b'{\n"a" 1}', ", line 2: not valid JSON"),
        (b'{"a": NaN}', "NaN is no number"),
        (b"\xff", "not valid UTF-8 at byte 0"),
        (b"[" * 200_000, "nested too deeply"),
    ):
        path.write_bytes(raw)
        with pytest.raises(UserError) as caught:
            whole(path)
        assert str(caught.value).startswith(str(path))
        assert message in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.json: no such file"):
        list(elements(tmp_path / "nothing.json"))
    with pytest.raises(UserError, match="cannot be read"):
        whole(tmp_path)
