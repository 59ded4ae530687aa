"""Comparisons: reading methods and seeds, planning, skipping what is done, and going on after failures."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyfed import Experiment, UserError, compare, load, run
from polyfed.errors import RunError
from polyfed.experiment.comparing import Comparison, plan, read_method, read_methods, read_seeds
from polyfed.experiment.config import parse

TINY: dict[str, Any] = {
    "name": "tiny",
    "rounds": 2,
    "baseline": "local",
    "data": {"name": "avdigits", "tasks": ["parity"]},
    "scenario": {"clients": 3, "partition": {"name": "iid"}},
    "model": {"name": "modular", "width": 4},
    "method": {"name": "fedavg"},
}


def tiny(**changes: Any) -> Experiment:
    return parse({**TINY, **changes})


# ------------------------------------------------------------------------------------------ methods and seeds


def test_methods_are_cut_outside_brackets() -> None:
    assert read_methods("local, fedprox[mu=0.1],a[b=[1,2],c={d: 1}],") == [
        "local",
        "fedprox[mu=0.1]",
        "a[b=[1,2],c={d: 1}]",
    ]


def test_options_become_settings_of_the_method() -> None:
    contender = read_method("fedadam[server_lr=0.1, beta1=0]")
    assert contender.changes == {"method.name": "fedadam", "method.server_lr": 0.1, "method.beta1": 0}
    assert contender.label == "fedadam[server_lr=0.1,beta1=0]"
    assert contender.folder == "fedadam-server_lr=0.1-beta1=0"


@pytest.mark.parametrize("text", ["fedprox[mu=0.1", "fedprox]mu[", "[mu=1]", "fedprox[mu]", "a[b=1]c", ""])
def test_a_malformed_method_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="method"):
        read_method(text)


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        contenders = [read_method(part) for part in read_methods(text)]
    except UserError:
        return
    assert all("/" not in contender.folder and contender.folder != ".." for contender in contenders)


@pytest.mark.parametrize(("text", "seeds"), [("0", [0]), ("0,1, 5", [0, 1, 5]), ("0-2,7", [0, 1, 2, 7])])
def test_seeds(text: str, seeds: list[int]) -> None:
    assert read_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "-1", "1-", "3-1", "0-99999999", "1.5"])
def test_malformed_seeds_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--seeds"):
        read_seeds(text)


# --------------------------------------------------------------------------------------------------- planning


def test_every_method_gets_every_seed_and_no_baseline(tmp_path: Path) -> None:
    experiment = tiny(select={"name": "random", "clients": 2})
    planned = plan(experiment, ["local", "fedprox[mu=1]"], [3, 4], tmp_path)
    assert [(one.contender.label, one.seed) for one in planned] == [
        ("local", 3),
        ("fedprox[mu=1]", 3),
        ("local", 4),
        ("fedprox[mu=1]", 4),
    ]
    assert planned[1].folder == tmp_path / "fedprox-mu=1" / "seed-3"
    assert planned[1].experiment.method.options["mu"] == 1
    assert all(one.experiment.baseline is None and one.experiment.seed == one.seed for one in planned)
    assert [one.experiment.select.name for one in planned[:2]] == ["all", "random"]


@pytest.mark.parametrize("methods", [["fedavg", "fedavg"], ["fedprox", "fedprox[mu=0.01]"]])
def test_the_same_method_twice_is_refused(methods: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="are the same"):
        plan(tiny(), methods, [0], tmp_path)


@pytest.mark.parametrize(
    ("methods", "seeds", "message"),
    [
        ([], [0], "at least one method"),
        (["local"], [], "at least one method"),
        (["local"], [1, 1], "only once"),
        (["fedpox"], [0], "did you mean 'fedprox'"),
        (["fedprox[nu=1]"], [0], "unknown key 'nu'"),
        (["fedprox[mu=-1]"], [0], "method.mu: -1"),
    ],
)
def test_bad_plans(methods: list[str], seeds: list[int], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        plan(tiny(), methods, seeds, tmp_path)


# ---------------------------------------------------------------------------------------------------- running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("comparison")


@pytest.fixture(scope="module")
def comparison(folder: Path) -> Comparison:
    return compare(tiny(), ["local", "fedprox[mu=0.1]"], [0, 1], out=folder)


def test_results_are_those_of_single_runs(comparison: Comparison) -> None:
    alone = run(tiny(seed=1, method={"name": "fedprox", "mu": 0.1}, baseline=None))
    found = {(one.contender.label, one.seed): done for one, done in comparison.runs.items()}
    assert len(found) == 4
    assert found["fedprox[mu=0.1]", 1].summary["digest"] == alone.summary["digest"]
    assert found["fedprox[mu=0.1]", 1].summary["baseline"] is None


def test_the_table_has_means_over_seeds(comparison: Comparison) -> None:
    assert comparison.table is not None
    row = comparison.table.rows[1]
    values = [
        done.summary["tasks"]["parity"]["accuracy"]["mean"]
        for one, done in comparison.runs.items()
        if one.contender.label == "fedprox[mu=0.1]"
    ]
    spread = next(spread for column, spread in row.cells.items() if column.group is None)
    assert spread.seeds == 2
    assert spread.mean == pytest.approx(sum(values) / 2)


def test_rows_name_the_methods_with_their_options(comparison: Comparison) -> None:
    rows = comparison.rows()
    assert {row["method"] for row in rows} == {"local", "fedprox[mu=0.1]"}
    assert len({(row["method"], row["seed"], row["client"], row["metric"]) for row in rows}) == len(rows)


@pytest.mark.usefixtures("comparison")
def test_files_are_written(folder: Path) -> None:
    assert len(json.loads((folder / "comparison.json").read_bytes())["rows"]) == 2
    assert (folder / "comparison.csv").read_text().startswith("method,")
    assert (folder / "comparison.md").read_text().startswith("| method |")
    assert "</html>" in (folder / "comparison.html").read_text()


def test_what_is_done_is_not_repeated_and_what_is_broken_goes_on(comparison: Comparison, folder: Path) -> None:
    before = {one.folder: done.summary["digest"] for one, done in comparison.runs.items()}
    broken = folder / "local" / "seed-0"
    (broken / "summary.json").unlink()
    seen: list[Mapping[str, Any]] = []
    again = compare(tiny(), ["local", "fedprox[mu=0.1]"], [0, 1], out=folder, observers=[seen.append])
    assert {one.folder: done.summary["digest"] for one, done in again.runs.items()} == before
    assert not [record for record in seen if record["kind"] == "round"]  # the last checkpoint was after the last round
    assert [record["state"] for record in seen] == ["started", "finished"] * 4


@pytest.mark.usefixtures("comparison")
def test_a_changed_experiment_is_refused_before_anything_is_trained(folder: Path) -> None:
    with pytest.raises(UserError, match="holds another experiment: train"):
        compare(tiny(train={"lr": 0.5}), ["fedavg", "local"], [0], out=folder)
    assert not (folder / "fedavg").exists()


def test_a_mistake_is_found_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root"):
        compare(tiny(data={"name": "mnist", "root": str(tmp_path / "no")}), ["local"], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failed_run_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(experiment: Experiment, *rest: Any, **named: Any) -> Any:
        if experiment.method.name == "fedavg":
            raise RunError("the quorum is lost")
        return run(experiment, *rest, **named)

    monkeypatch.setattr(sys.modules["polyfed.experiment.comparing"], "run", failing)
    seen: list[Mapping[str, Any]] = []
    found = compare(tiny(rounds=1), ["fedavg", "local"], out=tmp_path, observers=[seen.append])
    assert [one.contender.label for one in found.runs] == ["local"]
    assert [(one.planned.contender.label, str(one.error)) for one in found.failures] == [
        ("fedavg", "the quorum is lost")
    ]
    assert {"kind": "run", "state": "failed", "method": "fedavg", "seed": 0} in seen
    assert found.table is not None
    assert len(found.table.rows) == 1


def test_nothing_but_failures_makes_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*rest: Any, **named: Any) -> Any:
        raise RunError("no")

    monkeypatch.setattr(sys.modules["polyfed.experiment.comparing"], "run", failing)
    found = compare(tiny(), ["local"], out=tmp_path)
    assert found.table is None
    assert found.rows() == []
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_an_experiment_will_do(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny(rounds=1).yaml())
    found = compare(path, ["local"], out=tmp_path / "out")
    assert [done.summary["rounds"] for done in found.runs.values()] == [1]
    assert load(path).name == "tiny"
