"""The card of label distances shows what the records say, with few clients and with many."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.worlds import tiny

from polyfed.experiment.running import run
from polyfed.report.page import write_report
from polyfed.report.plotting import Card
from polyfed.report.records import load_run
from polyfed.report.skew_figures import MANY_CLIENTS, MANY_TASKS, NAMED_CLIENTS, label_distance_card

MakeRun = Callable[..., Path]
Distances = dict[int, dict[str, dict[str, float | None]]]


def card_of(folder: Path, distances: Distances) -> Card | None:
    """Add lines about the clients' labels to a run's records and draw them."""
    lines = [{"kind": "skew", "client": client, "label_distance": held} for client, held in distances.items()]
    with (folder / "records.jsonl").open("a") as records:
        records.writelines(json.dumps(line) + "\n" for line in lines)
    return label_distance_card(load_run(folder))


def figure(card: Card | None, number: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    assert card is not None
    spec = json.loads(str(card.plots[number].spec))
    (trace,) = spec["data"]
    return trace, spec["layout"]


def test_every_client_and_modality_has_its_cell(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", clients=3)
    card = card_of(
        folder,
        {
            0: {"digit": {"image": 1.5}},
            1: {"digit": {"audio": 0.25}},
            2: {"digit": {"audio": 0.75, "image": 0.5}},
        },
    )
    trace, layout = figure(card)
    assert layout["xaxis"]["ticktext"] == ["client 1", "client 2", "client 0"]  # nearest first: 0.25, 0.625, 1.5
    assert layout["yaxis"]["ticktext"] == ["audio, mean 0.50", "image, mean 1.00"]
    assert trace["z"] == [[0.25, 0.75, None], [None, 0.5, 1.5]]
    assert trace["customdata"][1][2] == "client 0, image"
    assert (trace["zmin"], trace["zmax"]) == (0, 1.5)
    assert card is not None and card.title == "Label distances, digit" and not card.note


def test_it_says_what_a_run_recorded(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(tiny(rounds=1, engine__diagnostics=True), folder)
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    recorded = {line["client"]: line["label_distance"] for line in lines if line["kind"] == "skew"}
    card = label_distance_card(load_run(folder))
    assert card is not None and [plot.label for plot in card.plots] == ["digit", "parity"]
    for number, task in enumerate(("digit", "parity")):
        trace, layout = figure(card, number)
        names = layout["xaxis"]["ticktext"]
        modalities = [text.split(",")[0] for text in layout["yaxis"]["ticktext"]]
        shown = {
            (name, modality): value
            for modality, row in zip(modalities, trace["z"], strict=True)
            for name, value in zip(names, row, strict=True)
            if value is not None
        }
        assert shown == {
            (f"client {client}", modality): pytest.approx(value, abs=1e-4)
            for client, held in recorded.items()
            for modality, value in held.get(task, {}).items()
        }
    assert "Label distances" in (folder / "report.html").read_text()


@pytest.mark.parametrize("clients", [1, 2, NAMED_CLIENTS, NAMED_CLIENTS + 1, 200, MANY_CLIENTS, MANY_CLIENTS + 1, 1000])
def test_few_and_many_clients(clients: int, make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", clients=3, rounds=1)  # records of clients that the summary does not name
    card = card_of(folder, {client: {"digit": {"image": client / clients}} for client in range(clients)})
    trace, layout = figure(card)
    (row,) = trace["z"]
    assert row == sorted(row)
    assert len(row) <= MANY_CLIENTS and len(row) > min(clients, MANY_CLIENTS) // 2
    assert ("ticktext" in layout["xaxis"]) == (clients <= NAMED_CLIENTS)
    assert card is not None and bool(card.note) == (clients > MANY_CLIENTS)
    assert layout["height"] < 200


def test_values_that_are_no_numbers_are_left_out(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", clients=2)
    card = card_of(folder, {0: {"digit": {"image": math.nan, "audio": 0.5}}, 1: {"digit": {"image": None}}})
    trace, layout = figure(card)
    assert trace["z"] == [[0.5]]
    assert layout["xaxis"]["ticktext"] == ["client 0"]


def test_equal_labels_everywhere_have_a_scale_too(make_run: MakeRun, tmp_path: Path) -> None:
    trace, _ = figure(card_of(make_run(tmp_path / "run", clients=2), {0: {"digit": {"image": 0.0}}}))
    assert (trace["zmin"], trace["zmax"]) == (0, 1)


def test_only_the_first_of_many_tasks_are_drawn(make_run: MakeRun, tmp_path: Path) -> None:
    held: dict[str, dict[str, float | None]] = {f"task {number}": {"image": 0.5} for number in range(MANY_TASKS + 2)}
    card = card_of(make_run(tmp_path / "run", clients=1), {0: held})
    assert card is not None and len(card.plots) == MANY_TASKS
    assert "6 of 8 tasks" in card.note


@pytest.mark.parametrize("distances", [{}, {0: {}}, {0: {"digit": {}}}, {0: {"digit": {"image": None}}}])
def test_without_distances_there_is_no_card(distances: Distances, make_run: MakeRun, tmp_path: Path) -> None:
    assert card_of(make_run(tmp_path / "run"), distances) is None


def test_names_from_outside_are_escaped(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", clients=1)
    assert card_of(folder, {0: {"<img src=x>": {"<b>&": 0.5}}}) is not None
    page = write_report(folder).read_text()
    assert "<img src=x>" not in page and "<b>&" not in page
