"""The report of a run with blending shows what its records say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import correlation, mean, median
from typing import Any

import pytest
from tests.worlds import tiny

from polyfed.engine.loop import Outcome
from polyfed.experiment.running import run
from polyfed.report.blending_figures import clients_card, heads_card
from polyfed.report.figures import global_card
from polyfed.report.records import RunData, load_run
from polyfed.report.update_figures import divergence_card


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("blending") / "run"
    run(tiny(method__name="fedhgb", engine__server_test=True, engine__diagnostics=True), place)
    return place


@pytest.fixture(scope="module")
def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def data(folder: Path) -> RunData:
    return load_run(folder)


def traces(card: Any, number: int = 0) -> dict[str, tuple[list[Any], list[float]]]:
    found = json.loads(str(card.plots[number].spec))["data"]
    return {trace.get("name", ""): (list(trace["x"]), list(trace["y"])) for trace in found}


def noted(lines: list[dict[str, Any]], name: str, number: int) -> list[float]:
    return [
        line["notes"][name]
        for line in lines
        if line["kind"] == "client" and line["round"] == number and name in line["notes"]
    ]


def test_weights_of_heads_are_means_and_ratios_medians(data: RunData, lines: list[dict[str, Any]]) -> None:
    card = heads_card(data)
    assert card is not None
    weights, ratios = traces(card, 0), traces(card, 1)
    assert set(weights) == {"audio", "image", "fused"}
    for head, (rounds, values) in weights.items():
        assert rounds == [1, 2, 3]
        assert values == pytest.approx([mean(noted(lines, f"blend.{head}", n)) for n in rounds], abs=1e-6)
    for head, (rounds, values) in ratios.items():
        assert values == pytest.approx([median(noted(lines, f"ogr.{head}", n)) for n in rounds], abs=1e-6)


def test_weights_of_clients_stand_against_their_errors(data: RunData, lines: list[dict[str, Any]]) -> None:
    card = clients_card(data)
    assert card is not None
    weights = {
        (line["round"], int(client)): held["weight"]
        for line in lines
        if line["kind"] == "note"
        for client, held in line["clients"].items()
    }
    gaps = {(line["round"], line["client"]): line["notes"]["gap.fused"] for line in lines if line["kind"] == "client"}
    ((errors, shown),) = traces(card).values()
    assert sorted(zip(errors, shown, strict=True)) == sorted(
        (round(gaps[place], 6), round(weight, 6)) for place, weight in weights.items()
    )
    within = []
    for number in (1, 2, 3):
        places = [place for place in sorted(weights) if place[0] == number]
        within.append(correlation([weights[place] for place in places], [gaps[place] for place in places]))
    assert f"Correlation within a round: {mean(within):+.2f}, mean over the rounds." in card.text
    for number in (1, 2, 3):
        assert sum(weight for (held, _), weight in weights.items() if held == number) == pytest.approx(1)


def test_divergence_and_global_model_are_drawn(data: RunData, lines: list[dict[str, Any]]) -> None:
    card = divergence_card(data)
    assert card is not None
    for component, (rounds, values) in traces(card).items():
        each = [
            [line["divergence"][component] for line in held if component in line["divergence"]]
            for held in ([one for one in lines if one["kind"] == "client" and one["round"] == n] for n in rounds)
        ]
        assert values == pytest.approx([mean(found) for found in each], abs=1e-6)
    served = global_card(data)
    assert served is not None and len(served.plots) == 4  # accuracy and loss of two tasks
    accuracies = [100 * line["metrics"]["digit"]["accuracy"] for line in lines if line["kind"] == "server_evaluation"]
    ((rounds, values),) = traces(served, 0).values()
    assert (rounds, values) == ([0, 1, 2, 3], pytest.approx(accuracies, abs=1e-6))


def test_the_page_has_the_chapter(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    for title in ("Blending", "Heads", "Clients’ weights", "Divergence", "Global model"):
        assert title in text or title.replace("’", "&#39;") in text, title


def test_runs_without_blending_have_none_of_it(tmp_path: Path) -> None:
    run(tiny(rounds=1), tmp_path / "run")
    data = load_run(tmp_path / "run")
    assert [card(data) for card in (heads_card, clients_card, divergence_card, global_card)] == [None] * 4
    assert "Blending" not in (tmp_path / "run" / "report.html").read_text()


def test_divergence_is_the_distance_from_what_was_sent(lines: list[dict[str, Any]]) -> None:
    found: dict[str, float] = next(line for line in lines if line["kind"] == "client")["divergence"]
    assert all(math.isfinite(value) and value > 0 for value in found.values())


def test_diagnostics_change_no_bit() -> None:
    def outcome(**changes: Any) -> Outcome:
        done = run(tiny(rounds=2, **changes))
        assert done.outcome is not None
        return done.outcome

    plain, watched = outcome(), outcome(engine__diagnostics=True, engine__server_test=True)
    assert (plain.digest, plain.personal_digest) == (watched.digest, watched.personal_digest)
