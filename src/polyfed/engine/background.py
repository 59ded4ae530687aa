"""Work that goes on beside the training: one thread, and of what waits only the newest."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

NAME = "polyfed background"  # of the thread

Job = TypeVar("Job")


class Background(Generic[Job]):
    """Does jobs one after another in a thread of its own, to be used as a context manager.

    ``merge(waiting, newer)`` makes one job of two: while a job is being done at most one other waits. The thread starts
    with the first job and ends when there is none left, so that none lingers: an idle ``Background`` is as harmless in
    a forked process as any other object. Leaving the context waits for all jobs; an error in one, which ends the work,
    is raised there or by the next ``give``, whichever comes first, and gives way to an error in the context.
    """

    def __init__(self, work: Callable[[Job], None], merge: Callable[[Job, Job], Job]) -> None:
        self._work = work
        self._merge = merge
        self._lock = threading.Lock()
        self._waiting: Job | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def give(self, job: Job) -> None:
        """Hand over a job and return at once; raises the error of a job given before."""
        with self._lock:
            self._raise_error()
            self._waiting = job if self._waiting is None else self._merge(self._waiting, job)
            if self._thread is None:
                # Not a daemon: these are killed at exit wherever they are, and this one always comes to its end.
                self._thread = threading.Thread(target=self._run, name=NAME, daemon=False)
                self._thread.start()

    def __enter__(self) -> Background[Job]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        thread = self._thread
        if thread is not None and thread.is_alive():
            _join(thread)
        if kind is None:
            self._raise_error()
        self._error = None

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self) -> None:
        try:
            while (job := self._next()) is not None:
                self._work(job)
        except BaseException as error:  # whatever it is, the thread that gave the job must hear of it
            with self._lock:
                self._error, self._waiting, self._thread = error, None, None

    def _next(self) -> Job | None:
        with self._lock:
            job, self._waiting = self._waiting, None
            if job is None:
                self._thread = None
            return job


def _join(thread: threading.Thread) -> None:
    try:
        thread.join()
    except KeyboardInterrupt:  # pressed twice: what is under way must still end before the run folder is given back
        thread.join()
        raise
