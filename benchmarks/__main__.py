"""Speed and memory of polyfed, beside a bare loop that takes turns with it.

workloads    W1 many small clients, W2 few large ones, W3 a tiny model, W4 six unlike groups of clients
reduction    averaging 50 replies of a 22-million-parameter model
checkpoint   W1 with a checkpoint every round against none
selection    divfl and bms among 1,000 clients of a model of 1,000,000 parameters
scaling      over clients per round, registered clients, parameters and workers
gpu          W1 and a transformer, batched against one by one, on a GPU
tuning       a round of Pilot with two clients: LLaVA-1.5-7B's architecture on a GPU, a tiny one on the processor
performance  everything but gpu and tuning; writes docs/performance.md and its pictures
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure, peers, tables
from benchmarks.race import ROOT, BenchmarkError
from benchmarks.system import W4

WORKLOADS = ("W1", "W2", "W3", W4)
OTHERS = ("reduction", "checkpoint", "scaling", "selection", "blending", "gpu", "tuning", "performance")
EXAMPLES = """\
examples:
  python -m benchmarks                        # W1 to W4
  python -m benchmarks W3 --repeats 4         # one workload, more carefully
  python -m benchmarks W1 W3 --peers          # beside pfl-research and Flower, where they are installed
  python -m benchmarks blending               # a round of fedhgb beside one of fedavg (needs UCI-HAR)
  python -m benchmarks tuning                 # Pilot at the size of LLaVA-1.5-7B (needs a GPU of 80 GB)
  python -m benchmarks performance --json measured.json   # everything, and the page (half an hour)
  python -m benchmarks performance --from measured.json   # the page again from what was measured
"""


def parser() -> argparse.ArgumentParser:
    """Describe the command."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ", ".join([*WORKLOADS, *OTHERS])
    made.add_argument("what", nargs="*", help=f"any of {names}; default: {' '.join(WORKLOADS)}")
    made.add_argument("--repeats", type=positive, default=2, help="repetitions in fresh processes (default 2)")
    made.add_argument("--turns", type=positive, help="turns per repetition (default: what suits the workload)")
    made.add_argument("--peers", action="store_true", help="run the peers that are installed on W1 to W3 too")
    made.add_argument("--json", type=Path, metavar="FILE", help="also write what was measured as JSON")
    made.add_argument(
        "--from", dest="source", type=Path, metavar="FILE", help="show an earlier --json, measure nothing"
    )
    made.add_argument("--docs", type=Path, default=ROOT / "docs", help="where performance writes (default: docs)")
    made.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="of gpu and tuning (default cuda)")
    return made


def positive(text: str) -> int:
    """Read a whole number above zero."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not above zero")
    return number


def measured_now(what: Sequence[str], given: argparse.Namespace) -> dict[str, Any]:
    """Measure what was asked for; what there is so far is written after each measurement."""
    effort = measure.Effort(given.repeats, given.turns)
    installed = peers.installed() if given.peers else []
    found: dict[str, Any] = {"machine": measure.machine(given.repeats), "workloads": []}
    for name in what:
        if name in WORKLOADS:
            found["workloads"].append(measure.workload(name, effort, installed if name != W4 else ()))
            keep(found, given.json)
    for name in ("reduction", "checkpoint", "scaling"):
        if name in what:
            found[name] = getattr(measure, name)(effort)
            keep(found, given.json)
    if "selection" in what:
        from benchmarks import selection

        found["selection"] = selection.measure(max(3, given.repeats))
        keep(found, given.json)
    if "blending" in what:
        from benchmarks import blending

        found["blending"] = blending.measure(given.repeats)
        keep(found, given.json)
    if "gpu" in what:
        from benchmarks import gpu

        found["gpu"] = gpu.missing(given.device) or gpu.measure(effort, given.device)
        keep(found, given.json)
    if "tuning" in what:
        from benchmarks import gpu, tuning

        found["tuning"] = gpu.missing(given.device) or tuning.measure(given.device)
        keep(found, given.json)
    return found


def keep(found: dict[str, Any], file: Path | None) -> None:
    """Write what was measured as JSON."""
    if file is not None:
        file.write_text(json.dumps(found, indent=1), encoding="utf-8")


def earlier(file: Path) -> dict[str, Any]:
    """Read what was measured earlier. Raises BenchmarkError for a file that this program did not write."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BenchmarkError(f"{file}: not JSON: {error}") from error
    if not isinstance(found, dict) or not {"machine", "workloads"} <= found.keys():
        raise BenchmarkError(f"{file}: not written by --json: it has no 'machine' and 'workloads'")
    return found


def shown(found: dict[str, Any], device: str) -> list[tables.Table]:
    """Return the tables of what was measured."""
    made = []
    if found["workloads"]:
        made += [tables.workload_table(found["workloads"]), tables.profile_table(found["workloads"])]
    if "reduction" in found:
        made.append(tables.reduction_table(found["reduction"]))
    if "checkpoint" in found:
        made.append(tables.checkpoint_table(found["checkpoint"]))
    if "scaling" in found:
        made += tables.scaling_tables(found["scaling"])
    if "selection" in found:
        made.append(tables.selection_table(found["selection"]))
    if "blending" in found:
        made.append(tables.blending_table(found["blending"]))
    if isinstance(found.get("gpu"), list):
        from benchmarks import gpu

        made.append(gpu.table(found["gpu"], device))
    if isinstance(found.get("tuning"), list):
        from benchmarks import tuning

        made.append(tuning.table(found["tuning"], device))
    return made


def chosen(given: argparse.Namespace, command: argparse.ArgumentParser) -> list[str]:
    """Return what is to be measured; a name that is unknown ends the program."""
    for name in given.what:
        if name not in (*WORKLOADS, *OTHERS):
            command.error(f"there is no {name!r}; choose from {', '.join([*WORKLOADS, *OTHERS])}")
    if "performance" in given.what:
        return list(dict.fromkeys([*given.what, *WORKLOADS, "reduction", "checkpoint", "scaling", "selection"]))
    return list(given.what) or list(WORKLOADS)


def remarks(found: dict[str, Any], given: argparse.Namespace) -> list[str]:
    """Say what could not be measured."""
    lines = peers.absent() if given.peers else []
    return [*lines, *(f"{name}: {found[name]}" for name in ("gpu", "tuning") if isinstance(found.get(name), str))]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print tables, write files."""
    from rich.console import Console

    command = parser()
    given = command.parse_args(arguments)
    what = chosen(given, command)
    try:
        found = earlier(given.source) if given.source else measured_now(what, given)
    except (BenchmarkError, OSError) as error:
        sys.exit(f"benchmarks: {error}")
    console = Console(width=None if sys.stdout.isatty() else 160)
    for table in shown(found, given.device):
        console.print(table.rich())
    for line in remarks(found, given):
        console.print(line)
    if "performance" in what:
        from benchmarks import page

        for path in page.write(found, given.docs):
            console.print(str(path))


if __name__ == "__main__":
    main()
