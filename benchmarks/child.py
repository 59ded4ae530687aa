"""The process that runs one system: ``python -m benchmarks.child JSON``. Orders come in on stdin, reports go to stdout.

An order is a line with a number of rounds; the report is a line of JSON. The first order starts the clock of the
start-up; 0 ends it. If whoever gave the orders is gone, so is this process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence

import torch

from benchmarks.profile import Sampler
from benchmarks.system import System
from benchmarks.turns import Turns


def orders() -> Iterator[int]:
    """Read orders; the end of the input without a 0 ends the process."""
    for line in sys.stdin:
        if int(line) == 0:
            return
        yield int(line)
    raise SystemExit("nobody gives orders any more")


def report(seconds: Sequence[float]) -> None:
    """Write the seconds of the rounds of a turn."""
    sys.stdout.write(json.dumps({"seconds": list(seconds)}) + "\n")
    sys.stdout.flush()


def main() -> None:
    given = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    system = System(**given["system"])
    sampler = Sampler() if given["profile"] else None
    system.run(given["rounds"], Turns(orders(), report, sampler))
    if sampler is not None:
        sys.stdout.write(json.dumps({"profile": sampler.percent()}) + "\n")


if __name__ == "__main__":
    main()
