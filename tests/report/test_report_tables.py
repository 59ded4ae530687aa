from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from polyfed.errors import UserError
from polyfed.report.entries import group_name
from polyfed.report.records import RunData, load_run
from polyfed.report.tables import Column, comparison_table, spread_of
from polyfed.report.variants import shared_differences, variants

Make = Callable[..., Path]
Build = Callable[..., RunData]


@pytest.fixture
def run_with(tmp_path: Path, make_run: Make) -> Build:
    """Return a builder of runs with given final metrics."""

    def build(method: str, seed: int, tasks: dict[str, dict[str, object]], **options: object) -> RunData:
        folder = make_run(
            tmp_path / f"{method}-{seed}-{len(list(tmp_path.iterdir()))}", method=method, seed=seed, **options
        )
        summary = json.loads((folder / "summary.json").read_text())
        summary |= {"tasks": tasks, "bytes": {"up": 1000, "down": 500_000 + 2000 * seed}, "wall_seconds": 60.0 + seed}
        (folder / "summary.json").write_text(json.dumps(summary))
        return load_run(folder)

    return build


def accuracy(mean: float, audio: float, image: float) -> dict[str, dict[str, object]]:
    return {"digit": {"accuracy": {"mean": mean, "std": 0.1, "by_modalities": {"audio": audio, "image": image}}}}


@pytest.fixture
def runs(run_with: Build) -> list[RunData]:
    return [
        run_with("fedavg", 0, accuracy(0.80, 0.70, 0.90)),
        run_with("fedavg", 1, accuracy(0.84, 0.74, 0.94)),
        run_with("fedprox", 0, accuracy(0.83, 0.80, 0.86)),
    ]


def test_golden_markdown(runs: list[RunData]) -> None:
    # fedavg over seeds: 80 and 84 -> 82 ± sqrt((2² + 2²) / 1) = 82 ± 2.8; one seed prints no ±
    assert comparison_table(runs).to_markdown() == (
        "| method | seeds | rounds | digit accuracy (%), all clients | digit accuracy (%), audio "
        "| digit accuracy (%), image | bytes | time |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| fedavg | 2 | 5 | 82.0 ± 2.8 | 72.0 ± 2.8 | **92.0 ± 2.8** | 502 kB | 1 min 00 s |\n"
        "| fedprox | 1 | 5 | **83.0** | **80.0** | 86.0 | 501 kB | 1 min 00 s |\n"
    )


def test_golden_csv(runs: list[RunData]) -> None:
    lines = list(csv.DictReader(io.StringIO(comparison_table(runs).to_csv())))
    assert len(lines) == 6
    first = lines[0]
    assert (first["method"], first["seeds"], first["task"], first["metric"]) == ("fedavg", "2", "digit", "accuracy")
    assert (first["modalities"], first["best"], first["rounds"]) == ("", "0", "5")
    assert float(first["mean"]) == pytest.approx(0.82)
    assert float(first["std"]) == pytest.approx(0.0282842712)
    assert float(first["bytes_mean"]) == 502_000
    assert (lines[3]["method"], lines[3]["std"], lines[3]["best"]) == ("fedprox", "", "1")


def test_golden_json(runs: list[RunData]) -> None:
    rows = json.loads(comparison_table(runs).to_json())["rows"]
    assert [row["method"] for row in rows] == ["fedavg", "fedprox"]
    assert rows[0]["seeds"] == [0, 1]
    assert rows[0]["rounds"] == [5, 5]
    assert rows[1]["cells"][1] == {
        "task": "digit",
        "metric": "accuracy",
        "group": "audio",
        "mean": 0.8,
        "std": None,
        "seeds": 1,
        "best": True,
    }


@pytest.mark.parametrize("metric", ["loss", "mse", "mae"])
def test_less_is_better_for_errors(run_with: Build, metric: str) -> None:
    table = comparison_table(
        [run_with(method, 0, {"t": {metric: {"mean": mean}}}) for method, mean in (("fedavg", 0.5), ("fedprox", 0.4))]
    )
    assert [Column("t", metric) in row.wins for row in table.rows] == [False, True]


