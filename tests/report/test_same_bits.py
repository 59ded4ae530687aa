"""A comparison says which methods ended with the same parameters."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from tests.worlds import tiny

from polyfed.experiment.running import run
from polyfed.report.comparison import write_comparison
from polyfed.report.records import RunData, load_run
from polyfed.report.same_bits import same_bits
from polyfed.report.variants import Variant

Make = Callable[..., Path]
Ends = dict[int, tuple[str, str]]
"""Seed -> digest and personal digest."""

NOBODY = sha256().hexdigest()
"""The digest of no tensor at all."""


@pytest.fixture
def data(make_run: Make, tmp_path: Path) -> RunData:
    return load_run(make_run(tmp_path / "run", rounds=1, clients=1))


def ended(data: RunData, label: str, ends: Ends) -> Variant:
    """Return a variant whose runs ended with these digests."""
    summaries = [
        data.summary.model_copy(update={"seed": seed, "digest": digest, "personal_digest": personal})
        for seed, (digest, personal) in ends.items()
    ]
    return Variant(label, label, tuple(replace(data, summary=summary) for summary in summaries))


@pytest.mark.parametrize(
    ("ends", "groups"),
    [
        ([{0: ("a", NOBODY), 1: ("b", NOBODY)}] * 2, ["01"]),
        ([{0: ("a", NOBODY)}, {0: ("b", NOBODY)}], []),
        ([{0: ("a", ""), 1: ("b", "")}, {0: ("a", ""), 1: ("c", "")}], []),  # the second seed tells them apart
        ([{0: ("a", ""), 1: ("b", "")}, {0: ("a", ""), 2: ("c", "")}], ["01"]),  # only seed 0 is in common
        ([{0: ("a", "")}, {1: ("a", "")}], []),  # no seed is in common
        ([{0: (NOBODY, "p")}] * 2, ["01"]),  # the server holds nothing: the clients' parameters count
        ([{0: (NOBODY, "p")}, {0: (NOBODY, "q")}], []),
        ([{0: ("a", "p")}, {0: ("a", "q")}], []),  # what stayed on the clients differs
        ([{0: (NOBODY, NOBODY)}] * 2, []),  # nothing was kept anywhere
        ([{0: ("", "")}] * 2, []),  # of an older version that recorded none
        ([{0: (end, "")} for end in "abaxbax"], ["025", "14", "36"]),
        # 0 and 1 agree and so do 0 and 2, but not 1 and 2
        ([{0: ("a", ""), 1: ("b", "")}, {0: ("a", ""), 2: ("c", "")}, {1: ("b", ""), 2: ("d", "")}], ["01"]),
    ],
)
def test_variants_with_the_same_digests_are_grouped(ends: list[Ends], groups: list[str], data: RunData) -> None:
    found = [ended(data, str(number), each) for number, each in enumerate(ends)]
    assert ["".join(one.label for one in group) for group in same_bits(found)] == groups


def test_the_page_names_them(make_run: Make, tmp_path: Path) -> None:
    folders = [make_run(tmp_path / method, method=method) for method in ("local", "fedavg", "fedprox")]
    assert "the same bits" not in write_comparison(folders, tmp_path / "page.html").read_text()
    for folder in folders:
        summary = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps({**summary, "digest": "5f"}))
    page = write_comparison(folders[1:], tmp_path / "page.html").read_text()
    assert "fedavg and fedprox gave the same bits: with these settings they are the same method." in page
    page = write_comparison(folders, tmp_path / "page.html").read_text()
    assert "local, fedavg and fedprox gave the same bits" in page


def test_fedprox_without_its_term_is_fedavg(tmp_path: Path) -> None:
    folders = [tmp_path / "fedavg", tmp_path / "fedprox", tmp_path / "local"]
    for folder in folders:
        options = {"method__mu": 0.0} if folder.name == "fedprox" else {}
        run(tiny(rounds=1, method__name=folder.name, **options), folder)
    page = write_comparison(folders, tmp_path / "page.html").read_text()
    assert page.count("gave the same bits") == 1
    assert "fedavg and fedprox[mu=0] gave the same bits" in page
