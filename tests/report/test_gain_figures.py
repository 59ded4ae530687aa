"""Who gains and who loses against training alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polyfed.report.comparison import write_comparison
from polyfed.report.gain_figures import MANY_BARS, SIGNS, gain_card
from polyfed.report.gains import ClientGain, TaskGains, by_kind, gains_over_baseline
from polyfed.report.page import write_report
from polyfed.report.plotting import Card
from polyfed.report.records import load_run
from polyfed.report.tables import comparison_table

Make = Callable[..., Path]
COLOUR = dict(SIGNS.values())


def client(number: int, *values: float, group: str = "image", tasks: tuple[str, ...] = ("digit",)) -> ClientGain:
    return ClientGain(number, f"ward {number}", group, tasks, values)


def figure(card: Card | None, number: int = 0) -> dict[str, Any]:
    assert card is not None
    found: dict[str, Any] = json.loads(card.plots[number].spec)
    return found


@pytest.mark.parametrize(
    ("values", "sign"),
    [
        ((0.1,), 1),
        ((-0.1,), -1),
        ((0.0,), 0),
        ((0.1, 0.3), 1),  # mean 0.2, standard deviation 0.14
        ((-0.1, 0.3), 0),  # 0.1, 0.28
        ((-0.3, -0.1), -1),
        ((0.2, 0.2), 1),
    ],
)
def test_a_client_gains_or_loses_beyond_the_spread_over_seeds(values: tuple[float, ...], sign: int) -> None:
    assert client(0, *values).sign == sign


def test_clients_stand_by_kind_the_best_first() -> None:
    kinds = by_kind(
        [
            TaskGains(
                "a",
                "digit",
                "accuracy",
                (
                    client(0, 0.1),
                    client(1, 0.3, group="audio+image"),
                    client(2, 0.2),
                    client(3, 0.1, tasks=("digit", "parity")),
                ),
            ),
            TaskGains("b", "digit", "accuracy", (client(0, 0.5), client(2, 0.3))),
        ]
    )
    assert kinds == {("image", "digit"): [0, 2], ("image", "digit, parity"): [3], ("audio+image",): [1]}


def test_bars_of_two_methods_share_scale_and_places() -> None:
    one = TaskGains("fedavg", "digit", "accuracy", (client(0, 0.1), client(1, -0.2), client(2, 0.0, group="audio")))
    two = TaskGains("<b>evil", "digit", "accuracy", (client(0, 0.3), client(1, 0.05), client(2, 0.1, group="audio")))
    card = gain_card([one, two], "local training")
    drawn = figure(card)
    first, second = drawn["data"]
    assert first["x"] == second["x"] == [2, 3, 0]
    assert first["y"] == pytest.approx([10, -20, 0])
    assert first["marker"]["color"] == [COLOUR["gains"], COLOUR["loses"], COLOUR["within the spread over seeds"]]
    assert first["text"][1] == "ward 1 (image): \N{MINUS SIGN}20.0 points"
    assert drawn["layout"]["yaxis2"]["matches"] == "y"
    assert list(drawn["layout"]["xaxis"]["ticktext"]) == ["audio", "image"]
    assert drawn["layout"]["xaxis"]["tickvals"] == [0, 2.5]
    assert drawn["layout"]["annotations"][1]["text"] == "<b>&lt;b&gt;evil</b>"
    assert card is not None
    assert [chip.label for chip in card.legend] == ["gains", "loses"]  # one seed has no spread
    assert card.table is not None
    minus = "\N{MINUS SIGN}"
    assert card.table.head[3:6] == ("gains", "loses", "the same")
    assert card.table.rows[0] == (
        "fedavg",
        "digit",
        "ward 1",
        "1",
        "1",
        "1",
        "+0.0 points",
        f"{minus}20.0 points",
        "+10.0 points",
    )
    assert card.table.rows[1][2:6] == ("nobody", "3", "0", "0")
    assert card.table.rows[1][7] == "+0.0 points"


@pytest.mark.parametrize("methods", range(1, 6))
def test_only_the_middle_panel_has_a_title(methods: int) -> None:
    found = [TaskGains(f"method {number}", "digit", "accuracy", (client(0, 0.1),)) for number in range(methods)]
    layout = figure(gain_card(found, "local training"))["layout"]
    rows = ["yaxis", *(f"yaxis{number}" for number in range(2, methods + 1))]
    titles = [layout[row]["title"]["text"] for row in rows]
    assert titles[methods // 2] == "gain (accuracy, points)"
    assert sorted(titles)[:-1] == [""] * (methods - 1)


def test_several_seeds_have_whiskers() -> None:
    held = TaskGains("fedavg", "picture", "mse", (client(0, 0.1, 0.3), client(1, -0.1, 0.3)))
    card = gain_card([held], "local training")
    (trace,) = figure(card)["data"]
    assert trace["error_y"]["array"] == pytest.approx([0.141421, 0.282843], abs=1e-6)
    assert trace["error_y"]["visible"] is True
    assert trace["text"][0] == "ward 0 (image): +0.2 ± 0.141"
    assert card is not None
    assert len(card.legend) == 3
    assert card.table is not None
    assert card.table.rows[0][3:6] == ("1", "0", "1")


def test_of_very_many_clients_some_are_drawn_and_all_are_counted() -> None:
    many = tuple(client(number, (number - 500) / 1000) for number in range(1000))
    card = gain_card([TaskGains("fedavg", "digit", "accuracy", many)], "local training")
    (trace,) = figure(card)["data"]
    assert MANY_BARS / 2 < len(trace["x"]) <= MANY_BARS
    assert max(trace["y"]) == pytest.approx(49.9)
    assert card is not None
    assert card.table is not None
    assert card.table.rows[0][3:6] == ("499", "500", "1")


def test_a_run_is_held_against_its_baseline(make_run: Make, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", baseline=True)
    run = load_run(folder)
    (gains,) = gains_over_baseline(run, [("digit", "accuracy")])
    summary = json.loads((folder / "summary.json").read_text())
    pairs = zip(summary["clients"], summary["baseline"]["clients"], strict=True)
    expected = [one["metrics"]["digit"]["accuracy"] - two["metrics"]["digit"]["accuracy"] for one, two in pairs]
    assert [held.mean for held in gains.clients] == pytest.approx(expected)
    assert "Gain of each client over local training" in write_report(folder).read_text()
    alone = make_run(tmp_path / "alone")
    assert gains_over_baseline(load_run(alone), [("digit", "accuracy")]) == ()
    assert "Gain of each client" not in write_report(alone).read_text()


def test_errors_are_turned_round_and_without_local_there_are_none(make_run: Make, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / method, method=method) for method in ("local", "fedavg", "fedprox")]
    for folder, value in zip(runs, (0.5, 0.3, 0.6), strict=True):
        summary = json.loads((folder / "summary.json").read_text())
        for held in summary["clients"]:
            held["metrics"] = {"digit": {"mse": value}}
        summary["tasks"] = {"digit": {"mse": {"mean": value}}}
        (folder / "summary.json").write_text(json.dumps(summary))
    table = comparison_table([load_run(folder) for folder in runs])
    assert [one.method for one in table.gains] == ["fedavg", "fedprox"]
    assert [one.clients[0].mean for one in table.gains] == pytest.approx([0.2, -0.1])
    assert json.loads(table.to_json())["gains"][0]["clients"][0] == {
        "id": 0,
        "name": "client 0",
        "modalities": "image",
        "mean": pytest.approx(0.2),
        "std": None,
        "seeds": 1,
    }
    assert comparison_table([load_run(folder) for folder in runs[1:]]).gains == ()
    page = write_comparison(runs[1:], tmp_path / "comparison.html").read_text()
    assert "Gain of each client" not in page
