"""What the models of language tasks wrote: the picture, what was asked, the right answers, and the model's."""

from __future__ import annotations

from polyfed.data.boxes import Box
from polyfed.engine.answers import Answered, Sheet
from polyfed.report.answers import read_answers
from polyfed.report.facts import judged_tasks
from polyfed.report.formats import named, short, shown, whole
from polyfed.report.plotting import Card, Example, Frame, Written
from polyfed.report.png import address, png
from polyfed.report.records import RunData

FEW_PIXELS = 64
"""Pictures with sides up to this are drawn with their pixels, larger ones smoothly."""


def answer_cards(run: RunData) -> list[Card]:
    """Show what models wrote, one card per task; none where nothing was kept."""
    by_task: dict[str, list[Sheet]] = {}
    for one in read_answers(run.folder):
        by_task.setdefault(one.task, []).append(one)
    return [_card(run, task, found) for task, found in by_task.items()]


def _card(run: RunData, task: str, found: list[Sheet]) -> Card:
    text = (
        "What each client's model writes after the last round: its first test samples, not chosen ones. The figure is "
        "the client's, over all its test samples."
    )
    boxed = any(one.boxes for sheet in found for one in sheet.samples)
    note = "The solid green box is the right one, the dashed orange box the model's." if boxed else ""
    ordered = sorted(found, key=lambda sheet: sheet.client)
    return Card(short(task), text, (), note=note, wide=True, written=tuple(_written(run, one) for one in ordered))


def _written(run: RunData, sheet: Sheet) -> Written:
    known = {client.id: client for client in run.clients}.get(sheet.client)
    name = known.name if known and known.name else f"client {sheet.client}"
    metrics = known.metrics.get(sheet.task, {}) if known else {}
    metric = dict(judged_tasks(run)).get(sheet.task, "")
    text = f"{named(metric)} {shown(metric, metrics[metric])}" if metric in metrics else ""
    return Written(whole(name), text, tuple(_example(sheet, place) for place in range(len(sheet.samples))))


def _example(sheet: Sheet, place: int) -> Example:
    one, picture = sheet.samples[place], sheet.pictures.get(place)
    verdict, mark = _verdict(one)
    return Example(
        "" if picture is None else address(png(picture)),
        picture is not None and max(picture.shape) <= FEW_PIXELS,
        tuple(_frame(kind, one.boxes[kind]) for kind in ("right", "written") if kind in one.boxes),
        whole(one.question),
        tuple(map(whole, one.answers)),
        whole(one.written),
        verdict,
        mark,
    )


def _verdict(one: Answered) -> tuple[str, str]:
    """Say how a sample is judged: right, wrong, or how far; captions are only judged all together."""
    accuracy = one.scores.get("accuracy")
    if accuracy is None:
        return "", ""
    mark = "right" if accuracy == 1 else "wrong" if accuracy == 0 else ""
    words = mark or f"{100 * accuracy:.0f} % agree"
    if "iou" not in one.scores:
        return words, mark
    return f"{words}, no box" if "written" not in one.boxes else f"{words}, overlap {one.scores['iou']:.2f}", mark


def _frame(kind: str, box: Box) -> Frame:
    """Cut a box at the edges of the square; what is left of one outside of it is a line at the edge."""
    left, top, right, bottom = (min(max(edge, 0.0), 1.0) for edge in box)
    return Frame(kind, *(f"{100 * value:.2f}" for value in (left, top, right - left, bottom - top)))
