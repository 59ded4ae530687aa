"""Every file in examples/ runs; the experiments with fewer rounds and samples than they have."""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import polyfed
from polyfed.command.listing import KINDS
from polyfed.engine.trainer import Trainer
from polyfed.experiment import config
from tests.language import checkpoint
from tests.multimedia import write_mosei, write_vehicle

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL: dict[str, dict[str, Any]] = {
    "av_mnist.yaml": {"data.limit": 600, "data.size": 16, "scenario.partition.minimum": 10},
    "cg_mnist.yaml": {"data.limit": 600, "scenario.partition.minimum": 10},
    "multi_fmnist.yaml": {"data.limit": 600, "scenario.partition.minimum": 10},
    "uci_har.yaml": {"scenario.clients": 5, "model.width": 8, "train.batch_size": 256},
    "own_files.yaml": {},
    "plugin.yaml": {},
}
"""What makes an example quick, besides one round."""
NO_DOWNLOAD = ("own_files.yaml", "plugin.yaml")


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Work in an empty folder with one thread; forget parts that an example registers."""
    for registry in (registry for registries in KINDS.values() for _, registry in registries):
        monkeypatch.setattr(registry, "_builders", dict(registry._builders))
        monkeypatch.setattr(registry, "_options", dict(registry._options))
    monkeypatch.chdir(tmp_path)
    threads, modules = torch.get_num_threads(), set(sys.modules)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    for name in set(sys.modules) - modules:
        if name.startswith("polyfed_plugin_"):
            del sys.modules[name]


def example(name: str, **changes: Any) -> config.Experiment:
    """Load an example, quickened; skip where its data is not there."""
    if name not in NO_DOWNLOAD and not Path(os.environ.get("POLYFED_DATA", "nowhere")).is_dir():
        pytest.skip("POLYFED_DATA names no folder of downloaded sets")
    return config.load(EXAMPLES / name, {**SMALL[name], "rounds": 1, "baseline": None, **changes})


def test_every_example_is_known_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.yaml")} == set(SMALL)
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "quickstart.py",
        "own_encoder.py",
        "own_method.py",
        "make_own_files.py",
    }


@pytest.mark.parametrize("name", SMALL)
def test_experiments_load_as_they_stand_and_begin_by_saying_what_they_are(name: str) -> None:
    experiment = config.load(EXAMPLES / name)
    assert experiment.name == Path(name).stem
    assert (EXAMPLES / name).read_text().startswith("# ")


@pytest.mark.parametrize("name", [name for name in SMALL if name != "own_files.yaml"])
def test_experiments_run(name: str) -> None:
    experiment = example(name)
    result = polyfed.run(experiment)
    assert result.summary["rounds"] == 1
    assert all(client["metrics"] for client in result.summary["clients"])


@pytest.mark.parametrize("name", SMALL)
def test_workers_and_their_deaths_change_no_bit(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if name == "own_files.yaml":
        monkeypatch.setattr(sys, "argv", ["make_own_files.py", "own_files"])
        runpy.run_path(str(EXAMPLES / "make_own_files.py"), run_name="__main__")
    found = {}
    for workers in (1, 2, 3):
        summary = polyfed.run(example(name, rounds=2, **{"engine.workers": workers})).summary
        found[workers] = summary["digest"], summary["personal_digest"], summary["tasks"]
    dead = tmp_path / "a worker has died"
    deadly(monkeypatch, dead)
    summary = polyfed.run(example(name, rounds=2, **{"engine.workers": 2})).summary
    assert dead.exists()
    assert found[1] == found[2] == found[3] == (summary["digest"], summary["personal_digest"], summary["tasks"])


def deadly(monkeypatch: pytest.MonkeyPatch, dead: Path) -> None:
    """Have one worker killed, as the system would, in the middle of its third answer."""
    answer, parent, count = Trainer.answer, os.getpid(), 0

    def fatal(self: Trainer, pending: Any) -> Any:
        nonlocal count
        count += 1
        if os.getpid() != parent and count == 3 and not dead.exists():
            dead.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return answer(self, pending)

    monkeypatch.setattr(Trainer, "answer", fatal)


PAPERS = sorted(str(path.relative_to(EXAMPLES)) for path in EXAMPLES.glob("*/*.yaml"))
QUICK = {
    "data.limit": 400,
    "data.size": 16,
    "data.parts.av.limit": 400,
    "data.parts.fm.limit": 400,
    "scenario.partition.minimum": 2,
    "select.clients": 2,
}
ONE_EACH = (
    "bmsfed/av_mnist_dirichlet",
    "bmsfed/cg_mnist_iid",
    "bmsfed/uci_har_iid",
    "disentafl/scenario1",
    "disentafl/uci_har",
    "fedhgb/av_mnist_a",
    "fedhgb/uci_har_c",
)


@pytest.mark.parametrize("name", PAPERS)
def test_experiments_of_papers_load_as_they_stand(name: str) -> None:
    experiment = config.load(EXAMPLES / name)
    folder, stem = name.removesuffix(".yaml").split("/")
    assert experiment.name in (stem, f"{folder}_{stem}")
    assert experiment.method.name == folder
    assert (EXAMPLES / name).read_text().startswith("# ")


@pytest.mark.parametrize("name", ONE_EACH)
def test_experiments_of_papers_run(name: str) -> None:
    if not Path(os.environ.get("POLYFED_DATA", "nowhere")).is_dir():
        pytest.skip("POLYFED_DATA names no folder of downloaded sets")
    known = config.load(EXAMPLES / f"{name}.yaml").resolved
    quick = {key: value for key, value in QUICK.items() if key.split(".")[-1] in lookup(known, key)}
    result = polyfed.run(config.load(EXAMPLES / f"{name}.yaml", {**quick, "rounds": 1, "train.batch_size": 256}))
    assert result.summary["rounds"] == 1
    assert all(client["metrics"] for client in result.summary["clients"])


def test_the_second_scenario_of_disentafl_runs_on_files_of_its_layout(tmp_path: Path) -> None:
    write_mosei(tmp_path, rows=320)
    write_vehicle(tmp_path, nodes=23, rows=24)
    changes = {"data.root": str(tmp_path), "rounds": 1, "model.width": 8}
    result = polyfed.run(config.load(EXAMPLES / "disentafl/scenario2.yaml", changes))
    assert len(result.summary["clients"]) == 34
    assert set(result.summary["tasks"]) == {"emotions", "sentiment", "vehicle"}
    assert all(client["metrics"] for client in result.summary["clients"])
    assert result.world.federation.modalities["vehicle_audio"].family == "audio", "knowledge of sound is shared"


def test_pilot_in_the_tiny_world_runs(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="language models need the extra polyfed[mllm]")
    path = checkpoint(tmp_path)
    few = {"data.examples": 3, "data.test_examples": 1, "model.answer_tokens": 2, "rounds": 1, "scenario.validation": 0}
    result = polyfed.run(
        config.load(EXAMPLES / "pilot/tiny.yaml", {**few, "data.checkpoint": path, "model.path": path}),
        tmp_path / "run",
    )
    assert set(result.summary["tasks"]) == {"vqa", "caption", "grounding"}
    assert all(client["metrics"] for client in result.summary["clients"])
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["scenario2", "uci_har"])
@pytest.mark.parametrize(("rho", "clients"), [(1, 36), (0.5, 34), (0, 20)])
def test_the_second_scenario_of_disentafl_has_as_many_clients_as_rho_says(name: str, rho: float, clients: int) -> None:
    experiment = config.load(EXAMPLES / f"disentafl/{name}.yaml", {"scenario.rho": rho})
    groups = experiment.scenario.groups
    assert groups is not None
    assert len(groups) == 14
    assert sum(group.clients for group in groups) == clients


def lookup(resolved: Any, key: str) -> Any:
    """Return the section of a resolved experiment in which a key would be."""
    for part in key.split(".")[:-1]:
        resolved = resolved.get(part, {})
    return resolved


def test_own_files_are_made_and_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["make_own_files.py", "own_files"])
    runpy.run_path(str(EXAMPLES / "make_own_files.py"), run_name="__main__")
    result = polyfed.run(example("own_files.yaml", rounds=8))
    assert [client["examples"] > 0 for client in result.summary["clients"]] == [True] * 6
    groups = result.summary["tasks"]["state"]["accuracy"]["by_modalities"]
    assert set(groups) == {"picture+vibration", "vibration"}
    assert min(groups.values()) > 0.5, "the made-up files can be learned from"


@pytest.mark.parametrize("name", ["quickstart.py", "own_encoder.py", "own_method.py"])
def test_scripts_run(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def load(path: Path | None = None, changes: Any = None) -> config.Experiment:
        return config.load(path, {**(changes or {}), "rounds": 1})

    monkeypatch.setattr(polyfed, "load", load)
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    table = {"quickstart.py": "client", "own_encoder.py": "listener", "own_method.py": "loss-weighted"}
    assert table[name] in capsys.readouterr().out


def test_the_method_without_weights_is_fedavg() -> None:
    own = example("plugin.yaml", **{"method.power": 0.0, "model.encoders": {}})
    here, there = polyfed.run(own), polyfed.run(own.with_({"method.name": "fedavg"}))
    for name, value in there.parameters(0).items():
        torch.testing.assert_close(here.parameters(0)[name], value, rtol=1e-4, atol=1e-6)
    weighted = polyfed.run(own.with_({"method.power": 1.0}))
    assert weighted.summary["digest"] != here.summary["digest"]
