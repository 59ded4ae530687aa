"""Pictures of single modalities: alone against all, their imbalance, and methods side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from tests.worlds import tiny

from polyfed.experiment.running import run
from polyfed.report.comparison import write_comparison
from polyfed.report.comparison_figures import method_colours
from polyfed.report.page import write_report
from polyfed.report.palette import COLOURS, group_palette
from polyfed.report.plotting import Card
from polyfed.report.records import load_run
from polyfed.report.unimodal_comparison import unimodal_card
from polyfed.report.unimodal_figures import FUSED, alone_card, imbalance_card
from polyfed.report.variants import variants

Make = Callable[..., Path]
AUDIO, IMAGE = (0.2, 0.4, 0.5), (0.8, 0.6, 0.5)


def add(folder: Path, lines: Iterable[dict[str, Any]]) -> Path:
    with (folder / "records.jsonl").open("a") as records:
        records.writelines(json.dumps(line) + "\n" for line in lines)
    return folder


def alone(number: int, accuracy: dict[str, tuple[float | None, float]]) -> dict[str, Any]:
    """A line about a round: by modality, the accuracies of nearest prototype and head."""
    held = {
        name: {"zeroed_head": head} | ({} if near is None else {"ncm_train": near, "ncm_test": 0.9})
        for name, (near, head) in accuracy.items()
    }
    return {"kind": "unimodal_evaluation", "round": number, "examples": {}, "accuracy": {"digit": held}}


def judged(folder: Path, *, fused: bool = True, shift: float = 0.0) -> Path:
    lines = [
        alone(number, {"audio": (one + shift, 0.1), "image": (other, 0.3)})
        for number, (one, other) in enumerate(zip(AUDIO, IMAGE, strict=True))
    ]
    lines += [
        {"kind": "server_evaluation", "round": number, "metrics": {"digit": {"accuracy": 0.5 + 0.1 * number}}}
        for number in range(3 if fused else 0)
    ]
    return add(folder, lines)


def traces(card: Card | None, number: int = 0) -> dict[str, dict[str, Any]]:
    assert card is not None
    return {trace["name"]: trace for trace in json.loads(str(card.plots[number].spec))["data"]}


def test_modalities_stand_against_all_of_them(make_run: Make, tmp_path: Path) -> None:
    data = load_run(judged(make_run(tmp_path / "run")))
    card = alone_card(data, group_palette(data))
    found = traces(card)
    assert sorted(found) == [
        FUSED,
        "audio, head",
        "audio, nearest prototype",
        "image, head",
        "image, nearest prototype",
    ]
    assert found["audio, nearest prototype"]["y"] == [20, 40, 50]
    assert found["image, head"]["y"] == [30, 30, 30]
    assert found[FUSED]["y"] == [50, 60, 70]
    assert found[FUSED]["meta"] == {"ink": True}
    assert [found[f"audio, {rule}"]["line"]["dash"] for rule in ("nearest prototype", "head")] == ["solid", "dash"]
    assert card is not None and not card.note
    assert [chip.group for chip in card.legend] == [FUSED, "audio", "image"]


def test_a_modality_has_the_colour_of_the_clients_that_hold_just_it(make_run: Make, tmp_path: Path) -> None:
    data = load_run(
        add(make_run(tmp_path / "run"), [alone(0, dict.fromkeys(("audio", "image", "motion"), (0.5, 0.5)))])
    )
    palette = group_palette(data)
    card = alone_card(data, palette)
    found = {name: trace["line"]["color"] for name, trace in traces(card).items() if "head" not in name}
    assert found["audio, nearest prototype"] == palette.colours["audio"]
    assert found["image, nearest prototype"] == palette.colours["image"]
    assert found["motion, nearest prototype"] in set(COLOURS) - set(palette.colours.values())


def test_without_the_servers_test_it_says_how_to_have_it(make_run: Make, tmp_path: Path) -> None:
    data = load_run(judged(make_run(tmp_path / "run"), fused=False))
    card = alone_card(data, group_palette(data))
    assert FUSED not in traces(card)
    assert card is not None and "engine.server_test" in card.note
    assert [chip.group for chip in card.legend] == ["audio", "image"]


def test_imbalance_is_the_best_over_the_weakest(make_run: Make, tmp_path: Path) -> None:
    card = imbalance_card(load_run(judged(make_run(tmp_path / "run"))))
    (trace,) = traces(card).values()
    assert trace["x"] == [0, 1, 2]
    assert trace["y"] == [4, 1.5, 1]


def test_a_ratio_that_is_no_number_is_left_out(make_run: Make, tmp_path: Path) -> None:
    lines = [
        alone(0, {"audio": (0.0, 0.1), "image": (0.5, 0.1)}),
        alone(1, {"audio": (None, 0.1), "image": (0.5, 0.1)}),
        alone(2, {"audio": (0.6, 0.1), "image": (0.3, 0.1)}),
    ]
    (trace,) = traces(imbalance_card(load_run(add(make_run(tmp_path / "run"), lines)))).values()
    assert (trace["x"], trace["y"]) == ([2], [2])
    single = add(make_run(tmp_path / "single"), [alone(0, {"audio": (0.6, 0.1)})])
    assert imbalance_card(load_run(single)) is None


@pytest.mark.parametrize("measured", [False, True])
def test_what_a_method_notes_is_drawn_dashed(measured: bool, make_run: Make, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    if measured:
        judged(folder)
    notes = [{"kind": "note", "round": number, "numbers": {"imbalance": 2.0 - number / 2}} for number in (1, 2)]
    found = traces(imbalance_card(load_run(add(folder, notes))))
    assert (found["noted"]["y"], found["noted"]["line"]["dash"]) == ([1.5, 1.0], "dash")
    assert sorted(found) == (["digit", "noted"] if measured else ["noted"])


def test_where_nothing_was_recorded_there_are_no_cards(make_run: Make, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    data = load_run(folder)
    assert alone_card(data, group_palette(data)) is None
    assert imbalance_card(data) is None
    assert 'id="modalities"' not in write_report(folder).read_text()


def test_a_real_run_has_them(tmp_path: Path) -> None:
    run(tiny(rounds=2, engine__unimodal=True, engine__server_test=True), tmp_path / "run")
    assert 'id="modalities"' in write_report(tmp_path / "run").read_text()
    data = load_run(tmp_path / "run")
    card = alone_card(data, group_palette(data))
    assert card is not None
    assert [plot.label for plot in card.plots] == ["digit", "parity"]
    assert all(trace["x"] == [0, 1, 2] for trace in traces(card).values())


def test_methods_side_by_side(make_run: Make, tmp_path: Path) -> None:
    folders = [
        judged(make_run(tmp_path / f"{method}{seed}", method=method, seed=seed), shift=0.1 * seed, fused=seed == 0)
        for method in ("fedavg", "fedprox")
        for seed in (0, 1)
    ]
    folders.append(make_run(tmp_path / "local", method="local"))
    found = variants([load_run(folder) for folder in folders])
    colours = method_colours(found)
    card = unimodal_card(found, colours)
    assert card is not None
    bars = json.loads(str(card.plots[0].spec))["data"]
    assert [(bar["legendgroup"], bar["x"]) for bar in bars] == [
        (method, [FUSED, "audio", "image"]) for method in ("fedavg", "fedprox")
    ]
    assert bars[0]["y"] == pytest.approx([70, 55, 50])
    assert bars[0]["error_y"]["array"] == pytest.approx([0, 100 * 0.1 / 2**0.5, 0])
    assert [chip.label for chip in card.legend] == ["fedavg", "fedprox"]
    assert card.table is not None
    assert card.table.rows[0] == ("digit", "fedavg", "audio", "55.0 ± 7.1", "10.0 ± 0.0")
    assert len(card.table.rows) == 4
    page = write_comparison(folders, tmp_path / "comparison.html").read_text()
    assert 'id="modalities"' in page


def test_runs_without_it_are_compared_without_it(make_run: Make, tmp_path: Path) -> None:
    found = variants([load_run(make_run(tmp_path / "run"))])
    assert unimodal_card(found, method_colours(found)) is None
