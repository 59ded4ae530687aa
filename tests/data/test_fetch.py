from __future__ import annotations

import hashlib
import shutil
import threading
import wave
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from polyfed.data import archive, check, fetch, fsdd, origins
from polyfed.data.download import download
from polyfed.data.source import find
from polyfed.errors import UserError

DATA = bytes(range(256)) * 1000
SHA256 = "sha256:" + hashlib.sha256(DATA).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves ``files`` with ranges; ``cut`` bytes are sent before the connection breaks off, once."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.ranges = True
        self.cut: int | None = None
        self.asked: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name, wanted = self.path.lstrip("/"), self.headers.get("Range")
        self.server.asked.append((name, wanted))
        if name not in self.server.files:
            self.send_error(404)
            return
        data, start = self.server.files[name], 0
        if wanted and self.server.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:][: self.server.cut])
        self.server.cut = None

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=partial(running.serve_forever, poll_interval=0.01))
        thread.start()
        running.files["file.bin"] = DATA
        yield running
        running.shutdown()
        thread.join()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_downloaded_whole_and_only_once(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.bin"
    assert download(server.url + "file.bin", target, SHA256, progress=False) == target
    assert target.read_bytes() == DATA
    assert names(target.parent) == ["file.bin"]
    download(server.url + "file.bin", target, SHA256, progress=False)
    assert server.asked == [("file.bin", None)]


def test_progress_goes_to_stderr(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    download(server.url + "file.bin", tmp_path / "file.bin", SHA256)
    shown = capsys.readouterr()
    assert "file.bin" in shown.err
    assert shown.out == ""


def test_an_interrupted_download_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.cut = 100_000
    with pytest.raises(UserError, match=r"the download failed .* 100000 bytes are kept in .*file\.bin\.part"):
        download(server.url + "file.bin", tmp_path / "file.bin", SHA256, progress=False)
    assert names(tmp_path) == ["file.bin.part"]
    download(server.url + "file.bin", tmp_path / "file.bin", SHA256, progress=False)
    assert server.asked[1:] == [("file.bin", "bytes=100000-")]
    assert (tmp_path / "file.bin").read_bytes() == DATA
    assert names(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("kept", [DATA[:5000], DATA, DATA + b"too long"])
@pytest.mark.parametrize("ranges", [True, False])
def test_whatever_was_kept_the_file_is_right(server: Server, tmp_path: Path, kept: bytes, ranges: bool) -> None:
    server.ranges = ranges
    (tmp_path / "file.bin.part").write_bytes(kept)
    download(server.url + "file.bin", tmp_path / "file.bin", SHA256, progress=False)
    assert (tmp_path / "file.bin").read_bytes() == DATA
    assert names(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_a_wrong_checksum_is_named_and_the_file_removed(server: Server, tmp_path: Path, algorithm: str) -> None:
    got = hashlib.new(algorithm, DATA).hexdigest()
    expected = hashlib.new(algorithm, b"other").hexdigest()
    with pytest.raises(UserError, match=f"wrong {algorithm} of file.bin: expected {expected}, got {got}"):
        download(server.url + "file.bin", tmp_path / "file.bin", f"{algorithm}:{expected}", progress=False)
    assert names(tmp_path) == []


def test_a_file_damaged_on_disk_is_downloaded_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"damaged")
    download(server.url + "file.bin", tmp_path / "file.bin", SHA256, progress=False)
    assert (tmp_path / "file.bin").read_bytes() == DATA


def test_what_the_server_lacks_is_named(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"http://127.*/nothing: the server answered 404 Not Found"):
        download(server.url + "nothing", tmp_path / "nothing", SHA256, progress=False)
    assert names(tmp_path) == []


def test_a_host_that_cannot_be_reached_is_named(server: Server, tmp_path: Path) -> None:
    server.server_close()
    (tmp_path / "file.bin.part").write_bytes(b"abc")
    with pytest.raises(UserError, match=r"http://127.*/file\.bin: the download failed .* 3 bytes are kept"):
        download(server.url + "file.bin", tmp_path / "file.bin", SHA256, progress=False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full to stand in for a full disk")
def test_a_full_disk_is_said(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"file\.bin: cannot be written \(No space left on device\); nothing was kept"):
        download(server.url + "file.bin", tmp_path / "file.bin", SHA256, progress=False)


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in members.items():
            opened.writestr(name, data)
    return path


def test_an_archive_is_unpacked(tmp_path: Path) -> None:
    archive.unpack(zipped(tmp_path / "a.zip", {"top/x.txt": b"x", "top/in/y.txt": b"y"}), tmp_path / "out")
    assert (tmp_path / "out/top/in/y.txt").read_bytes() == b"y"


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "..\\evil", "C:evil"])
def test_an_archive_may_not_write_outside_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"a\.zip: refused, because member '.*evil' is a link or points outside"):
        archive.unpack(zipped(tmp_path / "a.zip", {"good": b"g", name: b"x"}), tmp_path / "out")
    assert names(tmp_path) == ["a.zip"]


def test_an_archive_may_hold_no_links(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        opened.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match="member 'link' is a link"):
        archive.unpack(tmp_path / "a.zip", tmp_path / "out")


def test_an_archive_may_not_be_too_large_nor_damaged(tmp_path: Path) -> None:
    large = zipped(tmp_path / "a.zip", {"zeros": bytes(100_000)})
    with pytest.raises(UserError, match="unpacks to 100000 bytes, more than the 99999 allowed"):
        archive.unpack(large, tmp_path / "out", limit=99_999)
    (tmp_path / "b.zip").write_bytes(large.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"b\.zip: damaged"):
        archive.unpack(tmp_path / "b.zip", tmp_path / "out")


def test_an_unknown_set_and_one_to_be_obtained_by_hand_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown dataset to fetch 'mnst'; did you mean 'mnist'"):
        fetch.fetch("mnst", tmp_path)
    with pytest.raises(UserError, match=r"coco-mini cannot be downloaded.*Put images\.tar .* into .*/coco_mini/"):
        fetch.fetch("coco-mini", tmp_path)
    assert fetch.fetch("avdigits", tmp_path) == []


def test_fashion_mnist_is_fetched_file_by_file(server: Server, tmp_path: Path, published: Path) -> None:
    server.files = {path.name: path.read_bytes() for path in (published / "fashion_mnist").glob("*.gz")}
    root = tmp_path / "new"
    paths = fetch.fetch("fashion-mnist", root, base_url=server.url, progress=False)
    assert len(paths) == 4
    assert check.check("fashion-mnist", root) == []
    paths[1].write_bytes(b"damaged")
    server.asked.clear()
    shutil.copytree(published / "mnist", root / "mnist")
    fetch.fetch("multi-fmnist", root, base_url=server.url.rstrip("/"), progress=False)
    assert server.asked == [(paths[1].name, None)]


def recordings_zip(path: Path, read: fsdd.Clips) -> bytes:
    """Pack clips as the repository's archive: a folder named after the version, with ``recordings`` in it."""
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("free-spoken-digit-dataset-1.0.10/README.md", "read me")
        for name, audio in read.named():
            with (
                opened.open(f"free-spoken-digit-dataset-1.0.10/recordings/{name}", "w") as member,
                wave.open(member, "wb") as stream,
            ):
                stream.setparams((1, 2, 8000, len(audio), "NONE", ""))
                stream.writeframes(audio.astype("<i2").tobytes())
    return path.read_bytes()


def test_fsdd_is_fetched_unpacked_and_compared_by_content(server: Server, tmp_path: Path, published: Path) -> None:
    read = fsdd.clips(published)
    server.files["v1.0.10.zip"] = recordings_zip(tmp_path / "served.zip", read)
    root = tmp_path / "root"
    assert fetch.fetch("fsdd", root, base_url=server.url, progress=False) == [root / "free-spoken-digit-dataset"]
    assert names(root) == ["free-spoken-digit-dataset"]
    assert check.check("fsdd", root) == []
    np.testing.assert_array_equal(fsdd.clips(root).audio, read.audio)


def test_an_archive_with_other_content_is_refused_and_removed(server: Server, tmp_path: Path) -> None:
    zero = np.zeros(1, np.uint8)
    one = fsdd.Clips(np.array([1], np.int16), np.array([0, 1]), zero, zero, zero, ("anna",), 8000)
    server.files["v1.0.10.zip"] = recordings_zip(tmp_path / "served.zip", one)
    with pytest.raises(UserError, match=r"not the published set: .*clips: expected 3000, got 1.*fsdd\.zip was removed"):
        fetch.fetch("fsdd", tmp_path / "root", base_url=server.url, progress=False)
    assert names(tmp_path / "root") == []


def test_what_is_there_but_unsound_is_left_to_its_owner(server: Server, tmp_path: Path) -> None:
    (tmp_path / "fsdd.npz").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"fsdd is there but not sound; move it away .*fsdd\.npz: damaged"):
        fetch.fetch("fsdd", tmp_path, base_url=server.url)
    (tmp_path / "UCI HAR Dataset").mkdir()
    with pytest.raises(UserError, match=r"UCI HAR Dataset: is there but incomplete; move it away"):
        fetch.fetch("uci-har", tmp_path, base_url=server.url)
    assert server.asked == []


