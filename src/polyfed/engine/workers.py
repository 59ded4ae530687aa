"""Workers: several processes that share the model and the data, and divide a cohort among them.

They are forked, so nothing is sent that they have already; orders and replies go through shared memory. Who does a job
and when decides about nothing but time: jobs, seeds and the order of the answers are the same for any number of
workers. A worker that dies is replaced and what it was at is tried once more; if that fails, too, the replies of the
job's clients count as lost.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import Tensor

from polyfed.engine.common import Common
from polyfed.engine.evaluate import Evaluation
from polyfed.engine.shared_memory import Packing, read_groups, region
from polyfed.engine.steps import Alone, Answer, Assign, Assignment, Done, Jobs, Judge
from polyfed.engine.worker import OUT_OF_MEMORY, SLOTS, Memory, send, serve
from polyfed.errors import RunError, UserError
from polyfed.method.protocol import Clock, Reply
from polyfed.scenario.federation import ClientId

ATTEMPTS = 2
HELD_BYTES = 2**30
"""What replies that arrived before their turn may take."""

EVALUATED_AT_ONCE = 8
LONG_MESSAGE = 2**15  # bytes; longer ones wait until the worker listens, lest both ends write and none reads

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """A job as the workers see it: its number among the jobs of an exchange, and how to tell a worker of it."""

    number: int
    clients: tuple[ClientId, ...]
    write: Callable[[Common], tuple[dict[str, Any], Packing]]


@dataclass
class Worker:
    """A process, the line to it, and the tasks it has, the one at work first. ``known`` entries it was sent before."""

    number: int
    process: BaseProcess
    line: Connection
    memory: Memory
    tasks: deque[tuple[Task, int]] = field(default_factory=deque)
    serial: int = -1
    known: int = 0

    def slot(self) -> int:
        """Return a slot that none of its tasks uses."""
        taken = {slot for _, slot in self.tasks}
        return next(slot for slot in range(SLOTS) if slot not in taken)


class Workers:
    """``count`` processes. ``make`` builds what the worker of a number works with, in its process.

    ``parameter_bytes`` is the size of all components together, ``weigh`` predicts a client's work, ``note`` is told of
    workers that died.
    """

    def __init__(
        self,
        count: int,
        make: Callable[[int], Alone],
        parameter_bytes: int,
        weigh: Callable[[ClientId], float],
        note: Callable[[Event], None],
    ) -> None:
        self._make = make
        self._weigh = weigh
        self._note = note
        self._room = 4 * parameter_bytes + 2**24
        self._window = max(SLOTS * count, HELD_BYTES // max(1, parameter_bytes))
        self._common = region(2 * self._room)
        self._serial = 0
        self._assigned: dict[ClientId, Assignment] = {}
        self._workers: list[Worker] = []
        for number in range(count):
            memory = Memory(
                self._common,
                tuple(region(self._room) for _ in range(SLOTS)),
                tuple(region(self._room) for _ in range(SLOTS)),
            )
            self._workers.append(self._hire(number, memory))

    def _hire(self, number: int, memory: Memory) -> Worker:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        lines = [worker.line for worker in self._workers if worker.number != number]

        def begin() -> None:
            for line in [ours, *lines]:  # else a worker would keep its siblings' lines open after the parent's end
                line.close()
            serve(theirs, memory, partial(self._make, number), parent)

        parent = os.getpid()
        process = context.Process(target=begin, name=f"polyfed worker {number}", daemon=True)
        with warnings.catch_warnings():
            # Python 3.12 and later warn of forking beside threads; a worker uses nothing that threads here hold.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        theirs.close()
        return Worker(number, process, ours, memory)

    # ------------------------------------------------------------------------------------------ what is asked

    def train(self, jobs: Jobs, assign: Assign, clock: Clock, exchange: int) -> Iterator[Done]:
        """Run client steps; what comes of each job, in the order of the jobs."""

        def write(job: tuple[ClientId, ...], common: Common) -> tuple[dict[str, Any], Packing]:
            packing, clients = Packing(), []
            for client in job:
                one = self._assigned[client] = assign(client)
                number = common.number(one.order.tensors)
                order = {
                    "step": one.order.step,
                    "active": sorted(one.order.active),
                    "numbers": dict(one.order.numbers),
                    "tensors": packing.add_groups(one.order.tensors) if number is None else number,
                }
                clients.append([client, order, packing.add_groups(one.personal)])
            times = [clock.seed, clock.round, clock.total]
            return {"kind": "train", "clients": clients, "clock": times, "exchange": exchange}, packing

        tasks = [Task(number, job, partial(write, job)) for number, job in enumerate(jobs)]
        try:
            for task, (found, memory) in self._run(tasks):
                yield self._lost(task, found) if isinstance(found, str) else self._done(found, memory)
        finally:
            self._assigned.clear()

    def _done(self, found: Mapping[str, Any], memory: Tensor) -> Done:
        """Read what a worker wrote of a job."""
        answers = []
        for client, seconds, reply, changed, fits in found["answers"]:
            before = self._assigned.pop(client).personal
            personal = before if changed is None else read_groups(memory, changed)
            lost = "it is no reply that can be sent" if reply is None else None
            received = None if reply is None else Reply(reply[0], read_groups(memory, reply[2]), reply[1])
            answers.append(Answer(client, received, personal, seconds, lost, fits))
        return Done(answers, found["paths"])

    def _lost(self, task: Task, reason: str) -> Done:
        """Report that nothing came of a job."""
        before = {client: self._assigned.pop(client).personal for client in task.clients}
        return Done([Answer(client, None, personal, 0.0, reason) for client, personal in before.items()])

    def evaluate(self, clients: Sequence[ClientId], parameters_of: Judge) -> Iterator[Evaluation]:
        """Evaluate clients' models on their own samples, in the order of the clients."""

        def write(chosen: Sequence[ClientId], common: Common) -> tuple[dict[str, Any], Packing]:
            packing, described = Packing(), []
            for client in chosen:
                deployed, personal = parameters_of(client)
                groups = {"parameters": deployed}
                number = common.number(groups)
                places = packing.add_groups(groups) if number is None else number
                described.append([client, places, packing.add_groups({"": personal})[""]])
            return {"kind": "evaluate", "clients": described}, packing

        parts = [tuple(clients[at : at + EVALUATED_AT_ONCE]) for at in range(0, len(clients), EVALUATED_AT_ONCE)]
        tasks = [Task(number, part, partial(write, part)) for number, part in enumerate(parts)]
        for _, (found, _) in self._run(tasks):
            if isinstance(found, str):
                raise RunError(f"evaluation failed: {found}")
            yield from (Evaluation(**evaluation) for evaluation in found["evaluations"])

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.line.close()
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
        self._workers.clear()

    # ------------------------------------------------------------------------------------------ who does it

    def _run(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, tuple[Any, Tensor]]]:
        """Have tasks done and yield each with what came of it, in their order; a text tells why nothing did."""
        self._serial += 1
        common = Common(self._common, self._serial)
        left = deque(self._in_order(tasks))
        results: dict[int, tuple[Any, Tensor]] = {}
        attempts = dict.fromkeys(range(len(tasks)), 0)
        for task in tasks:
            while task.number not in results:
                for worker in list(self._workers):
                    self._occupy(worker, left, common)
                for line in wait([worker.line for worker in self._workers]):
                    worker = next(worker for worker in self._workers if worker.line is line)
                    try:
                        done, result = self._receive(worker)
                    except (EOFError, OSError):
                        self._replace(worker, left, attempts, results)
                    else:
                        results[done.number] = result
            yield task, results.pop(task.number)

    def _in_order(self, tasks: Sequence[Task]) -> Iterator[Task]:
        """Begin with the most work, so that workers end together; but only so much may wait for its turn."""
        for start in range(0, len(tasks), self._window):
            part = tasks[start : start + self._window]
            yield from sorted(part, key=lambda task: -sum(map(self._weigh, task.clients)))

    def _occupy(self, worker: Worker, left: deque[Task], common: Common) -> None:
        """Give a worker tasks, as many as it has slots for."""
        while left and len(worker.tasks) < SLOTS:
            task = left[0]
            head, packing = task.write(common)
            known = worker.known if worker.serial == common.serial else 0
            entries = {number: common.entries[number] for number in range(known, len(common.entries))}
            slot = worker.slot()
            head |= {"serial": common.serial, "entries": entries, "slot": slot}
            long = packing.size > self._room or len(json.dumps(head, default=float)) > LONG_MESSAGE
            if long and worker.tasks:
                return
            left.popleft()
            worker.tasks.append((task, slot))
            worker.serial, worker.known = common.serial, len(common.entries)
            try:
                send(worker.line, head, packing, worker.memory.down[slot])
            except OSError:
                return  # it is dead, which is noticed when it is listened to

    def _receive(self, worker: Worker) -> tuple[Task, tuple[Any, Tensor]]:
        """Read what a worker sends. Its memory is used again, so that what is there is copied."""
        found = json.loads(worker.line.recv_bytes())
        if found["bytes"]:
            memory = torch.frombuffer(bytearray(worker.line.recv_bytes()), dtype=torch.uint8)
        task, slot = worker.tasks.popleft()
        if not found["bytes"]:
            memory = worker.memory.up[slot][: found["size"]].clone()
        if "error" in found:
            raise raised(found["error"], worker)
        return task, (found, memory)

    def _replace(
        self, worker: Worker, left: deque[Task], attempts: dict[int, int], results: dict[int, tuple[Any, Tensor]]
    ) -> None:
        """Put a new worker in the place of one that died; its task is tried again, or given up."""
        worker.process.join()
        reason = ended(worker)
        held = list(worker.tasks)
        again = bool(held)
        if held:
            task, _ = held[0]
            attempts[task.number] += 1
            again = attempts[task.number] < ATTEMPTS
            if not again:
                results[task.number] = f"{reason}, and so did the one that tried again", torch.empty(0)
                held = held[1:]
        left.extendleft(task for task, _ in reversed(held))
        clients = list(worker.tasks[0][0].clients) if worker.tasks else []
        self._note({"worker": worker.number, "reason": reason, "clients": clients, "tried_again": again})
        worker.line.close()
        self._workers[worker.number] = self._hire(worker.number, worker.memory)


def ended(worker: Worker) -> str:
    """Tell how a worker's process ended."""
    code = worker.process.exitcode
    how = "want of memory" if code == OUT_OF_MEMORY else f"exit code {code}"
    if code is not None and code < 0:
        how = signal.Signals(-code).name
        if -code == signal.SIGKILL:
            how += " (perhaps for want of memory)"
    return f"worker {worker.number} (process {worker.process.pid}) died of {how}"


def raised(error: Mapping[str, str], worker: Worker) -> Exception:
    """Return the error that a worker reported."""
    if error["kind"] == "UserError":
        return UserError(error["message"])
    if error["kind"] == "RunError":
        return RunError(error["message"])
    return WorkerError(f"worker {worker.number} failed:\n{error['message']}")


class WorkerError(Exception):
    """A bug, in polyfed or in a plugin, that showed in a worker; the message holds its traceback."""
