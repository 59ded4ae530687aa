from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest

from polyfed.data.check import KNOWN, check, status
from polyfed.data.origins import ORIGINS, Built
from polyfed.errors import UserError

CONVERTED = {"cmu-mosei", "vehicle-sensor"}  # by their user, from files that polyfed's tests do not have


@pytest.mark.parametrize("name", sorted(KNOWN.keys() - CONVERTED))
def test_the_published_sets_are_sound(published: Path, name: str) -> None:
    assert check(name, published) == []


def test_every_origin_can_be_checked() -> None:
    for name, origin in ORIGINS.items():
        assert set(origin.parts) <= set(KNOWN) if isinstance(origin, Built) else name in KNOWN


def test_the_layout_does_not_matter_but_the_bytes_do(published: Path, tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    for path in (published / "fashion_mnist").glob("*.gz"):
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    assert check("fashion-mnist", tmp_path) == []
    changed = raw / "t10k-labels-idx1-ubyte"
    data = bytearray(changed.read_bytes())
    data[8], data[9] = data[9], data[8]
    changed.write_bytes(data)
    [problem] = check("fashion-mnist", tmp_path)
    assert problem.startswith(f"{changed}: sha256 of the decompressed bytes: expected 0402a96d92fd")
    assert ", got " in problem


def test_one_changed_byte_of_a_packed_file_is_found(published: Path, tmp_path: Path) -> None:
    copy = tmp_path / "scienceqa_text.jsonl.gz"
    shutil.copyfile(published / copy.name, copy)
    copy.chmod(0o600)
    copy.write_bytes(copy.read_bytes()[:-1] + b"?")
    [problem] = check("scienceqa-text", tmp_path)
    assert problem.startswith(f"{copy}: sha256: expected 41b00a7f8e29")


def test_damage_and_absence_are_problems_not_tracebacks(tmp_path: Path) -> None:
    [absent] = check("uci-har", tmp_path)
    assert "UCI HAR was not found under" in absent
    (tmp_path / "uci_har.npz").write_bytes(b"damaged")
    [damaged] = check("uci-har", tmp_path)
    assert damaged.startswith(f"{tmp_path / 'uci_har.npz'}: damaged")
    assert check("avdigits", None) == []
    assert [problem.split()[0] for problem in check("av-mnist", None)] == ["MNIST", "The"]
    with pytest.raises(UserError, match="unknown dataset to check 'har'"):
        check("har", tmp_path)


def test_the_status_lists_every_set(tmp_path: Path) -> None:
    (tmp_path / "fsdd.npz").touch()
    found = {entry.name: entry for entry in status(tmp_path)}
    assert set(found) == set(ORIGINS)
    assert (found["fsdd"].found, found["fsdd"].layout) == (True, "packed")
    assert found["fsdd"].detail == str(tmp_path / "fsdd.npz")
    assert (found["mnist"].found, found["mnist"].detail) == (False, "`polyfed data fetch mnist`")
    assert (found["av-mnist"].found, found["av-mnist"].detail) == (False, "needs mnist: `polyfed data fetch av-mnist`")
    assert found["avdigits"].found
    assert [entry.name for entry in status(None) if entry.found] == ["avdigits"]


def test_the_status_of_the_published_sets(published: Path) -> None:
    found = {entry.name for entry in status(published) if entry.found}
    assert found >= set(ORIGINS) - CONVERTED
