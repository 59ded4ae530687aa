from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from polyfed.engine.background import NAME, Background


class Work:
    """Does jobs (lists of numbers) when it is let; ``started`` tells that the first one is being done."""

    def __init__(self, failing: int | None = None) -> None:
        self.done: list[list[int]] = []
        self.threads: set[int] = set()
        self.started, self.may_go = threading.Event(), threading.Event()
        self.failing = failing

    def __call__(self, job: list[int]) -> None:
        self.threads.add(threading.get_ident())
        self.started.set()
        assert self.may_go.wait(60)
        if self.failing in job:
            raise LookupError(f"job {self.failing} failed")
        self.done.append(job)


def working() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == NAME]


def background(work: Callable[[list[int]], None]) -> Background[list[int]]:
    return Background(work, lambda waiting, newer: waiting + newer)


def test_what_waits_is_merged_into_one_job_and_all_is_done_at_the_end() -> None:
    work = Work()
    with background(work) as behind:
        behind.give([1])
        assert work.started.wait(60)
        for number in (2, 3, 4):
            behind.give([number])
        assert work.done == []
        work.may_go.set()
    assert work.done == [[1], [2, 3, 4]]
    assert len(work.threads) == 1 and threading.get_ident() not in work.threads
    assert not working()


def test_an_error_is_raised_at_the_end_and_nothing_is_done_after_it() -> None:
    work = Work(failing=1)
    behind = background(work)
    with pytest.raises(LookupError, match="job 1 failed"), behind:
        behind.give([1])
        assert work.started.wait(60)
        behind.give([2])
        work.may_go.set()
    assert work.done == []


def test_an_error_is_raised_by_the_next_job_and_only_once() -> None:
    failed = threading.Event()

    def work(job: list[int]) -> None:
        failed.set()
        raise LookupError(f"job {job} failed")

    with pytest.raises(LookupError, match=r"job \[1\] failed"), background(work) as behind:
        behind.give([1])
        assert failed.wait(60)
        while working():
            time.sleep(0.001)
        behind.give([2])
        pytest.fail("the second job must not be taken")
    with behind:
        pass


def test_an_error_outside_comes_first_and_what_was_given_is_still_done() -> None:
    for failing in (None, 1):
        work = Work(failing)
        with pytest.raises(KeyboardInterrupt), background(work) as behind:
            behind.give([1])
            assert work.started.wait(60)
            behind.give([2])
            work.may_go.set()
            raise KeyboardInterrupt
        assert work.done == ([] if failing else [[1], [2]])
        assert not working()


def test_a_forked_child_is_not_held_up_by_a_thread_it_does_not_have() -> None:
    work = Work()
    with background(work) as behind:
        behind.give([1])
        assert work.started.wait(60)
        child = os.fork()
        if child == 0:
            try:
                with behind:
                    pass
                os._exit(7)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        work.may_go.set()


EXIT = """
import time
from polyfed.engine.background import Background

def work(job):
    time.sleep(0.2)
    print("done", job, flush=True)

Background(work, lambda waiting, newer: newer).give(1)
raise SystemExit(3)
"""


def test_the_interpreter_exits_when_the_work_is_done() -> None:
    ended = subprocess.run([sys.executable, "-c", EXIT], check=False, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (3, "done 1\n"), ended.stderr