@pytest.mark.parametrize(
    ("metric", "cells"), [("psnr", ["20.00", "**21.50**"]), ("ssim", ["20.000", "**21.500**"])], ids=["psnr", "ssim"]
)
def test_more_is_better_for_quality(run_with: Build, metric: str, cells: list[str]) -> None:
    found = [("fedavg", 20.0), ("fedprox", 21.5)]
    table = comparison_table([run_with(method, 0, {"t": {metric: {"mean": mean}}}) for method, mean in found])
    assert [line[3] for line in table.lines(bold=lambda text: f"**{text}**")] == cells
    assert ("(dB)" in table.headings[3]) == (metric == "psnr")


def test_ties_are_won_by_all_and_a_lone_method_wins_nothing(run_with: Build) -> None:
    one, two = (run_with(method, 0, accuracy(0.9, 0.9, 0.9)) for method in ("fedavg", "fedprox"))
    assert [len(row.wins) for row in comparison_table([one, two]).rows] == [3, 3]
    assert [len(row.wins) for row in comparison_table([one]).rows] == [0]


def test_what_is_not_a_number_wins_nothing_and_is_null(run_with: Build) -> None:
    broken = run_with("fedprox", 0, {"digit": {"accuracy": {"mean": None}}})
    table = comparison_table([run_with("fedavg", 0, accuracy(0.8, 0.7, 0.9)), broken])
    assert not table.rows[1].wins
    assert json.loads(table.to_json())["rows"][1]["cells"][0]["mean"] is None
    assert "n/a" in table.to_markdown()


def test_all_metrics_or_the_one_that_judges(run_with: Build) -> None:
    tasks = {"a": {"loss": {"mean": 1.0}, "accuracy": {"mean": 0.5}}, "b": {"mae": {"mean": 1.0}, "mse": {"mean": 2.0}}}
    run = run_with("fedavg", 0, tasks)
    assert [column[:2] for column in comparison_table([run]).columns] == [("a", "accuracy"), ("b", "mse")]
    assert len(comparison_table([run], metrics="all").columns) == 4


def test_a_missing_group_leaves_its_cell_empty(run_with: Build) -> None:
    part = {"digit": {"accuracy": {"mean": 0.5, "by_modalities": {"audio": 0.5}}}}
    table = comparison_table([run_with("fedavg", 0, accuracy(0.8, 0.7, 0.9)), run_with("fedprox", 0, part)])
    assert table.lines()[1][5] == ""


def test_spread_over_seeds_uses_n_minus_one() -> None:
    assert spread_of([1.0, 3.0]).std == pytest.approx(2**0.5)
    assert spread_of([1.0]).std is None


def test_settings_tell_variants_of_a_method_apart(run_with: Build) -> None:
    runs = [run_with("fedprox", 0, {}, options={"mu": mu}) for mu in (0.01, 0.1)]
    assert [row.method for row in comparison_table(runs).rows] == ["fedprox[mu=0.01]", "fedprox[mu=0.1]"]


def test_options_that_are_not_the_defaults_stay_in_the_label(run_with: Build) -> None:
    options = {"mu": 0.1, "missing": "renormalise"}
    found = variants([run_with("fedprox", 0, {}, options=options), run_with("fedavg", 0, {})])
    assert [one.label for one in found] == ["fedprox[mu=0.1]", "fedavg"]


