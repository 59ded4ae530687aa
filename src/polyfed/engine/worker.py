"""A worker: a forked process that runs jobs it is told of, one after another, until nobody tells it any more."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from polyfed.engine.allocator import keep_freed_memory
from polyfed.engine.screen import countable
from polyfed.engine.shared_memory import Packing, read, read_groups
from polyfed.engine.steps import Alone, Answer, Assignment
from polyfed.errors import RunError, UserError
from polyfed.method.protocol import Clock, Groups, Order, Reply
from polyfed.model.architecture import Tensors

SLOTS = 2
"""Jobs that a worker may have at a time: one at work, one waiting, so that it never waits for the next."""

OUT_OF_MEMORY = 12
"""Exit code of a worker that had no memory left (ENOMEM)."""

DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux


@dataclass(frozen=True)
class Memory:
    """What a worker shares with its parent: what all workers are sent in common, and slots for its own jobs."""

    common: Tensor
    down: tuple[Tensor, ...]
    up: tuple[Tensor, ...]


def serve(line: Connection, memory: Memory, make: Callable[[], Alone], parent: int) -> None:
    """Answer jobs until the line is closed."""
    leave_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to deal with
    gc.freeze()  # what was made before the fork is never collected here, so its pages stay shared
    keep_freed_memory()
    torch.set_num_threads(1)  # more would wait for ever for threads that did not come along in the fork
    desk = Desk(make(), memory)
    while True:
        try:
            job = json.loads(line.recv_bytes())
            extra = torch.frombuffer(bytearray(line.recv_bytes()), dtype=torch.uint8) if job["bytes"] else None
        except (EOFError, OSError):
            return
        head, packing = desk.work(job, extra)
        send(line, head, packing, memory.up[job["slot"]])


def leave_with(parent: int) -> None:
    """Have the system end this process when its parent ends, however that ends."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def send(line: Connection, head: dict[str, Any], packing: Packing, slot: Tensor) -> None:
    """Send a message: its tensors through shared memory, or as bytes where they do not fit."""
    fits = packing.size <= len(slot)
    memory = slot if fits else torch.empty(packing.size, dtype=torch.uint8)
    packing.write(memory)
    line.send_bytes(json.dumps({**head, "size": packing.size, "bytes": not fits}, default=float).encode())
    if not fits:
        line.send_bytes(memory.numpy().data)


@dataclass
class Desk:
    """What a worker works with. ``entries`` are the orders and parameters all workers are sent in common."""

    alone: Alone
    memory: Memory
    serial: int = -1
    entries: dict[int, dict[str, dict[str, Tensor]]] = field(default_factory=dict)

    def work(self, job: Mapping[str, Any], extra: Tensor | None) -> tuple[dict[str, Any], Packing]:
        """Do a job; what goes wrong is reported, not raised."""
        packing = Packing()
        try:
            self._begin(job)
            memory = self.memory.down[job["slot"]] if extra is None else extra
            head = self._train(job, memory, packing) if job["kind"] == "train" else self._evaluate(job, memory)
        except (Exception, SystemExit) as error:
            if out_of_memory(error):
                os._exit(OUT_OF_MEMORY)  # a fresh process may have enough
            return {"error": reported(error)}, Packing()
        return head, packing

    def _begin(self, job: Mapping[str, Any]) -> None:
        """Forget the views of the last exchange's memory, which now holds something else."""
        if job["serial"] != self.serial:
            self.serial = job["serial"]
            self.entries.clear()
        for number, places in job["entries"].items():
            self.entries[int(number)] = read_groups(self.memory.common, places)

    def _train(self, job: Mapping[str, Any], memory: Tensor, packing: Packing) -> dict[str, Any]:
        assignments = []
        for client, order, personal in job["clients"]:
            groups = self._groups(order["tensors"], memory)
            active = frozenset(order["active"])
            received = Order(order["step"], active, groups, order["numbers"])
            assignments.append(Assignment(client, received, read_groups(memory, personal)))
        done = self.alone.run(assignments, Clock(*job["clock"]), job["exchange"])
        answers = [
            written(answer, one.personal, packing) for answer, one in zip(done.answers, assignments, strict=True)
        ]
        return {"answers": answers, "paths": dict(done.paths)}

    def _groups(self, described: int | Mapping[str, Any], memory: Tensor) -> Groups:
        """Find tensors: an entry that all workers were sent, or places in the job's own memory."""
        return self.entries[described] if isinstance(described, int) else read_groups(memory, described)

    def _evaluate(self, job: Mapping[str, Any], memory: Tensor) -> dict[str, Any]:
        parameters: dict[int, Tensors] = {}
        for client, deployed, personal in job["clients"]:
            found = self._groups(deployed, memory)["parameters"]
            parameters[client] = {**found, **{name: read(memory, place) for name, place in personal.items()}}
        evaluations = self.alone.evaluate(list(parameters), lambda client: (parameters[client], {}))
        return {"evaluations": [asdict(evaluation) for evaluation in evaluations]}


def written(answer: Answer, personal: Groups, packing: Packing) -> list[Any]:
    """Describe an answer: client, seconds, reply (None: it cannot be sent), personal groups (None: as before), fits."""
    reply = None
    if countable(answer.reply):
        held: Reply = answer.reply
        reply = [held.examples, dict(held.numbers), packing.add_groups(held.tensors)]
    changed = None if answer.personal is personal else packing.add_groups(answer.personal)
    fits = [[None if part is None else sorted(part) for part in parts] for parts in answer.fits]
    return [answer.client, answer.seconds, reply, changed, fits]


def out_of_memory(error: BaseException) -> bool:
    """Whether the system or a GPU had no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "not enough memory" in str(error)


def reported(error: BaseException) -> dict[str, str]:
    """Describe what went wrong: a mistake or a failed run by its message, anything else with its traceback."""
    if isinstance(error, UserError | RunError):
        return {"kind": type(error).__name__, "message": str(error)}
    return {"kind": "bug", "message": "".join(traceback.format_exception(error))}
