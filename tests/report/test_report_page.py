from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from polyfed.errors import UserError
from polyfed.report.comparison import write_comparison
from polyfed.report.page import write_report
from polyfed.report.records import load_run
from polyfed.report.tables import comparison_table

Make = Callable[..., Path]
HOSTILE = '</script><script>alert("x")</script><img src=x onerror=alert(1)>'


class Page(HTMLParser):
    """What a browser would see: text, elements, addresses and the figures."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.scripts: list[str] = []
        self._open = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        self._open = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            self.scripts[-1] += data
        elif self._open != "style":
            self.text += data

    @property
    def figures(self) -> list[dict[str, Any]]:
        """Plotly figures, the scripts that are JSON."""
        return [json.loads(script) for script in self.scripts if script.startswith("{")]

    @property
    def words(self) -> str:
        """Text with its white space evened out."""
        return " ".join(self.text.split())


def test_a_report_tells_everything(tmp_path: Path, make_run: Make) -> None:
    folder = make_run(tmp_path / "run", tasks=("digit", "parity"), baseline=True, refused=2, rounds=8)
    path = write_report(folder)
    assert path == folder / "report.html"
    page = Page(path)
    summary = json.loads((folder / "summary.json").read_text())
    assert f"{100 * summary['tasks']['digit']['accuracy']['mean']:.1f} %" in page.text
    assert "fedavg trained modular (width 32) on avdigits for 8 rounds with 6 clients" in page.words
    assert "2 hold image, 2 hold audio and 2 hold audio+image" in page.words
    assert "dirichlet (alpha 0.5)" in page.words
    assert re.search(r"\d of 6 clients gains? over local", page.words)
    assert page.text.count("NaN in weight") == 2
    assert "polyfed run experiment.yaml" in page.text
    assert "torch 2.13.0" in page.text
    assert summary["digest"] in page.text
    assert (folder / "experiment.yaml").read_text() in page.text
    # per task: accuracy, loss, the clients and their gains; training loss by group and part; participation; bytes twice
    assert len(page.figures) == 2 * 4 + 2 + 1 + 2
    assert not [entry for entry in folder.iterdir() if entry.name.startswith(".")]


def test_curves_hold_the_numbers(tmp_path: Path, make_run: Make) -> None:
    folder = make_run(tmp_path / "run", clients=1, rounds=2)
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    tested = [row for row in rows if row["kind"] == "evaluation" and row["split"] == "test"]
    (figure,) = [one for one in Page(write_report(folder)).figures if "accuracy" in str(one["layout"]["yaxis"])]
    (trace,) = [one for one in figure["data"] if one["name"] == "image, test"]
    assert trace["x"] == [0, 1, 2]
    assert trace["y"] == pytest.approx([100 * row["metrics"]["digit"]["accuracy"] for row in tested])


def test_the_page_asks_nothing_of_the_network(tmp_path: Path, make_run: Make) -> None:
    folder = make_run(tmp_path / "run", baseline=True)
    for path in (write_report(folder), write_comparison([folder], tmp_path / "comparison.html")):
        page = Page(path)
        assert page.addresses, "the page has links to its own sections"
        assert all(re.match(r"#|run/report\.html$", address) for address in page.addresses)
        assert not {"link", "iframe", "object", "img"} & set(page.elements)
        assert "default-src 'none'" in path.read_text(encoding="utf-8")
        assert sum("plotly.js v" in script for script in page.scripts) == 1


def test_hostile_names_stay_text(tmp_path: Path, make_run: Make) -> None:
    folder = make_run(tmp_path / "run", tasks=("digit",), baseline=True, refused=1)
    plain = Page(write_report(folder))
    quoted = json.dumps(HOSTILE)[1:-1]
    for name in ("summary.json", "records.jsonl"):
        text = (folder / name).read_text()
        for word in ("client 1", "digit", "image", "NaN in weight", "demo", "avdigits", "fusion", "fedavg"):
            text = re.sub(rf'(?<=["+. ]){word}(?=["+.\n])', lambda _: quoted, text)
        (folder / name).write_text(text)
    (folder / "experiment.yaml").write_text(f"name: '{HOSTILE}'\n")
    path = write_report(folder)
    page = Page(path)
    assert page.elements.count("script") == plain.elements.count("script")
    assert "img" not in page.elements
    assert HOSTILE in page.text  # the experiment, shown as it is
    assert "<img src=x" not in path.read_text(encoding="utf-8").replace("&lt;", "")
    assert len(page.figures) == len(plain.figures)
    shown = json.dumps(
        [[[t.get(k) for k in ("name", "text", "y")] for t in f["data"]] + [f["layout"]] for f in page.figures]
    )
    assert "&lt;script" in shown  # plotly reads some tags in names, ticks and texts, so they are escaped for it
    assert "<script" not in shown
    compared = Page(write_comparison([folder], tmp_path / "comparison.html"))
    assert "img" not in compared.elements


def test_a_run_without_evaluations(tmp_path: Path, make_run: Make) -> None:
    page = Page(write_report(make_run(tmp_path / "run", evaluate=False)))
    assert "No evaluation was recorded" in page.text
    assert "The summary holds no metric" in page.text
    assert "Nothing was refused" in page.text


def test_an_empty_run(tmp_path: Path, make_run: Make) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "records.jsonl").write_text("")
    (folder / "summary.json").write_text('{"experiment": "empty", "method": "fedavg", "seed": 0, "rounds": 0}')
    (folder / "experiment.yaml").write_text("{}\n")
    page = Page(write_report(folder))
    assert "a model on a data set for 0 rounds with 0 clients" in page.words
    assert page.figures == []


def test_a_run_of_one_round_and_one_client(tmp_path: Path, make_run: Make) -> None:
    page = Page(write_report(make_run(tmp_path / "run", rounds=1, clients=1, baseline=True)))
    assert "for 1 round with 1 client." in page.words
    assert "1 of 1 client gains over local" in page.words or "0 of 1 client gain over local" in page.words


def test_numbers_that_are_none_do_not_stop_the_page(tmp_path: Path, make_run: Make) -> None:
    folder = make_run(tmp_path / "run", baseline=True)
    for name in ("summary.json", "records.jsonl"):
        text = re.sub(r'"(accuracy|loss|mean|std)": [\d.e-]+', r'"\1": null', (folder / name).read_text())
        (folder / name).write_text(text)
    assert "n/a" in Page(write_report(folder)).text


def test_a_large_federation_is_summed_up(tmp_path: Path, make_run: Make) -> None:
    folder = make_run(tmp_path / "run", clients=300, rounds=3, refused=60, baseline=True)
    path = write_report(folder)
    page = Page(path)
    assert "too many for one cell each" in page.text
    assert "The 15 clients each that gain most and least over local, of 300." in page.words
    assert "The first 50 of 60 refused replies." in page.words
    assert sum(len(json.dumps(figure)) for figure in page.figures) < 200_000


def test_a_malformed_run_leaves_the_old_report(tmp_path: Path, make_run: Make) -> None:
    folder = make_run(tmp_path / "run")
    before = write_report(folder).read_bytes()
    (folder / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary\.json"):
        write_report(folder)
    assert (folder / "report.html").read_bytes() == before


def test_the_same_run_gives_the_same_page(tmp_path: Path, make_run: Make) -> None:
    folder = make_run(tmp_path / "run", baseline=True)
    assert write_report(folder).read_bytes() == write_report(folder).read_bytes()


# ------------------------------------------------------------------------------------------------ comparisons


@pytest.fixture
def folders(tmp_path: Path, make_run: Make) -> list[Path]:
    return [
        make_run(tmp_path / "runs" / f"{method} {seed}", method=method, seed=seed)
        for method in ("local", "fedavg", "fedprox")
        for seed in (0, 1)
    ]


def test_a_comparison_tells_everything(tmp_path: Path, folders: list[Path]) -> None:
    write_report(folders[2])
    path = write_comparison(folders, tmp_path / "pages" / "comparison.html")
    page = Page(path)
    assert "6 runs on avdigits: local, fedavg and fedprox; 2 seeds." in page.words
    assert "b" in page.elements  # the best stand in bold
    assert [one for one in page.addresses if not one.startswith("#")] == ["../runs/fedavg%200/report.html"]
    assert (path.parent / "../runs/fedavg 0/report.html").is_file()
    # curves of all clients and three groups, bytes, gains
    assert len(page.figures) == 4 + 1 + 1 + 1
    gains = page.figures[-1]
    assert [title["text"] for title in gains["layout"]["annotations"]] == ["<b>fedavg</b>", "<b>fedprox</b>"]
    finals = [json.loads((folder / "summary.json").read_text())["clients"] for folder in folders]
    pairs = [(finals[2], finals[0]), (finals[3], finals[1])]
    by_hand = [
        100 * (one[0]["metrics"]["digit"]["accuracy"] - alone[0]["metrics"]["digit"]["accuracy"])
        for one, alone in pairs
    ]
    (drawn,) = [
        value
        for value, text in zip(gains["data"][0]["y"], gains["data"][0]["text"], strict=True)
        if text.startswith("client 0 (image): ")
    ]
    assert drawn == pytest.approx(sum(by_hand) / 2, abs=1e-3)
    held = json.loads(comparison_table([load_run(folder) for folder in folders]).to_json())["gains"]
    assert [(one["method"], one["task"], one["metric"]) for one in held] == [
        ("fedavg", "digit", "accuracy"),
        ("fedprox", "digit", "accuracy"),
    ]
    assert held[0]["clients"][0]["mean"] == pytest.approx(sum(by_hand) / 200)
    assert held[0]["clients"][0]["seeds"] == 2


def test_bands_are_drawn_for_several_seeds_only(tmp_path: Path, folders: list[Path]) -> None:
    several = Page(write_comparison(folders[2:], tmp_path / "several.html")).figures[0]
    single = Page(write_comparison(folders[2::2], tmp_path / "single.html"))
    assert sum(trace.get("fill") == "toself" for trace in several["data"]) == 2
    assert not [trace for trace in single.figures[0]["data"] if trace.get("fill")]
    assert "Every method ran with one seed" in single.text


def test_runs_that_differ_in_more_than_the_method_are_named(tmp_path: Path, make_run: Make) -> None:
    runs = [make_run(tmp_path / "a", rounds=2), make_run(tmp_path / "b", method="fedprox", rounds=3)]
    page = Page(write_comparison(runs, tmp_path / "comparison.html"))
    assert "Besides the method, the runs differ in rounds: 2, 3." in page.words


def test_an_unwritable_place_is_named(tmp_path: Path, folders: list[Path]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_comparison(folders, tmp_path / "file" / "comparison.html")


def test_nothing_to_compare_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run to compare"):
        write_comparison([], tmp_path / "comparison.html")
