"""JSON files read piece by piece, with the line of every piece, so that a file may be larger than memory."""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from polyfed.errors import UserError

CHUNK = 1 << 20  # bytes
LARGEST_PIECE = 1 << 24  # characters; larger ones are no samples but a file that was put together wrongly
TAIL = 16  # characters; a literal or escape that is cut off by the end of what was read is shorter


class Piece(NamedTuple):
    """One element of a list, or one member of an object (``key``), and the line it begins on."""

    line: int
    key: str
    value: dict[str, Any]


def elements(path: Path) -> Iterator[Piece]:
    """Yield the objects of a JSON list, or of a file with one object per line (JSON lines); either may be ``.gz``.

    Raises UserError naming the file and line for whatever is not valid JSON or no object.
    """
    with _reading(path) as stream:
        text = _Text(stream, path)
        first = text.peek()
        if first == "[":
            yield from _separated(text, "]", keyed=False)
        elif first == "{":
            while text.peek():
                yield text.piece()
        else:
            text.fail("must hold a list of objects ([{...}, ...]), or one object per line")


def members(path: Path) -> Iterator[Piece]:
    """Yield the members of one JSON object whose values are objects; the file may be ``.gz``.

    Raises UserError as ``elements`` does.
    """
    with _reading(path) as stream:
        text = _Text(stream, path)
        if text.peek() != "{":
            text.fail('must hold one object ({"id": {...}, ...})')
        yield from _separated(text, "}", keyed=True)


def whole(path: Path) -> dict[str, Any]:
    """Read a file that holds one object into memory; raises UserError naming the file and, where known, the line."""
    try:
        with _reading(path) as stream:
            found = json.loads(stream.read().decode("utf-8-sig"), parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid UTF-8 at byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {_reason(error)}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: must hold one JSON object, not {kind(found)}")
    return found


def kind(value: object) -> str:
    """Say in JSON's terms what a value is."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names = ((str, "text"), (int | float, "a number"), (list, "a list"), (dict, "an object"))
    return next((name for types, name in names if isinstance(value, types)), type(value).__name__)


@contextmanager
def _reading(path: Path) -> Iterator[gzip.GzipFile | BufferedReader]:
    """Open a file, plain or compressed; what goes wrong while it is read is a UserError."""
    try:
        with path.open("rb") as file:
            yield gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _separated(text: _Text, end: str, *, keyed: bool) -> Iterator[Piece]:
    """Yield what stands between an opening bracket and its end, and see that nothing follows."""
    text.skip()
    if text.peek() != end:
        yield text.piece(keyed)
        while text.peek() == ",":
            text.skip()
            if text.peek() in (end, ","):
                text.fail(f"not valid JSON: unexpected {text.peek()!r} after ','")
            yield text.piece(keyed)
    if text.peek() != end:
        text.fail("the file ends too early; is it cut off?" if not text.peek() else f"expected a comma or {end!r}")
    text.skip()
    if text.peek():
        text.fail(f"something follows the closing {end!r}")


class _Text:
    """A file's text from the place that was reached; the rest is read when it is needed."""

    def __init__(self, stream: gzip.GzipFile | BufferedReader, path: Path) -> None:
        self._stream, self._path = stream, path
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder(object_pairs_hook=_distinct, parse_constant=_no_constant)
        self._text, self._at, self._line, self._ended = "", 0, 1, False

    def fail(self, problem: str, at: int | None = None) -> NoReturn:
        """Raise the error for what stands at a position."""
        line = self._line + (self._text.count("\n", self._at, at) if at is not None else 0)
        raise UserError(f"{self._path}, line {line}: {problem}")

    def peek(self) -> str:
        """Return the next character that is no white space; empty at the end of the file."""
        while True:
            rest = len(self._text)
            start = self._at
            while self._at < rest and self._text[self._at] in " \t\r\n":
                self._at += 1
            self._line += self._text.count("\n", start, self._at)
            if self._at < rest:
                return self._text[self._at]
            if not self._more(CHUNK):
                return ""

    def skip(self) -> None:
        """Go past the character that was peeked at."""
        self._at += 1

    def piece(self, keyed: bool = False) -> Piece:
        """Read ``{...}`` or, keyed, ``"key": {...}``."""
        key, line = "", 0
        if keyed:
            key, line = self._key()
        found = self.peek()
        line = line or self._line
        if found != "{":
            name = f"the value of {key!r}" if keyed else "every sample"
            self.fail(f"{name} must be an object ({{...}})" if found else "the file ends too early; is it cut off?")
        value: dict[str, Any] = self._value()
        return Piece(line, key, value)

    def _key(self) -> tuple[str, int]:
        if self.peek() != '"':
            self.fail("expected a name in double quotes")
        line = self._line
        key: str = self._value()
        if self.peek() != ":":
            self.fail(f"expected ':' after {key!r}")
        self.skip()
        return key, line

    def _value(self) -> Any:
        """Decode the value that begins here, reading on as long as it may only be cut off."""
        wanted = CHUNK
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - TAIL
                if cut and self._more(wanted):
                    wanted *= 2  # each attempt starts over, so that small steps would take quadratic time
                    continue
                self.fail(self._fault(error), error.pos)
            except (ValueError, RecursionError) as error:
                self.fail(f"not valid JSON: {_reason(error)}")
            self._line += self._text.count("\n", self._at, end)
            self._at = end
            return value

    def _fault(self, error: json.JSONDecodeError) -> str:
        over = error.pos >= len(self._text) or error.msg.startswith("Unterminated string")
        reason = "the file ends too early; is it cut off?" if over else f"not valid JSON: {error.msg}"
        begun = f" (in what begins on line {self._line})" if "\n" in self._text[self._at : error.pos] else ""
        return reason + begun

    def _more(self, count: int) -> bool:
        """Read on, dropping what is behind; False at the end of the file."""
        if self._ended:
            return False
        rest = self._text[self._at :]
        if len(rest) > LARGEST_PIECE:
            self.fail(f"one object has more than {LARGEST_PIECE} characters; is a bracket or quote missing?")
        read = self._stream.read(count)
        self._ended = not read
        try:
            self._text = rest + self._decoder.decode(read, final=self._ended)
        except UnicodeDecodeError as error:
            line = self._line + rest.count("\n") + error.object[: error.start].count(b"\n")
            raise UserError(f"{self._path}, line {line}: not valid UTF-8") from None
        self._at = 0
        return True


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"{twice!r} is given twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _reason(error: ValueError | RecursionError) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
