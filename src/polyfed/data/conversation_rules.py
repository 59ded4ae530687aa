"""What a sample for instruction tuning must be like: a JSON object, checked, becomes a conversation."""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import get_args

from polyfed.data.boxes import Box
from polyfed.data.conversations import IMAGE, Conversation, Speaker, Split, Turn
from polyfed.data.json_fields import Fields
from polyfed.errors import unknown

TASK = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
MOST_CHOICES = 26  # letters


def conversation_of(sample: Fields, line: int = 0) -> Conversation:
    """Check one sample and return it.

    Raises UserError naming the place and the field for a member that is missing or of the wrong kind, an unknown
    speaker, two turns of one side in a row, no answer, a blank turn or reference, a picture without its mark or a mark
    without a picture, several marks, a picture outside the folder, and a box that is none.
    """
    image = _image(sample)
    return Conversation(
        id=sample.label("id"),
        image=image,
        turns=_turns(sample, image),
        task=_task(sample),
        client=sample.label("client") if sample.has("client") else None,
        split=_split(sample),
        answers=_answers(sample),
        box=_box(sample),
        choices=_several(sample, "choices", 2, MOST_CHOICES),
        line=line,
    )


def _image(sample: Fields) -> str | None:
    if not sample.has("image"):
        return None
    if isinstance(sample.value("image"), list):
        raise sample.wrong("image", "must be one file name, not a list: a sample has one picture")
    name = sample.text("image")
    if not name.strip() or "\0" in name:
        raise sample.wrong("image", f"{name!r} is not a file name")
    if _leaves(name):
        raise sample.wrong("image", f"{name!r} lies outside the folder of pictures; give a path relative to it")
    return name


def _leaves(name: str) -> bool:
    """Whether a path leads out of the folder it is relative to, as either kind of system reads it."""
    if ".." not in name and name[0] not in "/\\" and ":" not in name:
        return False  # as nearly always; paths take long to take apart
    windows = PureWindowsPath(name)
    if windows.drive or windows.root or PurePosixPath(name).is_absolute():
        return True
    depth = 0
    for part in windows.parts:  # these are divided at / and \
        depth += -1 if part == ".." else 1
        if depth < 0:
            return True
    return False


def _turns(sample: Fields, image: str | None) -> tuple[Turn, ...]:
    """Return the turns as LLaVA uses them: a first one that is not the human's and a last question are dropped."""
    found = [(turn, _turn(turn)) for turn in sample.objects("conversations")]
    if found and found[0][1].speaker != "human":
        del found[0]
    for i, (turn, (speaker, _)) in enumerate(found):
        if speaker != ("gpt" if i % 2 else "human"):
            raise turn.wrong("from", f"two turns of {speaker!r} in a row; human and gpt take turns")
    for i, each in enumerate(found):
        _marked(*each, allowed=0 if i else 1)
    if len(found) % 2:
        del found[-1]
    if not found:
        raise sample.wrong("conversations", "holds no answer: a turn of 'human' must be followed by one of 'gpt'")
    for each in found:
        _says(*each)
    return (_first(*found[0], image), *(turn for _, turn in found[1:]))


def _first(turn: Fields, said: Turn, image: str | None) -> Turn:
    """Return the first turn with its mark, if it has one, in front on a line of its own."""
    marked = IMAGE in said.text
    if image is None and marked:
        raise turn.wrong("value", f"holds {IMAGE}, but the sample has no 'image'")
    if image is not None and not marked:
        raise turn.wrong("value", f"must hold {IMAGE}, because the sample has an 'image'")
    if not marked:
        return said
    return Turn(said.speaker, f"{IMAGE}\n{said.text.replace(IMAGE, '').strip()}".strip())


def _turn(turn: Fields) -> Turn:
    speakers: dict[str, Speaker] = {name: name for name in get_args(Speaker)}
    speaker, text = turn.text("from"), turn.text("value")
    if speaker not in speakers:
        raise unknown("speaker", speaker, speakers, place=f"{turn.place}, {turn.within + 'from'!r}")
    return Turn(speakers[speaker], text)


def _marked(turn: Fields, said: Turn, *, allowed: int) -> None:
    count = said.text.count(IMAGE)
    if count > allowed:
        again = f"holds {IMAGE} {count} times; a sample has one picture"
        raise turn.wrong("value", again if allowed else f"holds {IMAGE}, which belongs in the first turn of 'human'")


def _says(turn: Fields, said: Turn) -> None:
    if not said.text.strip():
        raise turn.wrong("value", f"is blank; every turn must say something, be it {IMAGE} alone")


def _task(sample: Fields) -> str | None:
    if not sample.has("task"):
        return None
    name = sample.text("task")
    if not TASK.fullmatch(name):
        raise sample.wrong("task", f"{name!r} cannot be a name: use letters, digits, '_' and '-', a letter first")
    return name


def _split(sample: Fields) -> Split | None:
    if not sample.has("split"):
        return None
    splits: dict[str, Split] = {name: name for name in get_args(Split)}
    name = sample.text("split")
    if name not in splits:
        raise unknown("split", name, splits, place=f"{sample.place}, {sample.within + 'split'!r}")
    return splits[name]


def _several(sample: Fields, name: str, least: int, most: int | None = None) -> tuple[str, ...]:
    if not sample.has(name):
        return ()
    found = sample.texts(name)
    if len(found) < least or (most is not None and len(found) > most):
        bounds = f"{least} or more" if most is None else f"{least} to {most}"
        raise sample.wrong(name, f"must hold {bounds} texts, not {len(found)}")
    return found


def _answers(sample: Fields) -> tuple[str, ...]:
    found = _several(sample, "answers", 1)
    for i, text in enumerate(found):
        if not text.strip():
            raise sample.wrong(f"answers[{i}]", "is blank; an answer must say something")
    return found


def _box(sample: Fields) -> Box | None:
    if not sample.has("box"):
        return None
    box = x1, y1, x2, y2 = sample.four_numbers("box")
    if not all(0 <= value <= 1 for value in box):
        raise sample.wrong("box", f"{list(box)} has values outside 0 to 1; boxes are shares of the padded square")
    if x1 >= x2 or y1 >= y2:
        raise sample.wrong("box", f"{list(box)} has no area; a box is [left, top, right, bottom]")
    return box
