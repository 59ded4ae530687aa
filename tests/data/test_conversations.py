"""Samples for instruction tuning: what is read, what is refused, and what is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from polyfed import UserError
from polyfed.data.conversation_files import check_pictures, picture_size, read_conversations, write_conversations
from polyfed.data.conversation_rules import conversation_of
from polyfed.data.conversations import Conversation, Turn
from polyfed.data.json_fields import Fields

GOOD: dict[str, Any] = {
    "id": "7",
    "image": "a/1.png",
    "conversations": [
        {"from": "human", "value": "What is it? <image>"},
        {"from": "gpt", "value": "a cat"},
        {"from": "human", "value": "Where?"},
        {"from": "gpt", "value": "[0.10, 0.20, 0.30, 0.40]"},
    ],
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "samples.json"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "a").mkdir(parents=True)
    Image.new("RGB", (6, 4)).save(folder / "a/1.png")
    return folder


def read(path: Path, *samples: object, images: Path | None = None) -> list[Conversation]:
    """Write samples, one per line from line 2, and read them."""
    path.write_text("[\n" + ",\n".join(json.dumps(sample) for sample in samples) + "\n]")
    return list(read_conversations(path, images))


def with_turns(*turns: tuple[str, object], **changes: object) -> dict[str, Any]:
    return {**GOOD, "conversations": [{"from": speaker, "value": text} for speaker, text in turns], **changes}


# --------------------------------------------------------------------------------------------------------- what is read


def test_the_mark_of_the_picture_is_put_in_front(path: Path) -> None:
    (found,) = read(path, GOOD)
    assert found.turns[0] == Turn("human", "<image>\nWhat is it?")
    assert found.instruction == "What is it?"
    assert found.turns[1:] == tuple(Turn(turn["from"], turn["value"]) for turn in GOOD["conversations"][1:])
    assert (found.id, found.image, found.line) == ("7", "a/1.png", 2)
    assert (found.task, found.client, found.split, found.box) == (None, None, None, None)
    assert (found.answers, found.choices) == ((), ())


def test_a_picture_without_words(path: Path) -> None:
    (found,) = read(path, with_turns(("human", " <image> "), ("gpt", "a cat")))
    assert (found.turns[0].text, found.instruction) == ("<image>", "")


def test_text_alone_stays_as_it_is(path: Path) -> None:
    (found,) = read(path, {**with_turns(("human", " Hi\n"), ("gpt", "Hello")), "image": None})
    assert found.image is None
    assert found.instruction == found.turns[0].text == " Hi\n"


def test_the_further_keys(path: Path) -> None:
    more = {"task": "caption", "client": 3, "split": "val", "answers": ["a", "b"], "box": [0, 0.25, 0.5, 1]}
    (found,) = read(path, {**GOOD, **more, "choices": ["x", "y"], "model": {"unknown": 1}})
    assert (found.task, found.client, found.split) == ("caption", "3", "val")
    assert (found.answers, found.box, found.choices) == (("a", "b"), (0, 0.25, 0.5, 1), ("x", "y"))
    assert found.references == ("a", "b")


def test_without_answers_the_last_turn_is_the_reference(path: Path) -> None:
    assert read(path, GOOD)[0].references == ("[0.10, 0.20, 0.30, 0.40]",)


def test_a_first_turn_that_is_not_the_humans_is_dropped(path: Path) -> None:
    (found,) = read(path, with_turns(("gpt", "<image> Hello"), ("human", "<image>\nWhat?"), ("gpt", "a cat")))
    assert [turn.text for turn in found.turns] == ["<image>\nWhat?", "a cat"]


def test_a_last_question_without_an_answer_is_dropped(path: Path) -> None:
    (found,) = read(path, with_turns(("human", "<image>\nWhat?"), ("gpt", "a cat"), ("human", "Thanks")))
    assert [turn.text for turn in found.turns] == ["<image>\nWhat?", "a cat"]


def test_samples_are_read_one_by_one(path: Path) -> None:
    path.write_text(json.dumps([GOOD, {"id": 1}]))
    found = read_conversations(path)
    assert next(found).id == "7"
    with pytest.raises(UserError, match="'conversations': is missing"):
        next(found)


# ------------------------------------------------------------------------------------------------------ what is refused

HUMAN, GPT = ("human", "<image>\nWhat?"), ("gpt", "a cat")
BAD: dict[str, tuple[object, str]] = {
    "no object": (["a"], "every sample must be an object"),
    "no id": ({**GOOD, "id": None}, "'id': is missing"),
    "id is a list": ({**GOOD, "id": []}, "'id': must be text, not a list"),
    "id is true": ({**GOOD, "id": True}, "'id': must be text, not true"),
    "id is blank": ({**GOOD, "id": " "}, "'id': is empty"),
    "no turns": ({"id": 1}, "'conversations': is missing"),
    "turns are text": ({**GOOD, "conversations": "Hi"}, "'conversations': must be a list, not text"),
    "a turn is text": ({**GOOD, "conversations": ["Hi"]}, "'conversations[0]': must be an object, not text"),
    "empty": ({**GOOD, "conversations": []}, "'conversations': holds no answer"),
    "no text": (
        {**GOOD, "conversations": [{"from": "human"}, {"from": "gpt", "value": ""}]},
        "'conversations[0].value': is missing",
    ),
    "a number said": (with_turns(HUMAN, ("gpt", 3)), "'conversations[1].value': must be text, not a number"),
    "unknown speaker": (
        with_turns(HUMAN, ("gtp", "a cat")),
        "'conversations[1].from': unknown speaker 'gtp'; did you mean 'gpt'? Choices: gpt, human",
    ),
    "human twice": (with_turns(HUMAN, ("human", "?"), GPT), "'conversations[1].from': two turns of 'human' in a row"),
    "gpt twice": (with_turns(HUMAN, GPT, GPT), "'conversations[2].from': two turns of 'gpt' in a row"),
    "gpt twice first": (with_turns(GPT, GPT), "'conversations[1].from': two turns of 'gpt' in a row"),
    "no answer": (with_turns(HUMAN), "'conversations': holds no answer"),
    "only the model": (with_turns(GPT), "'conversations': holds no answer"),
    "mark without picture": (
        {**GOOD, "image": None},
        "'conversations[0].value': holds <image>, but the sample has no 'image'",
    ),
    "picture without mark": (
        with_turns(("human", "What?"), GPT),
        "'conversations[0].value': must hold <image>, because the sample has an 'image'",
    ),
    "two marks": (
        with_turns(("human", "<image><image>"), GPT),
        "'conversations[0].value': holds <image> 2 times; a sample has one picture",
    ),
    "a later mark": (
        with_turns(HUMAN, GPT, ("human", "<image>"), GPT),
        "'conversations[2].value': holds <image>, which belongs in the first turn of 'human'",
    ),
    "a mark in the answer": (with_turns(HUMAN, ("gpt", "<image>")), "'conversations[1].value': holds <image>"),
    "a blank answer": (with_turns(HUMAN, ("gpt", " \n")), "'conversations[1].value': is blank"),
    "an empty answer later": (
        with_turns(HUMAN, GPT, ("human", "Where?"), ("gpt", "")),
        "'conversations[3].value': is blank",
    ),
    "a blank question": (
        {**with_turns(("human", " "), GPT), "image": None},
        "'conversations[0].value': is blank; every turn must say something, be it <image> alone",
    ),
    "a blank reference": ({**GOOD, "answers": ["a", " "]}, "'answers[1]': is blank"),
    "several pictures": ({**GOOD, "image": ["a", "b"]}, "'image': must be one file name, not a list"),
    "a number as picture": ({**GOOD, "image": 5}, "'image': must be text, not a number"),
    "no name": ({**GOOD, "image": ""}, "'image': '' is not a file name"),
    "zero byte": ({**GOOD, "image": "a\0b"}, "'image': 'a\\x00b' is not a file name"),
    "task of no name": ({**GOOD, "task": "a.b"}, "'task': 'a.b' cannot be a name"),
    "unknown split": ({**GOOD, "split": "dev"}, "'split': unknown split 'dev'. Choices: test, train, val"),
    "answers are text": ({**GOOD, "answers": "a cat"}, "'answers': must be a list, not text"),
    "no answers": ({**GOOD, "answers": []}, "'answers': must hold 1 or more texts, not 0"),
    "an answer is a number": ({**GOOD, "answers": ["a", 1]}, "'answers[1]': must be text, not a number"),
    "one choice": ({**GOOD, "choices": ["a"]}, "'choices': must hold 2 to 26 texts, not 1"),
    "27 choices": ({**GOOD, "choices": ["a"] * 27}, "'choices': must hold 2 to 26 texts, not 27"),
    "three numbers": ({**GOOD, "box": [0, 0, 1]}, "'box': must hold 4 numbers, not 3"),
    "outside": ({**GOOD, "box": [0, 0, 1, 1.01]}, "'box': [0.0, 0.0, 1.0, 1.01] has values outside 0 to 1"),
    "below zero": ({**GOOD, "box": [-0.1, 0, 1, 1]}, "'box': [-0.1, 0.0, 1.0, 1.0] has values outside 0 to 1"),
    "turned round": ({**GOOD, "box": [0.5, 0, 0.4, 1]}, "'box': [0.5, 0.0, 0.4, 1.0] has no area"),
    "flat": ({**GOOD, "box": [0.1, 0.5, 0.4, 0.5]}, "'box': [0.1, 0.5, 0.4, 0.5] has no area"),
    "words": ({**GOOD, "box": [0, 0, "1", 1]}, "'box[2]': must be a number, not text"),
    "truth": ({**GOOD, "box": [0, 0, True, 1]}, "'box[2]': must be a number, not true"),
    "half a character": ({**GOOD, "answers": ["\ud800"]}, "'answers[0]': holds half a character"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_named_with_file_line_and_field(path: Path, name: str) -> None:
    bad, message = BAD[name]
    with pytest.raises(UserError) as caught:
        read(path, GOOD, GOOD, bad)
    place = f"{path}, line 4: " if name == "no object" else f"{path}, line 4, "
    assert str(caught.value).startswith(place + message)
    assert "\n" not in str(caught.value)


def test_numbers_too_large_are_not_finite(path: Path) -> None:
    path.write_text(json.dumps([{**GOOD, "box": [0, 0, 1, 7]}]).replace("7]", "1e999]"))
    with pytest.raises(UserError, match=r"line 1, 'box\[3\]': must be finite, not inf"):
        list(read_conversations(path))


OUTSIDE = [
    "/etc/passwd",
    "../1.png",
    "a/../../1.png",
    "C:\\1.png",
    "c:1.png",
    "\\\\host\\1.png",
    "..\\1.png",
    "a/..\\../1",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_pictures_outside_the_folder_are_refused(path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"line 2, 'image': .* lies outside the folder of pictures"):
        read(path, {**GOOD, "image": name})


@pytest.mark.parametrize("name", ["1..png", "a/../1.png", "a/...png", "ü.png"])
def test_pictures_inside_the_folder_are_not(path: Path, name: str) -> None:
    assert read(path, {**GOOD, "image": name})[0].image == name


@pytest.mark.parametrize("text", ["[]", "[\n]\n"])
def test_a_file_without_samples_is_refused(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(UserError, match=r"samples\.json: holds no samples"):
        list(read_conversations(path))


# ------------------------------------------------------------------------------------------------------------- pictures


def test_pictures_need_not_be_there_unless_asked_for(path: Path, images: Path) -> None:
    missing = {**GOOD, "image": "a/2.png"}
    assert len(read(path, GOOD, missing)) == 2
    with pytest.raises(UserError, match=r"line 3, 'image': there is no file 'a/2\.png' in "):
        read(path, GOOD, missing, images=images)


def test_a_link_out_of_the_folder_is_refused(path: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"")
    (images / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(UserError, match=r"line 2, 'image': 'link\.png' lies outside the folder"):
        read(path, {**GOOD, "image": "link.png"}, images=images)


def test_the_size_is_read_from_the_header(images: Path) -> None:
    whole = (images / "a/1.png").read_bytes()
    (images / "a/1.png").write_bytes(whole[:-20])  # cut off behind the header
    assert picture_size(images / "a/1.png") == (6, 4)


def test_what_is_no_picture_is_named(path: Path, images: Path) -> None:
    (images / "text.png").write_text("no picture")
    found = read(path, GOOD, {**GOOD, "image": "text.png"}, images=images)
    check_pictures(path, found[:1], images)
    with pytest.raises(UserError, match=r"text\.png: is not a readable image: .* \(.*samples\.json, line 3, 'image'\)"):
        check_pictures(path, found, images)
    (images / "a/1.png").unlink()
    with pytest.raises(UserError, match=r"samples\.json, line 2, 'image': there is no file"):
        check_pictures(path, found, images)


# -------------------------------------------------------------------------------------------------------------- writing

TEXT = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: "<image>" not in text)
SHOWN = st.characters(exclude_categories=["C", "Z"], exclude_characters="<")
SAID = st.tuples(SHOWN, TEXT).map("".join)
NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,8}", fullmatch=True)
EDGES = st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda edges: edges[0] < edges[1])
BOXES = st.tuples(EDGES, EDGES).map(lambda pair: (pair[0][0], pair[1][0], pair[0][1], pair[1][1]))


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    image = draw(st.none() | NAMES)
    said = draw(st.lists(SAID, min_size=1, max_size=3))
    first = draw(SAID) if image is None else f"<image>\n{draw(TEXT).strip()}".strip()
    turns = [Turn("human", first), Turn("gpt", said[0])]
    for text in said[1:]:
        turns += [Turn("human", text), Turn("gpt", text)]
    return Conversation(
        id=draw(NAMES),
        image=image,
        turns=tuple(turns),
        task=draw(st.none() | NAMES),
        client=draw(st.none() | NAMES),
        split=draw(st.sampled_from([None, "train", "val", "test"])),
        answers=tuple(draw(st.lists(SAID, max_size=3))),
        box=draw(st.none() | BOXES),
        choices=tuple(draw(st.just([]) | st.lists(TEXT, min_size=2, max_size=5))),
    )


@given(st.lists(conversations(), min_size=1, max_size=5), st.sampled_from(["json", "jsonl"]))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, found: list[Conversation], ending: str
) -> None:
    path = tmp_path_factory.mktemp("written") / f"samples.{ending}"
    assert write_conversations(path, found) == len(found)
    again = list(read_conversations(path))
    assert again == found
    assert [each.line for each in again] == [i + (2 if ending == "json" else 1) for i in range(len(found))]
    if ending == "json":
        assert [sample["id"] for sample in json.loads(path.read_text())] == [each.id for each in found]


@given(conversations())
def test_reading_changes_nothing_twice(found: Conversation) -> None:
    assert conversation_of(Fields(found.as_json(), "here")) == found


def test_a_file_is_replaced_only_when_the_new_one_is_complete(path: Path) -> None:
    (found,) = read(path, GOOD)
    before = path.read_bytes()

    def broken() -> Iterator[Conversation]:
        yield found
        raise UserError("the source is broken")

    with pytest.raises(UserError, match="the source is broken"):
        write_conversations(path, broken())
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    write_conversations(path, [found, found])
    assert len(list(read_conversations(path))) == 2


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere/samples\.json: cannot be written"):
        write_conversations(tmp_path / "nowhere" / "samples.json", [])


def test_checking_leaves_the_object_as_it_was() -> None:
    before = deepcopy(GOOD)
    conversation_of(Fields(GOOD, "here"))
    assert before == GOOD