def test_the_archive_inside_the_uci_archive_is_unpacked(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = zipped(
        tmp_path / "inner.zip",
        {"UCI HAR Dataset/train/Inertial Signals/x.txt": b"1", "__MACOSX/UCI HAR Dataset/._x": b"", "note.txt": b""},
    ).read_bytes()
    outer = zipped(tmp_path / "outer.zip", {"UCI HAR Dataset.zip": inner, "UCI HAR Dataset.names": b"names"})
    origin = origins.ORIGINS["uci-har"]
    assert isinstance(origin, origins.Archive)
    server.files[origin.file] = outer.read_bytes()
    with pytest.raises(UserError, match=f"wrong sha256 of uci-har.zip: expected {(origin.checksum or '')[7:]}"):
        fetch.fetch("uci-har", tmp_path / "root", base_url=server.url, progress=False)
    monkeypatch.setattr(fetch, "ORIGINS", {"uci-har": replace(origin, checksum=None)})
    monkeypatch.setattr(fetch, "check", lambda name, root: [])
    fetch.fetch("uci-har", tmp_path / "root", base_url=server.url, progress=False)
    assert find(tmp_path / "root", check.KNOWN["uci-har"].layouts) is not None
    assert names(tmp_path / "root") == ["UCI HAR Dataset"]