def test_labels_name_what_was_chosen_of_a_selection(run_with: Build) -> None:
    choices: list[dict[str, object]] = [
        {"name": "random", "clients": 5},
        {"name": "pow-d", "clients": 5, "candidates": None, "estimate": "whole"},
        {"name": "pow-d", "clients": 5, "candidates": None, "estimate": "batch"},
    ]

    def labels(chosen: list[dict[str, object]]) -> list[str]:
        runs = [run_with("fedavg", 0, {}) for _ in chosen]
        made = [
            replace(run, experiment={**run.experiment, "select": held}) for run, held in zip(runs, chosen, strict=True)
        ]
        return [one.label for one in variants(made)]

    first, second, third = labels(choices)
    assert (first, second) == ("fedavg[select.name=random]", "fedavg[select.name=pow-d]")
    assert third == "fedavg[select.name=pow-d,select.estimate=batch]"
    same = labels(choices[1:])  # of one selection, what differs is told even at its default
    assert same == ["fedavg[select.estimate=whole]", "fedavg[select.estimate=batch]"]


def test_whole_numbers_are_one_setting_however_they_are_written(run_with: Build) -> None:
    runs = [run_with("fedprox", seed, {}, options={"mu": mu}) for seed, mu in enumerate((1, 1.0))]
    assert [(one.label, len(one.runs)) for one in variants(runs)] == [("fedprox[mu=1]", 2)]


def test_a_method_polyfed_does_not_know_keeps_its_name(make_run: Make, run_with: Build) -> None:
    run = run_with("fedavg", 0, {}, options={"depth": 3})
    own = replace(run, summary=run.summary.model_copy(update={"method": "own"}))
    assert [one.label for one in variants([own])] == ["own"]


def test_runs_of_different_length_are_told_in_every_text(run_with: Build) -> None:
    held = [("fedavg", 0, 4), ("fedavg", 1, 30), ("fedprox", 0, 30)]  # one seed stopped early
    runs = [run_with(name, seed, accuracy(0.8, 0.7, 0.9)) for name, seed, _ in held]
    ended = [run.summary.model_copy(update={"rounds": rounds}) for run, (_, _, rounds) in zip(runs, held, strict=True)]
    table = comparison_table([replace(run, summary=end) for run, end in zip(runs, ended, strict=True)])
    assert [line[2] for line in table.lines()] == ["4–30", "30"]
    assert table.caution.startswith("The runs differ in length (4–30 rounds)")
    assert table.to_markdown().endswith(f"|\n\n{table.caution}\n")
    assert [row["rounds"] for row in json.loads(table.to_json())["rows"]] == [[4, 30], [30]]
    assert next(csv.DictReader(io.StringIO(table.to_csv())))["rounds"] == "4–30"


def test_long_groups_are_named_whole(run_with: Build) -> None:
    groups = [f"body_acceleration+gravity+gyroscope+microphone+{last}" for last in ("left", "right")]
    tasks = {"step": {"accuracy": {"mean": 0.5, "by_modalities": dict.fromkeys(groups, 0.5)}}}
    headings = comparison_table([run_with("fedavg", 0, tasks)]).headings
    assert all(any(heading.endswith(group_name(group.split("+"))) for heading in headings) for group in groups)


def test_equal_settings_are_told_apart_by_name_or_refused(run_with: Build) -> None:
    runs = [run_with("fedavg", 0, {}, name=name) for name in ("first", "second")]
    assert [one.label for one in variants(runs)] == ["fedavg (first)", "fedavg (second)"]
    with pytest.raises(UserError, match="are both 'fedavg' with seed 0"):
        comparison_table([runs[0], run_with("fedavg", 0, {}, name="first")])


def test_differences_beside_the_method_are_named(run_with: Build) -> None:
    runs = [run_with("fedavg", 0, {}, rounds=3), run_with("fedprox", 0, {}, rounds=4, options={"mu": 0.1})]
    assert shared_differences(variants(runs)) == ["rounds: 3, 4"]


def test_no_runs_are_refused() -> None:
    with pytest.raises(UserError, match="no run to compare"):
        comparison_table([])


def test_markdown_guards_names(run_with: Build) -> None:
    tasks = {"a|b<i>": {"accuracy": {"mean": 0.5}}}
    assert "a\\|b&lt;i> accuracy" in comparison_table([run_with("fedavg", 0, tasks)]).to_markdown()
