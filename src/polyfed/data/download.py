"""Downloading one file: checked, resumed where it stopped, and put in place only when it is whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pooch
import requests
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from urllib3.exceptions import HTTPError

from polyfed.errors import UserError

TIMEOUT = (15, 60)  # seconds to connect, and without a byte
CHUNK = 1 << 18


def download(url: str, target: Path, known_hash: str | None, progress: bool = True) -> Path:
    """Download a file unless ``target`` holds it already; returns ``target``.

    ``known_hash`` is ``sha256:...`` or ``md5:...`` (None where no checksum is published). What has arrived is kept in
    ``<target>.part``, and the next call goes on from there where the server allows it. Raises UserError where the
    host cannot be reached, the server refuses, the disk is full, or the checksum is wrong (the file is then removed).
    """
    pooch.get_logger().setLevel("WARNING")  # the progress bar says the same, without internal file names
    part = target.with_name(target.name + ".part")
    try:
        pooch.retrieve(url, known_hash, target.name, target.parent, downloader=Resuming(part, known_hash, progress))
    except (requests.RequestException, HTTPError) as error:  # before OSError, of which the first is a kind
        raise UserError(f"{url}: the download failed ({error}); {_kept(part)}") from error
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error}); {_kept(part)}") from error
    return target


@dataclass(frozen=True)
class Resuming:
    """A pooch downloader that keeps what has arrived in ``part`` and asks only for the rest."""

    part: Path
    known_hash: str | None
    progress: bool

    def __call__(self, url: str, output_file: str, pooch_object: object) -> None:
        """Complete ``part``, check it and move it to ``output_file``."""
        self._complete(url)
        self._verify(url)
        self.part.replace(output_file)

    def _complete(self, url: str) -> None:
        have = self.part.stat().st_size if self.part.exists() else 0
        # Without "identity" a server may send the file compressed once more, and ranges of that are of no use.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if response.status_code == 416 and have:
                if response.headers.get("Content-Range") != f"bytes */{have}":
                    self.part.unlink()  # it is no beginning of what the server has
                    self._complete(url)
            elif response.status_code in {200, 206}:
                self._store(response, have if _goes_on(response.headers, have) else 0)
            else:
                raise UserError(f"{url}: the server answered {response.status_code} {response.reason}")

    def _store(self, response: requests.Response, have: int) -> None:
        """Append the body after ``have`` bytes (0: write anew), with a progress bar on stderr."""
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdigit() else None
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        bar = Progress(*columns, console=Console(stderr=True), disable=not self.progress)
        with bar, self.part.open("ab" if have else "wb") as file:
            task = bar.add_task(self.part.stem, total=total, completed=have)
            for chunk in response.raw.stream(CHUNK, decode_content=False):
                file.write(chunk)
                bar.advance(task, len(chunk))

    def _verify(self, url: str) -> None:
        if self.known_hash is None:
            return
        algorithm, expected = self.known_hash.split(":")
        got = pooch.file_hash(str(self.part), alg=algorithm)
        if got != expected:
            self.part.unlink()
            raise UserError(
                f"{url}: wrong {algorithm} of {self.part.stem}: expected {expected}, got {got}; the file was removed"
            )


def _goes_on(headers: Mapping[str, str], have: int) -> bool:
    """Whether the answer begins after the ``have`` bytes asked for (a server may send everything instead)."""
    return have > 0 and headers.get("Content-Range", "").startswith(f"bytes {have}-")


def _kept(part: Path) -> str:
    if part.exists() and part.stat().st_size:
        return f"{part.stat().st_size} bytes are kept in {part}; run the same command again to go on from there"
    return "nothing was kept"
