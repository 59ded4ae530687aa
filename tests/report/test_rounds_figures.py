"""The rounds that methods take, on a page that compares them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polyfed.report.comparison_figures import method_colours
from polyfed.report.convergence import convergence_rounds
from polyfed.report.records import load_run
from polyfed.report.rounds_figures import curve_of, rounds_card
from polyfed.report.tables import comparison_table
from polyfed.report.variants import variants

Make = Callable[..., Path]


def card_of(*folders: Path) -> Any:
    runs = [load_run(folder) for folder in folders]
    found = variants(runs)
    return rounds_card(found, comparison_table(runs), method_colours(found)), runs


def test_rounds_are_means_over_seeds(make_run: Make, tmp_path: Path) -> None:
    folders = [
        make_run(tmp_path / f"{method}-{seed}", method=method, seed=seed)
        for method in ("fedavg", "fedprox")
        for seed in (0, 1)
    ]
    card, runs = card_of(*folders)
    column = comparison_table(runs).columns[0]
    expected = {
        run.summary.method: [
            convergence_rounds(curve_of(other, column)) for other in runs if other.summary.method == run.summary.method
        ]
        for run in runs
    }
    for task, method, rounds, _, _ in card.table.rows:
        numbers = expected[method]
        assert (task, float(rounds)) == ("digit", round(sum(filter(None, numbers)) / len(numbers), 1))
    bars = json.loads(str(card.plots[0].spec))["data"]
    assert [bar["y"] for bar in bars] == [["fedavg"], ["fedprox"]]


def test_the_global_model_comes_first(make_run: Make, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "served")
    with (folder / "records.jsonl").open("a") as file:
        for number, value in ((0, 0.1), (2, 0.5), (4, 0.9)):
            record = {"kind": "server_evaluation", "round": number, "metrics": {"digit": {"accuracy": value}}}
            file.write(json.dumps(record) + "\n")
    card, (run,) = card_of(folder)
    column = comparison_table([run]).columns[0]
    assert curve_of(run, column).rounds == (2, 4)
    assert "global model" in card.note


def test_runs_that_were_never_evaluated_have_no_rounds(make_run: Make, tmp_path: Path) -> None:
    card, _ = card_of(make_run(tmp_path / "silent", evaluate=False))
    assert card is None
