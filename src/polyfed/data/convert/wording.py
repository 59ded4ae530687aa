"""How questions are put. The fixed sentences are those that LLaVA-1.5 was tuned with, so that it knows them."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase

CAPTION = "Provide a one-sentence caption for the provided image."
SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


def short(question: str) -> str:
    """Ask for a word or phrase."""
    return f"{question.strip()}\n{SHORT}"


def multiple_choice(question: str, choices: Sequence[str], context: str = "") -> str:
    """Ask for the letter of one of the choices, which are listed one per line."""
    lines = [f"Context: {context.strip()}"] if context.strip() else []
    lines += [question.strip(), *(f"{letter(i)}. {choice}" for i, choice in enumerate(choices))]
    return lettered("\n".join(lines))


def lettered(prompt: str) -> str:
    """Ask for a letter where the choices are listed already."""
    return f"{prompt}\n{LETTER}"


def letter(number: int) -> str:
    """Return the letter of a choice (0 is A)."""
    return ascii_uppercase[number]


def where(expression: str) -> str:
    """Ask for the box of what an expression describes."""
    return f"Please provide the bounding box coordinate of the region this sentence describes: {expression.strip()}"


def present(category: str) -> str:
    """Ask whether something is in the picture."""
    return short(f'Does the picture show any object of the category "{category}"?')


def count(category: str) -> str:
    """Ask how many there are of something."""
    return short(f'How many objects of the category "{category}" does the picture show?')
