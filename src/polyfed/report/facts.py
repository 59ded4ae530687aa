"""What a run says in words and key figures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from polyfed.report.entries import ClientResult, Refusal
from polyfed.report.formats import (
    count,
    duration,
    gain,
    listed,
    lower_is_better,
    main_metric,
    named,
    plural,
    short,
    shown,
    shown_gain,
    size,
)
from polyfed.report.records import RunData

MANY_TASKS = 6
"""Tasks beyond this many get no tiles and plots of their own."""


@dataclass(frozen=True)
class Tile:
    """A key figure: what it is, the figure, and a remark. ``trend`` is "better", "worse" or empty."""

    title: str
    figure: str
    remark: str = ""
    trend: str = ""


@dataclass(frozen=True)
class ClientScore:
    """One client's metric on one task, and the baseline's value where there is one (else NaN)."""

    id: int
    name: str
    group: str
    examples: int
    metric: str
    value: float
    reference: float

    @property
    def gain(self) -> float:
        """By how much the client is better off than with the baseline; NaN where there is none."""
        return gain(self.metric, self.value, self.reference)


def judged_tasks(run: RunData) -> Iterator[tuple[str, str]]:
    """Yield each task with the metric it is judged by."""
    for task, metrics in run.summary.tasks.items():
        metric = main_metric(metrics)
        if metric is not None:
            yield task, metric


def client_scores(run: RunData, task: str, metric: str) -> list[ClientScore]:
    """Return every client's score on a task, in ascending client id."""
    references = {client.id: client for client in run.baseline.clients} if run.baseline else {}
    return [
        ClientScore(
            client.id,
            client.name or f"client {client.id}",
            client.group,
            client.examples,
            metric,
            client.metrics[task][metric],
            _value(references.get(client.id), task, metric),
        )
        for client in run.clients
        if metric in client.metrics.get(task, {})
    ]


def _value(client: ClientResult | None, task: str, metric: str) -> float:
    return client.metrics.get(task, {}).get(metric, math.nan) if client else math.nan


def refusals(run: RunData) -> list[Refusal]:
    """Return all refused replies in the order of the rounds; the summary's where the records hold none."""
    found = run.history.refused or list(run.summary.refused)
    return sorted(found, key=lambda refusal: (refusal.round, refusal.client))


def description(run: RunData) -> str:
    """Say in a paragraph what was trained, on what, by whom and how it was judged."""
    summary = run.summary
    width = run.setting("model", "width")
    model = _named(run.setting("model", "name"), "a model")
    sized = f"{model} (width {width})" if width is not None else model
    rounds, clients = plural(summary.rounds, "round"), plural(len(summary.clients), "client")
    parts = [
        f"{summary.method} trained {sized} on {_named(run.setting('data', 'name'), 'a data set')} "
        f"for {rounds} with {clients}.",
        _groups(run),
        _scenario(run),
        "Each client is judged on test samples, which were not trained on; a figure without further remark is the mean "
        "over clients." if summary.clients else "",
    ]  # fmt: skip
    return " ".join(part for part in parts if part)


def _named(value: Any, otherwise: str) -> str:
    return short(str(value), 60) if value else otherwise


def _groups(run: RunData) -> str:
    sizes = Counter(client.group for client in run.clients)
    if not sizes:
        return ""
    if len(sizes) == 1:
        return f"All hold {short(next(iter(sizes)), 60)}."
    front = [f"{number:,} hold {short(group, 60)}" for group, number in sizes.most_common(7)]
    rest = sum(sizes.values()) - sum(number for _, number in sizes.most_common(7))
    return f"Of the clients, {listed([*front, f'{rest:,} hold other sets'] if rest else front)}."


def _scenario(run: RunData) -> str:
    kinds = {"partition": "samples", "modalities": "modalities", "tasks": "tasks"}
    found = [(noun, _with_options(run.setting("scenario", key))) for key, noun in kinds.items()]
    (first, *rest) = [(noun, text) for noun, text in found if text] or [("", "")]
    parts = [f"{first[0].capitalize()} were dealt out by {first[1]}", *(f"{noun} by {text}" for noun, text in rest)]
    return f"{', '.join(parts)}." if first[0] else ""


def _with_options(part: Any) -> str:
    if not isinstance(part, Mapping) or not part.get("name"):
        return ""
    scalars = [(key, value) for key, value in part.items() if key != "name" and isinstance(value, (int, float, str))]
    options = ", ".join(f"{short(str(key))} {short(str(value))}" for key, value in scalars[:5])
    name = short(str(part["name"]))
    return f"{name} ({options})" if options else name


def tiles(run: RunData) -> list[Tile]:
    """Return the key figures of a run."""
    judged = list(judged_tasks(run))[:MANY_TASKS]
    figures = [tile for task, metric in judged for tile in _task_tiles(run, task, metric)]
    return [*figures, *_cost_tiles(run)]


def _task_tiles(run: RunData, task: str, metric: str) -> Iterator[Tile]:
    statistic = run.summary.tasks[task][metric]
    spread = (
        f"± {shown(metric, statistic.std)} between clients"
        if math.isfinite(statistic.std) and len(run.clients) > 1
        else ""
    )
    better = ", lower is better" if lower_is_better(metric) else ""
    yield Tile(f"{short(task)}: {named(metric)}{better}", shown(metric, statistic.mean), spread)
    reference = run.baseline.tasks.get(task, {}).get(metric) if run.baseline else None
    if run.baseline and reference:
        change = gain(metric, statistic.mean, reference.mean)
        trend = "better" if change > 0 else "worse" if change < 0 else ""
        remark = f"{short(run.baseline.method)} reaches {shown(metric, reference.mean)}"
        yield Tile(f"{short(task)}: gain over {short(run.baseline.method)}", shown_gain(metric, change), remark, trend)


def _cost_tiles(run: RunData) -> Iterator[Tile]:
    summary = run.summary
    traffic = f"{size(summary.bytes.up)} up, {size(summary.bytes.down)} down"
    yield Tile("travelled", size(summary.bytes.both), traffic)
    each = f"{duration(summary.wall_seconds / summary.rounds)} per round" if summary.rounds else ""
    yield Tile("time", duration(summary.wall_seconds), each)
    kinds = len({client.group for client in summary.clients})
    yield Tile("clients", count(len(summary.clients)), plural(kinds, "modality group"))
    mean = summary.parameters.client_mean
    carried = f"a client carries {count(mean)} on average" if math.isfinite(mean) else ""
    yield Tile("parameters", count(summary.parameters.server), carried)


def gains_in_words(scores: list[ClientScore], baseline: str) -> str:
    """Say how many clients are better off than with the baseline, and who loses most."""
    known = [score for score in scores if math.isfinite(score.gain)]
    if not known:
        return ""
    ahead = sum(score.gain > 0 for score in known)
    behind = [score for score in known if score.gain < 0]
    verb = "gains" if ahead == 1 else "gain"
    words = [f"{ahead:,} of {plural(len(known), 'client')} {verb} over {short(baseline)}"]
    if behind:
        worst = min(behind, key=lambda score: score.gain)
        lost = "1 loses:" if len(behind) == 1 else f"{len(behind):,} lose, most of all"
        words.append(f"{lost} {short(worst.name)} ({shown_gain(worst.metric, worst.gain)})")
    else:
        words.append("none loses")
    same = len(known) - ahead - len(behind)
    if same:
        words.append(f"{same:,} {'ends' if same == 1 else 'end'} the same")
    return f"{'; '.join(words)}."
