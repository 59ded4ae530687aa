"""What the answers of instruction files must be, so that they can be judged as their task is."""

from __future__ import annotations

from polyfed.data.boxes import Box, located, overlap, parse_box
from polyfed.data.conversations import Conversation
from polyfed.data.option_letters import LETTERS, option_letter
from polyfed.errors import UserError

SHOWN = 60  # characters of an answer in a message


def references(said: Conversation) -> tuple[str, ...]:
    """Return what the answer to the first question is compared with; of several turns only that one is asked for."""
    return said.references if len(said.turns) == 2 else (said.turns[1].text,)


def check_box(said: Conversation, place: str) -> None:
    """Refuse an answer that is no box, that is not in shares of the picture, or that is not the sample's own box.

    The sample's own (``box``) is compared where there is one question, for of several it may belong to any. Raises
    UserError naming ``place`` and the field.
    """
    answer = references(said)[0]
    box = parse_box(answer)
    if box is None:
        raise UserError(
            f"{_answered(said, place)} is no box, but a box is what the task is judged by; write it as "
            "[0.10, 0.25, 0.50, 1.00], or choose another of data.metrics"
        )
    problem = _fault(box)
    if problem is not None:
        raise UserError(f"{_answered(said, place)} {problem}; write it as [0.10, 0.25, 0.50, 1.00]")
    if said.box is not None and len(said.turns) == 2 and not located(overlap(box, said.box)):
        raise UserError(
            f"{_answered(said, place)} is another box than the sample's own 'box', {list(said.box)}: they overlap by "
            "less than one half (intersection over union); correct one of both, or leave out 'box'"
        )


def _fault(box: Box) -> str | None:
    if not all(0 <= value <= 1 for value in box):
        return "has values outside 0 to 1; boxes are shares of the padded square, not pixels"
    if box[0] == box[2] or box[1] == box[3]:
        return "has no area; a box is [left, top, right, bottom]"
    return None


def letter_fault(said: Conversation, place: str) -> str | None:
    """Say why an answer cannot be judged by its letter; None where it can.

    The letter must be that of one of the sample's ``choices``, if it has any, and an answer that repeats one of them
    must not be taken for another.
    """
    answer = references(said)[0]
    letters = LETTERS[: len(said.choices) or None]
    letter = option_letter(answer)
    if letter is None or letter not in letters:
        problem = f"names none of the letters {', '.join(letters)}"
    elif answer in said.choices and len(answer) > 1 and answer != said.choices[LETTERS.index(letter)]:
        problem = f"is one of the 'choices', but would be taken for {letter}"
    else:
        return None
    return f"{_answered(said, place)} {problem}"


def _answered(said: Conversation, place: str) -> str:
    """Name the answer that is judged, and where it stands."""
    name = "answers[0]" if said.answers and len(said.turns) == 2 else "conversations[1].value"
    return f"{place}, {name!r}: {shown(references(said)[0])}"


def shown(text: str) -> str:
    """Return a text as messages quote it: its beginning, where it is long."""
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")
