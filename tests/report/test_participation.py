"""The map of who took part is coloured by the modalities of each participation, with few clients and with many."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polyfed.report.figures import group_legend
from polyfed.report.page import write_report
from polyfed.report.palette import group_palette
from polyfed.report.participation import participation_card
from polyfed.report.participation_shares import BLOCKS, SPANS
from polyfed.report.plotting import Card
from polyfed.report.records import load_run

Make = Callable[..., Path]
Choose = Callable[[int, int], list[str]]
BOTH = ["audio", "image"]


def chosen(folder: Path, choose: Choose) -> Path:
    """Let every client hold both modalities, and use those that are chosen for it and the round."""
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "client":
            line["modalities"] = choose(line["client"], line["round"])
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = json.loads((folder / "summary.json").read_text())
    for client in summary["clients"]:
        client["modalities"] = BOTH
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def roles(client: int, number: int) -> list[str]:
    """Every third participation is with one modality."""
    return ["audio"] if (client + number) % 3 == 0 else BOTH


def drawn(folder: Path) -> tuple[Card, list[dict[str, Any]]]:
    data = load_run(folder)
    card = participation_card(data, group_palette(data))
    assert card is not None
    return card, json.loads(str(card.plots[0].spec))["data"]


def test_a_cell_shows_what_was_used_not_what_is_held(make_run: Make, tmp_path: Path) -> None:
    folder = chosen(make_run(tmp_path / "run", clients=5, rounds=4, fraction=1.0), roles)
    card, (heat,) = drawn(folder)
    names = heat["meta"]["cells"]
    used = {
        (client, number): names[cell]
        for client, row in enumerate(heat["z"])
        for number, cell in zip(heat["x"], row, strict=True)
        if cell is not None
    }
    assert used == {(client, number): "+".join(roles(client, number)) for client in range(5) for number in range(1, 5)}
    assert [chip.label for chip in card.legend] == ["audio", "audio+image"]


def test_many_clients_are_coloured_by_what_most_of_them_used(make_run: Make, tmp_path: Path) -> None:
    folder = chosen(make_run(tmp_path / "run", clients=200, rounds=6, fraction=0.1), roles)
    data = load_run(folder)
    palette = group_palette(data)
    card, heats = drawn(folder)
    assert [chip.label for chip in card.legend] == ["audio", "audio+image"]
    assert "most of them used" in card.text
    assert [heat["colorscale"][1][1] for heat in heats] == [rgb(palette.colours[chip.label]) for chip in card.legend]
    assert len({heat["zmax"] for heat in heats}) == 1
    size = -(-200 // BLOCKS)
    for heat, chip in zip(heats, card.legend, strict=True):
        for row, values in enumerate(heat["z"]):
            for number, value in zip(heat["x"], values, strict=True):
                block = range(row * size, min((row + 1) * size, 200))
                used = [group for client in block if (group := data.history.active.get(client, {}).get(number))]
                most = used.count(chip.label) > len(used) / 2
                assert most <= (value is not None)  # where there is a majority it is drawn
                assert value is None or value == pytest.approx(len(used) / len(block), abs=1e-3)
    for rows in zip(*(heat["z"] for heat in heats), strict=True):
        assert all(None in cells for cells in zip(*rows, strict=True))  # a cell has one colour
    write_report(folder)


def rgb(colour: str) -> str:
    return f"rgb({int(colour[1:3], 16)},{int(colour[3:5], 16)},{int(colour[5:7], 16)})"


def test_a_mixed_cell_tells_all_that_was_used(make_run: Make, tmp_path: Path) -> None:
    """All 200 clients take part, and in each block of three one with audio alone."""
    folder = chosen(make_run(tmp_path / "run", clients=200, rounds=1, fraction=1.0), roles)
    _, (audio, both) = drawn(folder)
    assert both["customdata"][0][0] == "audio+image: 0 to 2<br>audio+image 66.7%, audio 33.3%"
    assert both["z"][0] == [1.0]
    assert audio["z"][0] == [None]


def test_with_one_set_of_modalities_there_is_one_colour(make_run: Make, tmp_path: Path) -> None:
    folder = chosen(make_run(tmp_path / "run", clients=200, rounds=6, fraction=0.1), lambda client, number: BOTH)
    card, (heat,) = drawn(folder)
    assert card.legend == ()
    assert "colour" not in card.text
    assert heat["colorscale"] == [[0, "rgba(0,114,178,0.04)"], [1, "rgb(0,114,178)"]]
    assert 0 in [value for row in heat["z"] for value in row]  # a share of nothing is drawn, faintly
    assert heat["customdata"][0][0] == "audio+image: 0 to 2"


def test_many_rounds_are_put_together(make_run: Make, tmp_path: Path) -> None:
    _, heats = drawn(chosen(make_run(tmp_path / "run", clients=3, rounds=301, evaluate=False), roles))
    assert all(len(heat["x"]) <= SPANS for heat in heats)
    assert all(heat["x"][:2] == [1, 4] for heat in heats)


def test_sets_of_modalities_that_nobody_holds_have_no_legend_where_clients_are_judged(
    make_run: Make, tmp_path: Path
) -> None:
    data = load_run(chosen(make_run(tmp_path / "run", clients=5, rounds=4, fraction=1.0, evaluate=False), roles))
    palette = group_palette(data)
    assert set(palette.colours) == {"audio", "audio+image"} and palette.fleeting == {"audio"}
    assert [chip.label for chip in group_legend(palette)] == ["audio+image"]
    assert [chip.label for chip in group_legend(palette, fleeting=True)] == ["all clients", "audio", "audio+image"]


def test_who_was_asked_only_to_prepare_a_round_did_not_take_part(make_run: Make, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", clients=5, rounds=4, fraction=1.0)
    lines = (folder / "records.jsonl").read_text().splitlines()
    first = next(json.loads(line) for line in lines if '"kind": "client"' in line)
    aside = {**first, "round": 1, "step": "start", "aside": True, "client": 77}
    (folder / "records.jsonl").write_text("\n".join([*lines, json.dumps(aside)]) + "\n")
    before, after = load_run(make_run(tmp_path / "other", clients=5, rounds=4, fraction=1.0)), load_run(folder)
    assert after.history.active == before.history.active
    assert after.history.training == before.history.training
    assert sum(after.history.up.values()) == sum(before.history.up.values()) + sum(first["bytes"]["up"].values())
