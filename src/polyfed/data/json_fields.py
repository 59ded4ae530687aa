"""The members of JSON objects, checked as they are asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from polyfed.data.json_stream import kind
from polyfed.errors import UserError


@dataclass(frozen=True, slots=True)
class Fields:
    """One JSON object, and where it stands: in ``place`` (file and line) under the name ``within``.

    All methods raise UserError naming both and the member at fault. A member that is null counts as missing.
    """

    raw: Mapping[str, Any]
    place: str
    within: str = ""

    def wrong(self, name: str, problem: str) -> UserError:
        """Return the error for a member."""
        return UserError(f"{self.place}, {self.within + name!r}: {problem}")

    def has(self, name: str) -> bool:
        """Whether there is such a member."""
        return self.raw.get(name) is not None

    def value(self, name: str) -> Any:
        """Return a member of any kind."""
        found = self.raw.get(name)
        if found is None:
            raise self.wrong(name, "is missing")
        return found

    def text(self, name: str) -> str:
        """Return a text."""
        return self._text(name, self.value(name))

    def label(self, name: str) -> str:
        """Return a text that is not empty; a whole number becomes one."""
        found = self.value(name)
        if isinstance(found, int) and not isinstance(found, bool):
            return str(found)
        text = self._text(name, found)
        if not text.strip():
            raise self.wrong(name, "is empty")
        return text

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of texts."""
        return tuple(self._text(f"{name}[{i}]", item) for i, item in enumerate(self._list(name)))

    def integer(self, name: str) -> int:
        """Return a whole number."""
        return self._integer(name, self.value(name))

    def integers(self, name: str) -> tuple[int, ...]:
        """Return a list of whole numbers."""
        return tuple(self._integer(f"{name}[{i}]", item) for i, item in enumerate(self._list(name)))

    def four_numbers(self, name: str) -> tuple[float, float, float, float]:
        """Return a list of four finite numbers, a box."""
        found = self._list(name)
        if len(found) != 4:
            raise self.wrong(name, f"must hold 4 numbers, not {len(found)}")
        one, two, three, four = (self._number(f"{name}[{i}]", item) for i, item in enumerate(found))
        return one, two, three, four

    def objects(self, name: str) -> Iterator[Fields]:
        """Yield the objects of a list."""
        for i, item in enumerate(self._list(name)):
            if not isinstance(item, dict):
                raise self.wrong(f"{name}[{i}]", f"must be an object, not {kind(item)}")
            yield Fields(item, self.place, f"{self.within}{name}[{i}].")

    def _list(self, name: str) -> list[Any]:
        found = self.value(name)
        if not isinstance(found, list):
            raise self.wrong(name, f"must be a list, not {kind(found)}")
        return found

    def _text(self, name: str, found: object) -> str:
        if not isinstance(found, str):
            raise self.wrong(name, f"must be text, not {kind(found)}")
        if not found.isascii():
            try:
                found.encode()
            except UnicodeEncodeError:
                raise self.wrong(name, "holds half a character (a lone surrogate)") from None
        return found

    def _integer(self, name: str, found: object) -> int:
        if not isinstance(found, int) or isinstance(found, bool):
            raise self.wrong(name, f"must be a whole number, not {kind(found)}")
        return found

    def _number(self, name: str, found: object) -> float:
        if not isinstance(found, int | float) or isinstance(found, bool):
            raise self.wrong(name, f"must be a number, not {kind(found)}")
        if not math.isfinite(found):
            raise self.wrong(name, f"must be finite, not {found}")
        return float(found)
