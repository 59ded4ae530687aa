"""What every converter is given, and what they share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from polyfed.data.boxes import Box, box_text, sayable
from polyfed.data.conversation_rules import MOST_CHOICES, conversation_of
from polyfed.data.conversations import IMAGE, Conversation, Split
from polyfed.data.convert import wording
from polyfed.data.json_fields import Fields
from polyfed.errors import UserError
from polyfed.rng import seed_of

DEFAULT_SHARE = 0.2


@dataclass(frozen=True)
class Splits:
    """Official splits where there are some; else, or where ``test_share`` is given, ours: a draw for every picture.

    All samples of one picture (or, without one, of one question) are in the same part.
    """

    test_share: float | None = None
    seed: int = 0

    def of(self, official: Split | None, group: object) -> Split:
        """Return the part that a group of samples belongs to."""
        if official is not None and self.test_share is None:
            return official
        share = DEFAULT_SHARE if self.test_share is None else self.test_share
        return "test" if seed_of(self.seed, "test split", str(group)) < share * 2**63 else "train"


@dataclass
class Job:
    """One conversion.

    ``source`` is what the user named, a file or folder; ``images`` the folder of pictures, if it was named; ``made``
    the folder that becomes the result. ``left_out`` counts what was left out, by reason.
    """

    source: Path
    made: Path
    images: Path | None = None
    splits: Splits = field(default_factory=Splits)
    skip_missing: bool = False
    left_out: Counter[str] = field(default_factory=Counter)
    _there: dict[tuple[str, ...], str | None] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """The folder that names of pictures are relative to."""
        if self.images is not None:
            return self.images
        return self.source if self.source.is_dir() else self.source.parent

    def files(self, pattern: str, *below: str) -> list[Path]:
        """Return the source if it is a file, else the files of a pattern in it or in a folder below that has any.

        Raises UserError if there are none.
        """
        if self.source.is_file():
            return [self.source]
        for folder in (self.source, *(self.source / name for name in below)):
            found = sorted(folder.glob(pattern))
            if found:
                return found
        places = " or ".join(["it", *(f"{name}/" for name in below)])
        raise UserError(f"{self.source}: there is no file {pattern} in {places}")

    def file(self, name: str, *below: str) -> Path:
        """Return the one file of a pattern; raises UserError if there are none or several."""
        found = self.files(name, *below)
        if len(found) > 1:
            raise UserError(f"{self.source}: has several files; name one: {', '.join(path.name for path in found)}")
        return found[0]

    def picture(self, place: str, *names: str) -> str | None:
        """Return the first of several possible names under which a picture is there; None if it is to be left out.

        Raises UserError where there is no such file, unless such samples are skipped.
        """
        if names not in self._there:
            self._there[names] = next((name for name in names if _is_file(self.root / name)), None)
        found = self._there[names]
        if found is None and not self.skip_missing:
            raise UserError(
                f"{place}: there is no picture {names[0]!r} in {self.root}. --images names another folder, "
                "--skip-missing leaves out samples whose picture is missing"
            )
        if found is None:
            self.left_out["the picture is missing"] += 1
        return found

    def says(self, answer: str) -> bool:
        """Whether an answer says something; one that does not is left out."""
        if answer.strip():
            return True
        self.left_out["the answer is blank"] += 1
        return False

    def captions(
        self, place: str, number: int, image: str, captions: Sequence[str], official: Split | None
    ) -> Iterator[Conversation]:
        """Yield a picture's captions: to train on one sample each, else one sample with all of them as references."""
        split = self.splits.of(official, number)
        told = [text.strip() for text in captions if text.strip()]
        if not told:
            self.left_out["there is no caption"] += 1
            return
        for i, caption in enumerate(told if split == "train" else told[:1]):
            yield Ask(place, f"{number}-caption-{i}", image, "caption", split).answered(
                wording.CAPTION, caption, answers=told if split != "train" else ()
            )

    def grounded(self, ask: Ask, expression: str, box: Box) -> Iterator[Conversation]:
        """Yield the question where something is, unless two decimals are too coarse for its box (in the square)."""
        x1, y1, x2, y2 = (round(value, 4) for value in box)
        exact = x1, y1, x2, y2
        if sayable(exact):
            yield ask.answered(wording.where(expression), box_text(exact), box=exact)
        else:
            self.left_out["the box is too small to be written with two decimals"] += 1


@dataclass(frozen=True)
class Ask:
    """A sample in the making: where it comes from, and what it is about."""

    place: str
    id: str
    image: str | None
    task: str
    split: Split

    def answered(self, question: str, answer: str, **more: object) -> Conversation:
        """Return the sample, checked like one that is read from a file."""
        asked = f"{IMAGE}\n{question}" if self.image else question
        raw = {
            "id": self.id,
            "image": self.image,
            "conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}],
            "task": self.task,
            "split": self.split,
            **{key: list(value) if isinstance(value, tuple) else value for key, value in more.items() if value},
        }
        return conversation_of(Fields(raw, self.place))


def chosen(problem: Fields) -> tuple[tuple[str, ...], str]:
    """Return the choices of a question, and the letter of the right one (the member ``answer``, counted from 0)."""
    choices, answer = problem.texts("choices"), problem.integer("answer")
    if not 2 <= len(choices) <= MOST_CHOICES:
        raise problem.wrong("choices", f"must hold 2 to {MOST_CHOICES} texts, not {len(choices)}")
    if not 0 <= answer < len(choices):
        raise problem.wrong("answer", f"{answer} is none of the choices. Choices: 0 to {len(choices) - 1}")
    return choices, wording.letter(answer)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than a file system takes
        return False
