"""``python -m benchmarks``: seconds per round after the first, and their ratio to the bare loop of the same run."""

from __future__ import annotations

import argparse
from statistics import median

import torch

from benchmarks.bare import bare_rounds
from benchmarks.engine import engine_rounds
from benchmarks.workloads import WORKLOADS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("workloads", nargs="*", default=[], help=f"any of {', '.join(WORKLOADS)}; default: all")
    parser.add_argument("--repeats", type=int, default=2, help="interleaved repetitions (default 2)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("workload   bare s/round   polyfed s/round   ratio   overhead per client (ms)")
    for name in given.workloads or WORKLOADS:
        workload = WORKLOADS[name]
        inputs, labels = workload.data()
        bare: list[float] = []
        ours: list[float] = []
        for _ in range(given.repeats):
            bare += bare_rounds(workload, inputs, labels, workload.rounds)[1:]
            ours += engine_rounds(workload, inputs, labels, workload.rounds)[1:]
        one, other = median(bare), median(ours)
        overhead = 1000 * (other - one) / workload.cohort
        print(f"{name:8} {one:14.4f} {other:17.4f} {other / one:7.2f} {overhead:14.3f}")


if __name__ == "__main__":
    main()
