from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from polyfed.engine import crew
from polyfed.engine.common import Common
from polyfed.engine.crew import workers_of
from polyfed.engine.loop import Outcome
from polyfed.engine.shared_memory import Packing, read_groups, region
from polyfed.engine.workers import WorkerError
from polyfed.errors import RunError, UserError
from polyfed.experiment.world import World, build_world
from polyfed.method.protocol import Reply
from polyfed.report.entries import WorkerRecord
from polyfed.report.records import read_records
from tests.worlds import tiny, train

CNN = {"image": {"name": "cnn"}, "audio": {"name": "cnn"}}
ALIKE = {"scenario__modalities": {"name": "all"}, "scenario__tasks": {"name": "all"}}


def digests(outcome: Outcome) -> tuple[str, str]:
    return outcome.digest, outcome.personal_digest


@pytest.mark.parametrize("method", ["fedavg", "local", "fedprox", "multi-fedavg", "fedadam"])
@pytest.mark.parametrize("changes", [{}, {"model__encoders": CNN}, {**ALIKE, "engine__batching": "on"}])
def test_the_number_of_workers_changes_no_bit(method: str, changes: dict[str, Any]) -> None:
    experiment = {"method__name": method, "rounds": 2, **changes}
    alone = train(tiny(engine__workers=1, **experiment))
    for workers in (2, 3):
        assert digests(train(tiny(engine__workers=workers, **experiment))) == digests(alone)


def test_evaluation_and_records_do_not_depend_on_workers_either() -> None:
    def run(workers: int) -> list[dict[str, Any]]:
        seen: list[dict[str, Any]] = []
        build_world(tiny(engine__workers=workers)).loop(observers=[lambda record: seen.append(dict(record))]).run()
        return [{key: value for key, value in record.items() if key != "seconds"} for record in seen]

    assert run(2) == run(1)


def children() -> set[int]:
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


def test_workers_end_with_the_run() -> None:
    before = children()
    train(tiny(engine__workers=3, rounds=1))
    assert children() <= before


