"""The benchmarks measure what they say: the bare loop does the engine's work, and results become tables and a page."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from benchmarks import __main__ as command
from benchmarks import blending, fold, measure, mixed, plot, profile, race, selection, tables
from benchmarks.bare import BareLoop
from benchmarks.engine import Execution, federation_of, run
from benchmarks.system import BARE, POLYFED, System
from benchmarks.turns import no_turns
from benchmarks.workloads import WORKLOADS, Data, Workload

from tests.language import SMALL

TINY = {"clients": 6, "cohort": 3}


def cohorts_of(records: list[Any]) -> list[list[int]]:
    return [record["cohort"] for record in records if record["kind"] == "round"]


def dealt(workload: Workload, data: Data) -> torch.Tensor:
    """Return the rows of every client as the engine deals them, client by client."""
    federation = federation_of(workload, data)
    return torch.cat([federation.client(client).train.rows for client in range(workload.clients)])


@pytest.mark.parametrize(("name", "batch_size"), [("W3", 20), ("W3", 6), ("W1", 16)])
def test_bare_loop_and_engine_reach_the_same_parameters(name: str, batch_size: int) -> None:
    """The engine shuffles, the bare loop does not: where a client has several batches, its samples are all alike."""
    workload = replace(WORKLOADS[name], **TINY, samples=20, batch_size=batch_size)
    data = workload.data()
    rows = dealt(workload, data)
    if batch_size < 20:
        first = rows[torch.arange(len(rows)) // 20 * 20]
        data.inputs[rows], data.labels[rows] = data.inputs[first], data.labels[first]
    turns, seconds = no_turns(2)
    records: list[Any] = []
    outcome = run(workload, data, 2, turns, Execution(), records.append)
    loop = BareLoop(workload, Data(data.inputs[rows], data.labels[rows], 20))
    start = loop.state
    cohorts = [record["cohort"] for record in records if record["kind"] == "round"]
    for cohort in cohorts:
        loop.round(cohort)
    assert len(seconds) == len(cohorts) == 2
    for ours, theirs, before in zip(outcome.state.parameters.values(), loop.state, start, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(theirs, before, rtol=1e-4, atol=1e-6)


def test_the_mixed_workload_has_six_groups_and_a_bare_loop_that_does_the_same() -> None:
    built = mixed.world(1, Execution(), cohort=12)
    groups = mixed.groups(built)
    assert len(groups) == 6
    assert sum(groups.values()) == mixed.CLIENTS
    assert max(card.examples for card in built.federation.cards.values()) <= built.experiment.train.batch_size
    records: list[Any] = []
    outcome = built.loop(observers=[records.append]).run()
    loop = mixed.BareGroups(built)
    start = dict(loop.state)
    (cohort,) = [record["cohort"] for record in records if record["kind"] == "round"]
    loop.round(cohort)
    moved = [name for name in start if not torch.equal(loop.state[name], start[name])]
    assert {name.split(".")[0] for name in moved} == {"encoder", "fusion", "head"}
    for name, theirs in loop.state.items():
        torch.testing.assert_close(outcome.state.parameters.get(name, theirs), theirs, rtol=1e-3, atol=1e-4)


def test_systems_take_turns_and_are_profiled_and_weighed() -> None:
    systems = [System("bare loop", BARE, "W3", TINY), System("default", POLYFED, "W3", TINY)]
    said: list[str] = []
    lanes = race.race(systems, turns=2, block=2, note=said.append)
    assert [(len(lane.first), len(lane.seconds)) for lane in lanes] == [(1, 2), (1, 2)]
    assert lanes[0].ratio(lanes[0]) == (1, 1, 1)
    assert len(said) == 2
    percent = race.profile(systems[1], rounds=20)
    assert set(percent) == set(profile.CATEGORIES)
    assert sum(percent.values()) == pytest.approx(100)
    assert percent["training"] > 0
    assert race.memory(systems[0]) > 20e6  # PyTorch alone is more


@pytest.mark.parametrize("rule", profile.RULES, ids=lambda rule: f"{rule[0]}:{rule[1]}")
def test_every_rule_of_the_profile_knows_a_module_that_exists(rule: tuple[str, str, str]) -> None:
    """So that a module which is renamed does not end up in the rest unseen."""
    module, function, found = rule
    assert find_spec(module.rstrip(".")) is not None
    assert profile.category(module, function) == found
    assert profile.category("torch.nn", function) is None


def test_a_system_that_fails_is_named() -> None:
    too_few = System("default", POLYFED, "W3", {"clients": 2, "cohort": 3})
    with pytest.raises(race.BenchmarkError, match="default on W3 ended with exit code 1"):
        race.race([too_few], turns=1)


def test_spread_is_median_and_quartiles() -> None:
    assert race.spread([5.0, 1.0, 3.0, 2.0, 4.0]) == (3, 2, 4)
    assert race.spread([7.0]) == (7, 7, 7)


def test_the_reduction_is_the_mean_of_the_replies() -> None:
    assert sum(prod(shape) for shape in fold.layout().values()) == 22_049_512
    shapes = fold.layout(width=8, layers=1)
    flats, replies = fold.replies(shapes)
    mean = torch.cat([value.flatten() for value in fold.reduced(replies, 8).values.values()])
    torch.testing.assert_close(mean, fold.summed(flats, 8) / 8)
    measured = fold.measure(1, shapes, count=3)
    assert measured["parameters"] == len(mean)
    assert measured["seconds"] > 0
    assert measured["floor"] > 0


# ------------------------------------------------------------------------------------------------ tables and page

SPREAD = [0.5, 0.4, 0.6]


def measured_row(label: str, **more: Any) -> dict[str, Any]:
    return {"label": label, "seconds": SPREAD, "ratio": SPREAD, "first": 1.0, "memory": 5e8, **more}


def measured() -> dict[str, Any]:
    """Return values as the measurements return them."""
    points = [{"x": x, "seconds": SPREAD, "ratio": SPREAD, "memory": 2e8} for x in (10, 100)]
    rows = [measured_row(label) for label in ("bare loop", "default", "one worker, one thread")]
    curves = {key: {"series": {"bare loop": points, "default": points}} for key in tables.SCALING_TITLES}
    return {
        "machine": measure.machine(2),
        "workloads": [
            {"name": name, "text": "", "rows": rows, "profile": dict.fromkeys(profile.CATEGORIES, 10.0)}
            for name in ("W1", "W3")
        ],
        "reduction": {"parameters": 10, "replies": 50, "seconds": 0.3, "floor": 0.2, "models": 1.5},
        "checkpoint": {"rows": [measured_row("no checkpoints"), measured_row("a checkpoint every round")]},
        "scaling": curves,
    }


def test_the_page_and_its_pictures_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "measured.json"
    source.write_text(json.dumps(measured()))
    command.main(["performance", "--from", str(source), "--docs", str(tmp_path)])
    printed = capsys.readouterr().out
    text = (tmp_path / "performance.md").read_text()
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(pictures) == 4
    for name in pictures:
        assert ElementTree.parse(tmp_path / name).getroot().tag.endswith("svg")
        assert Path(name).name in printed.replace("\n", "")
    for row in re.findall(r"^\|.*\|$", text, re.MULTILINE):
        assert re.search(r"None|nan", row) is None
    assert "| W1 | bare loop | 0.500 s (0.400–0.600) | 0.50 (0.40–0.60) |" in text
    assert "≤ 0.50, met" in text
    assert "≤ 0.25, not met" in text
    assert "W3" in printed


def test_a_plot_without_logarithms_starts_at_zero() -> None:
    drawn = plot.lines("A & B", "x", "y", {"one": [plot.Point(1, 2, 1, 3)]}, logarithmic=False)
    ElementTree.fromstring(drawn)
    assert "A &amp; B" in drawn
    assert ">0<" in drawn


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"])
    printed = capsys.readouterr().out
    assert "python -m benchmarks performance" in printed
    for name in (*command.WORKLOADS, *command.OTHERS):
        assert name in printed


@pytest.mark.parametrize("words", [["W9"], ["--repeats", "0"], ["W1", "--repeats", "some"]])
def test_a_wrong_argument_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(words)
    assert words[-1] in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("what", ["gpu", "tuning"])
def test_without_a_gpu_it_says_so(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    command.main([what])
    assert f"{what}: torch finds no GPU" in capsys.readouterr().out


@pytest.mark.skipif(find_spec("peft") is None, reason="language models need the extra polyfed[mllm]")
def test_what_is_measured_on_a_gpu_has_the_sizes_of_llava() -> None:
    import transformers
    from benchmarks import tuning

    from polyfed.model.llava_base import ADAPTED
    from polyfed.model.tiny_llava import llava_config, tiny_tokenizer

    config = llava_config(tuning.SCALES["cuda"].sizes, tiny_tokenizer())
    with torch.device("meta"):
        model = transformers.LlavaForConditionalGeneration(config)
    sizes = {
        name: sum(value.numel() for value in part.parameters())
        for name, part in (
            ("connector", model.model.multi_modal_projector),
            ("tower", model.model.vision_tower),
            ("whole", model),
        )
    }
    assert sizes == {"connector": 20_979_712, "tower": 303_507_456, "whole": 7_063_427_072}
    adapted = [layer for name, layer in model.named_modules() if re.fullmatch(ADAPTED, name)]
    assert sum(64 * (layer.in_features + layer.out_features) for layer in adapted) == 159_907_840


@pytest.mark.skipif(find_spec("peft") is None, reason="language models need the extra polyfed[mllm]")
def test_a_round_of_pilot_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import tuning

    small = replace(tuning.SCALES["cpu"], sizes=replace(SMALL, text_inner=48), rank=2, examples=4, batch_size=2)
    monkeypatch.setitem(tuning.SCALES, "cpu", small)
    command.main(["tuning", "--device", "cpu", "--json", str(tmp_path / "measured.json")])
    assert "gradient checkpointing" in capsys.readouterr().out
    for held in json.loads((tmp_path / "measured.json").read_text())["tuning"]:
        assert set(held["steps"]) == {"features", "across"}
        assert min(held["steps"].values()) > 0
        connector = 16 * 24 + 24 + 24 * 24 + 24
        layers = {(24, 24): 4, (24, 48): 2, (48, 24): 1}
        lora = 2 * sum(many * sum(shape) for shape, many in layers.items())
        assert held["up"] >= 2 * 2 * 4 * (connector + lora)  # two clients, two exchanges, four bytes a number
        assert held["down"] - held["up"] >= 2 * 2 * 4 * connector  # the adapters of two other tasks


@pytest.mark.parametrize("content", ["{", "[1, 2]", "{}", '{"machine": {}}'])
def test_a_file_that_was_not_measured_is_one_clear_error(content: str, tmp_path: Path) -> None:
    source = tmp_path / "measured.json"
    source.write_text(content)
    with pytest.raises(SystemExit, match=r"^benchmarks: .*measured\.json: not "):
        command.main(["--from", str(source)])


def test_the_cost_of_blending_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {"fedavg": 0.1, "fedhgb": 0.125, "ratio": 1.25}
    (tmp_path / "measured.json").write_text(json.dumps({**measured(), "blending": {"small": found}}))
    command.main(["--from", str(tmp_path / "measured.json")])
    assert re.search(r"small +0\.100 s +0\.125 s +1\.25", capsys.readouterr().out)


@pytest.mark.skipif("POLYFED_DATA" not in os.environ, reason="POLYFED_DATA names no folder of downloaded sets")
def test_the_cost_of_blending_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blending, "ROUNDS", 2)
    (only,) = blending.seconds("fedhgb", {"scenario.keep": ["gyroscope"], "train.epochs": 1})
    assert only > 0


def test_a_selection_is_measured_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = {"encoder.audio.weight": (3, 4), "encoder.image.weight": (5,), "head.label.weight": (2,)}
    rows = [selection.row(label, 4, 2, 12, shapes) for label in selection.WAYS]
    for held in rows:
        assert held["choose"] > 0 and held["renew"] > 0
        assert held["kept"] >= 12 * 12 * 8 + 12 * 19 * 4
    source = tmp_path / "measured.json"
    source.write_text(json.dumps({**measured(), "selection": rows}))
    command.main(["performance", "--from", str(source), "--docs", str(tmp_path)])
    assert re.search(r"divfl +4 ", capsys.readouterr().out)
    assert "| divfl, full greedy | 4 |" in (tmp_path / "performance.md").read_text()
