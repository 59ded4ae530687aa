"""docs/performance.md and its pictures, from what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.plot import Point, lines

Values = Mapping[str, Any]

INTRODUCTION = """\
How long a round takes, beside the plainest loop that does the same work, and what it costs in memory. All figures on
this page but those of the section "Other systems" come from one command:

```bash
python -m benchmarks performance
```

## How to read this

**Workloads.** Synthetic data and small models, so that what is measured is the engine; W4 is real data.

| | clients | per round | samples each | batch | steps per client | model |
|---|---:|---:|---:|---:|---:|---|
| W1: many small clients | 1,000 | 50 | 64 images of 28×28 | 16 | 4 | CNN, 214,090 parameters |
| W2: few large clients | 10 | 10 | 600 images of 28×28 | 32 | 19 | the same CNN |
| W3: tiny model, so that overhead counts | 1,000 | 100 | 20 vectors of 64 | 20 | 1 | MLP, 4,810 parameters |
| W4: clients that do not look alike | 200 | 40 | 2 to 14 digits | 16 | 2 | up to two encoders and two heads |

W1 to W3 train with SGD, one local epoch, and average (FedAvg). W4 has six groups of clients: images, sounds or both,
each with one task or two; Adam, two local epochs.

**The bare loop** is the yardstick: one resident PyTorch model (in W4 one per group) and one thread. It copies the
global parameters in, takes the SGD steps of each client, adds up what comes out and divides. It knows no federation,
sends no messages, checks nothing, records nothing. polyfed runs as from the command line, with all its checks
and records; checkpoints are measured by themselves, and nobody evaluates.

**The ratio** is polyfed's seconds per round divided by those of the bare loop: 0.50 means twice as fast as the loop,
2.00 means half as fast. Both run in processes of their own and take turns every few rounds, who begins changes from
turn to turn, and each turn is held against the neighbouring turn of the other. So a machine that is busy with other
things slows both, and the ratio means more than the seconds do. Figures are medians; quartiles are in parentheses,
and a difference smaller than they are apart is none.

**Start to first round** counts from the moment PyTorch and the data are there: importing polyfed, building federation
and model, and the whole first round. **Memory** is the largest proportional set size of the process and all processes
it started, so that pages they share count once; it includes PyTorch and the data.
"""

PROFILE = """\
One worker, all rounds after the first. A timer interrupts the process about a thousand times a second, and the time
since the last interrupt is booked to what it was doing. Training is forward pass, backward pass and update; batching
is fetching and stacking samples; checks are the screening of replies and the counting of bytes; the rest is selecting
clients, making orders and the conversation between method and engine.
"""

LIMITS = """\
**What stands in the way.** Of a round of W1 with one worker all but a twelfth or so is training, and that is PyTorch's
convolutions: they are the floor under its ratio. W3 trains 100 clients in one stacked step, which takes about as long
as the whole round may for its target (a quarter of the bare loop); and every client is a client, with its own samples,
orders, reply, checks and record, which costs about 50 to 90 µs each. Its ratio falls with the size of the cohort, but
not to a quarter. Between models small enough to be stacked and models whose kernels take most of the time, one client
after another costs about 0.4 ms more than in the bare loop: the largest ratios on this page.
"""

OTHERS = """\
Measured **earlier, not by this command**, on the same kind of machine (two cores, CPU, torch 2.13.0), each beside the
bare loop of its own run: ratios to that loop.