@pytest.mark.parametrize(
    ("encoder", "workers"),
    [
        ({"name": "mlp", "hidden": [16]}, 1),  # stacked
        ({"name": "mlp", "hidden": [48]}, 1),  # not all stacked, but soon done
        ({"name": "mlp", "hidden": [2048, 64]}, 2),
        ({"name": "cnn"}, 2),
    ],
)
def test_workers_are_many_by_default_where_a_client_is_work(
    encoder: dict[str, Any], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    world = build_world(tiny(model__encoders={"image": encoder, "audio": encoder}))
    loop = world.loop()
    assert workers_of(None, torch.device("cpu"), loop.trainer, world.federation) == workers
    assert workers_of(3, torch.device("cpu"), loop.trainer, world.federation) == 3
    assert workers_of(600, torch.device("cpu"), loop.trainer, world.federation) == len(world.federation.cards)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert workers_of(None, torch.device("cpu"), loop.trainer, world.federation) == 1


# ------------------------------------------------------------------------------------------ workers that die


class Deadly:
    """A method whose training step ends its own process when client 1 trains in round 2, so many times."""

    def __init__(self, method: Any, folder: Path, times: int) -> None:
        self._method = method
        self._folder = folder
        self._times = times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    @property
    def steps(self) -> dict[str, Any]:
        return {**self._method.steps, "train": self.train}

    def train(self, order: Any, personal: Any, client: Any, clock: Any) -> Iterator[Any]:
        if (clock.round, client.card.id) == (2, 1):
            deaths = len(list(self._folder.iterdir()))
            if deaths < self._times:
                (self._folder / str(deaths)).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return self._method.train(order, personal, client, clock)  # type: ignore[no-any-return]


def deadly(world: World, folder: Path, times: int) -> tuple[Outcome, list[dict[str, Any]]]:
    folder.mkdir()
    seen: list[dict[str, Any]] = []
    deadly_world = replace(world, method=Deadly(world.method, folder, times))
    outcome = deadly_world.loop(observers=[lambda record: seen.append(dict(record))]).run()
    return outcome, [record for record in seen if record["kind"] == "worker"]


@pytest.mark.parametrize("changes", [{}, {**ALIKE, "engine__batching": "on"}])
def test_a_worker_that_is_killed_is_named_and_replaced_and_changes_no_bit(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    whole = train(tiny(engine__workers=1, **changes))
    outcome, (death,) = deadly(build_world(tiny(engine__workers=2, **changes)), tmp_path / "marks", 1)
    assert digests(outcome) == digests(whole)
    assert not outcome.progress.refused
    assert "SIGKILL" in death["reason"] and 1 in death["clients"]
    assert death["tried_again"] and death["after_round"] == 1


def test_the_report_of_a_run_tells_nothing_wrong_of_a_worker_that_died(tmp_path: Path) -> None:
    """Records of dead workers are read like all others."""
    folder = tmp_path / "run"
    world = build_world(tiny(engine__workers=2))
    (tmp_path / "marks").mkdir()
    folder.mkdir()
    replace(world, method=Deadly(world.method, tmp_path / "marks", 1)).loop(folder).run()
    records = list(read_records(folder / "records.jsonl"))
    (death,) = [record for record in records if isinstance(record, WorkerRecord)]
    assert (death.after_round, death.tried_again) == (1, True) and 1 in death.clients


class Hungry(Deadly):
    """Its training step finds no memory, so many times."""

    def train(self, order: Any, personal: Any, client: Any, clock: Any) -> Iterator[Any]:
        if (clock.round, client.card.id) == (2, 1) and len(list(self._folder.iterdir())) < self._times:
            (self._folder / str(len(list(self._folder.iterdir())))).touch()
            raise MemoryError
        return self._method.train(order, personal, client, clock)  # type: ignore[no-any-return]


def test_a_worker_without_memory_is_replaced_and_tried_again(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    world = build_world(tiny(engine__workers=2))
    hungry = replace(world, method=Hungry(world.method, tmp_path, 1))
    outcome = hungry.loop(observers=[lambda record: seen.append(dict(record))]).run()
    assert digests(outcome) == digests(train(tiny(engine__workers=1)))
    (death,) = [record for record in seen if record["kind"] == "worker"]
    assert "want of memory" in death["reason"] and death["tried_again"]


class Exiting(Deadly):
    """Its training step leaves the program."""

    def train(self, order: Any, personal: Any, client: Any, clock: Any) -> Iterator[Any]:
        sys.exit(3)


def test_a_step_that_leaves_the_program_is_told_as_the_bug_it_is(tmp_path: Path) -> None:
    world = build_world(tiny(engine__workers=2))
    with pytest.raises(WorkerError, match="SystemExit: 3"):
        replace(world, method=Exiting(world.method, tmp_path, 1)).loop().run()


def test_workers_have_one_thread_and_say_so() -> None:
    with pytest.raises(UserError, match="workers is 2 and threads is 2, but workers have one thread"):
        tiny(engine__workers=2, engine__threads=2)
    assert tiny(engine__threads=2).engine.workers == "auto"


def test_workers_are_forked_from_a_process_that_has_computed_with_several_threads() -> None:
    """The threads do not come along; a worker that waited for them would wait for ever."""
    code = (
        "import torch; torch.set_num_threads(2); a = torch.randn(600, 600); (a @ a).relu_().sum()\n"
        "from tests.worlds import tiny, train\n"
        "print(train(tiny(engine__workers=2, rounds=1)).digest)\n"
        "torch.set_num_threads(1)\n"
        "print(train(tiny(engine__workers=1, rounds=1)).digest)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    first, second = done.stdout.split()
    assert first == second, done.stderr


def test_a_client_that_kills_two_workers_counts_as_lost(tmp_path: Path) -> None:
    def lost(round_number: int, client: int, reply: Reply) -> Any:
        return None if (round_number, client) == (2, 1) else reply

    expected = train(tiny(engine__workers=1), deliver=lost)
    outcome, deaths = deadly(build_world(tiny(engine__workers=2)), tmp_path / "marks", 2)
    assert outcome.digest == expected.digest
    (refusal,) = outcome.progress.refused
    assert (refusal["round"], refusal["client"]) == (2, 1)
    assert "died" in refusal["reason"] and "SIGKILL" in refusal["reason"]
    assert [death["tried_again"] for death in deaths] == [True, False]


def test_too_many_lost_replies_end_the_run_by_the_quorum_rule(tmp_path: Path) -> None:
    world = build_world(tiny(engine__workers=2, engine__quorum=1.0))
    with pytest.raises(RunError, match=r"round 2: only 3 of 4 replies .* died of SIGKILL"):
        deadly(world, tmp_path / "marks", 2)


# ------------------------------------------------------------------------------------------ errors in workers


class Failing(Deadly):
    """A method whose training step raises in round 2."""

    def __init__(self, method: Any, error: Exception) -> None:
        self._method = method
        self._error = error

    def train(self, order: Any, personal: Any, client: Any, clock: Any) -> Iterator[Any]:
        if clock.round == 2:
            raise self._error
        return self._method.train(order, personal, client, clock)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (UserError("client 3: no such column"), UserError, "^client 3: no such column$"),
        (RunError("the disk went away"), RunError, "^the disk went away$"),
        (
            ZeroDivisionError("by hand"),
            WorkerError,
            "(?s)worker . failed:.*Traceback.*in train.*ZeroDivisionError: by hand",
        ),
    ],
)
def test_an_error_in_a_worker_reaches_the_user(error: Exception, kind: type[Exception], told: str) -> None:
    world = build_world(tiny(engine__workers=2))
    before = children()
    with pytest.raises(kind, match=told):
        replace(world, method=Failing(world.method, error)).loop().run()
    assert children() <= before


class Odd(Deadly):
    """A method whose clients reply with something that is no reply."""

    def __init__(self, method: Any, reply: Any) -> None:
        self._method = method
        self._reply = reply

    def train(self, order: Any, personal: Any, client: Any, clock: Any) -> Iterator[Any]:
        found = yield from self._method.train(order, personal, client, clock)
        return (self._reply, found[1]) if (clock.round, client.card.id) == (2, 1) else found


@pytest.mark.parametrize("reply", [None, {"parameters": 1}, Reply(3, {"parameters": {"a": [1.0]}})])  # type: ignore[dict-item]
def test_what_is_no_reply_is_refused(reply: Any) -> None:
    world = build_world(tiny(engine__workers=2))
    outcome = replace(world, method=Odd(world.method, reply)).loop().run()
    (refusal,) = outcome.progress.refused
    assert (refusal["round"], refusal["client"]) == (2, 1)


class Wordy(Odd):
    """A method whose clients also keep a large personal tensor, which no slot has room for."""

    def train(self, order: Any, personal: Any, client: Any, clock: Any) -> Iterator[Any]:
        reply, _ = yield from self._method.train(order, personal, client, clock)
        kept = personal.get("notes", {}).get("page", torch.zeros(6 * 2**20))
        return reply, {"notes": {"page": kept + client.card.id}}


def test_what_does_not_fit_into_shared_memory_travels_all_the_same() -> None:
    def run(workers: int) -> Outcome:
        world = build_world(tiny(engine__workers=workers))
        return replace(world, method=Wordy(world.method, None)).loop().run()

    assert digests(run(2)) == digests(run(1))


KILLED = """
import os, sys, time
from polyfed.experiment.world import build_world
from tests.worlds import tiny
def watch(record):
    if record["kind"] == "round":
        print("ready", flush=True)
        time.sleep(60)
build_world(tiny(engine__workers=2, rounds=50)).loop(observers=[watch]).run()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers are told of their parent's end by Linux")
def test_no_worker_outlives_a_killed_run() -> None:
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), str(root / "src"), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(workers) == 2
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 20
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < deadline, "a worker outlived its run"
        time.sleep(0.05)


def alive(worker: str) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{worker}/status").read_text()
    except FileNotFoundError:
        return False


# ------------------------------------------------------------------------------------------ shared memory


def test_tensors_come_back_from_shared_memory_as_they_were() -> None:
    one = torch.arange(5, dtype=torch.float32)
    groups = {
        "parameters": {"a": one, "b": torch.ones(2, 3, dtype=torch.bfloat16), "again": one},
        "counts": {"n": torch.tensor(7), "none": torch.zeros(0, 4), "turned": torch.randn(3, 4).t()},
    }
    packing = Packing()
    places = packing.add_groups(groups)
    memory = region(packing.size)
    packing.write(memory)
    found = read_groups(memory, places)
    for group, held in groups.items():
        for name, value in held.items():
            assert torch.equal(found[group][name], value)
            assert found[group][name].dtype == value.dtype
    assert places["parameters"]["a"] == places["parameters"]["again"]


def test_common_memory_holds_each_tensor_once_and_says_when_it_is_full() -> None:
    one, two = torch.ones(16), torch.zeros(16)
    common = Common(region(128), serial=1)
    assert common.number({"parameters": {"a": one}}) == 0
    assert common.number({"parameters": {"a": one}}) == 0
    assert common.number({"parameters": {"b": one, "c": two}}) == 1
    assert common.number({"parameters": {"d": torch.ones(1)}}) is None
    assert common.number({"parameters": {"e": two}}) == 2
