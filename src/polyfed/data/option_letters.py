"""Letters of options in answers to multiple-choice questions."""

from __future__ import annotations

import re

LETTERS = "ABCDE"
"""The options that can be told apart."""

_LETTER = re.compile(r"(?<!\w)[A-E](?!\w)")
_LONE_LETTER = re.compile(r"\W*([a-e])\W*")


def option_letter(text: str) -> str | None:
    """Return the option chosen in an answer to a multiple-choice question: the first letter A to E on its own.

    In lower case it counts only if there is nothing else: "a" is also a word. None if there is no such letter.
    """
    lone = _LONE_LETTER.fullmatch(text)
    if lone is not None:
        return lone.group(1).upper()
    found = _LETTER.search(text)
    return found.group() if found is not None else None