| system | W1 | W2 | W3 | start-up and first round, W3 | peak memory, W1 |
|---|---:|---:|---:|---:|---:|
| pfl-research 0.6.0, one process | 1.17 | 0.76 | 3.0 | 3.4 s | 481 MB |
| pfl-research 0.6.0, two processes | 0.64–1.01 | 0.40–0.5 | 2.0 | 4.5 s | 1115 MB |
| FedJAX 0.0.17, two threads | 1.02 | 0.72 | 3.0 | 2.1 s | 476 MB |
| Flower 1.41 simulation (Ray), two actors | 2.36 | 0.73 | 48 | 14.5 s | 2202 MB |
"""

SELECTING = """\
`divfl` and `bms` remember an update of every client and compare them all. One selection is choosing the cohort and,
after its training, renewing what is remembered of it; times are those of the processor (one core, double precision).
Of a model of 1,000,000 parameters and 1,000 clients not the updates themselves are kept but sketches of 16,384 numbers,
which is what "remembered" counts; it is part of the state, so every checkpoint holds it too. `bms` keeps three per
client: of all encoders, and of each. The start-up pass, once per run, takes in the updates of all clients; the time to
train them is not in it. "Peak" is the most memory in use beyond what the process had before.
"""

CURVES = {
    "cohort": ("Clients per round", "clients per round", "seconds per round"),
    "registered": ("Registered clients, 50 of them per round", "registered clients", "seconds per round"),
    "model": ("Parameters of the model, 20 clients per round", "parameters", "seconds per round"),
    "workers": ("Workers", "workers", "ratio to the bare loop"),
}
EXPLAINED = {
    "cohort": "W3 with more or fewer clients per round.",
    "registered": "W3's model and 50 clients per round, of ever more clients that exist. They share 20,000 samples, "
    "so that memory shows what a client costs, not its data. The ratio is to 1,000 clients.",
    "model": "W3 with more or fewer units in its hidden layer, 20 clients per round.",
    "workers": "Processes that train, on W1 and W3.",
}


def picture(name: str, measured: Values) -> str:
    """Draw one scaling curve."""
    title, x, y = CURVES[name]
    key = "ratio" if name == "workers" else "seconds"
    series = {
        label: [Point(point["x"], *point[key]) for point in points] for label, points in measured["series"].items()
    }
    return lines(title, x, y, series, logarithmic=name != "workers")


def curves(scaling: Values) -> list[str]:
    """Return the section of the scaling curves."""
    parts = ["## How it grows"]
    for name, held in scaling.items():
        if held["series"]:
            title, x = tables.SCALING_TITLES[name]
            parts += [f"### {CURVES[name][0]}", EXPLAINED[name], f"![{CURVES[name][0]}](images/performance-{name}.svg)"]
            parts.append(tables.points_table(title, x, held).markdown())
    return parts


def machine(held: Values) -> str:
    """Describe the machine in a sentence."""
    gpu = f", {held['gpu']}" if held["gpu"] else ", no GPU used"
    return (
        f"Measured on {held['cores']} cores ({held['processor']}{gpu}), {held['system']}, Python {held['python']}, "
        f"torch {held['torch']}, polyfed {held['polyfed']}; repetitions in fresh processes: {held['repeats']}."
    )


def page(measured: Values) -> str:
    """Return docs/performance.md."""
    sections: list[str] = ["# Performance", INTRODUCTION.strip(), "## Rounds", machine(measured["machine"])]
    sections.append(tables.workload_table(measured["workloads"]).markdown())
    sections += ["## Targets", tables.target_table(measured).markdown()]
    sections += ["## Where the time goes", PROFILE.strip(), tables.profile_table(measured["workloads"]).markdown()]
    sections.append(LIMITS.strip())
    if "scaling" in measured:
        sections += curves(measured["scaling"])
    if "reduction" in measured:
        table = tables.reduction_table(measured["reduction"])
        sections += ["## Averaging large models", f"{table.title}. Memory is that beyond the replies themselves."]
        sections.append(table.markdown())
    if "checkpoint" in measured:
        sections += ["## Checkpoints", "W1, five rounds per turn; the ratio is to no checkpoints."]
        sections.append(tables.checkpoint_table(measured["checkpoint"]).markdown())
    if "selection" in measured:
        table = tables.selection_table(measured["selection"])
        sections += ["## Selecting clients by their updates", SELECTING.strip(), f"{table.title}:", table.markdown()]
    sections += ["## Other systems", OTHERS.strip()]
    return "\n\n".join(sections) + "\n"


def write(measured: Values, docs: Path) -> Sequence[Path]:
    """Write the page and its pictures; return their paths."""
    target = docs / "performance.md"
    target.write_text(page(measured), encoding="utf-8")
    written = [target]
    (docs / "images").mkdir(exist_ok=True)
    for name, held in measured.get("scaling", {}).items():
        if held["series"]:
            written.append(docs / "images" / f"performance-{name}.svg")
            written[-1].write_text(picture(name, held), encoding="utf-8")
    return written
