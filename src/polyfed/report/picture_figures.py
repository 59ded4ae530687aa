"""Generated samples: what a client's model made, beside what was to be made and what it was made from."""

from __future__ import annotations

from functools import cache

from polyfed.engine.pictures import Sampled, Shown
from polyfed.report.facts import judged_tasks
from polyfed.report.formats import named, short, shown, whole
from polyfed.report.pictures import read_pictures
from polyfed.report.plotting import Card, Gallery, Picture, Strip
from polyfed.report.png import address, png
from polyfed.report.records import RunData

INPUT = "input."
ROWS = {"target": "true", "prediction": "generated"}
SPECTROGRAMS = "Of spectrograms, time runs to the right and frequency upwards; bright is loud."


def picture_cards(run: RunData) -> list[Card]:
    """Show the generated samples of a run, one card per task; none where none were kept."""
    by_task: dict[str, list[Sampled]] = {}
    for one in read_pictures(run.folder):
        by_task.setdefault(one.task, []).append(one)
    return [_card(run, task, found) for task, found in by_task.items()]


def _card(run: RunData, task: str, found: list[Sampled]) -> Card:
    text = (
        "Test samples after the last round: what a client's model was given, what it should make, and what it makes. "
        "The figure is the client's, over all its test samples."
    )
    sounds = any(how.form == "audio" for one in found for how in one.shown.values())
    galleries = tuple(_gallery(run, one) for one in found)
    return Card(short(task), text, (), note=SPECTROGRAMS if sounds else "", wide=True, galleries=galleries)


def _gallery(run: RunData, one: Sampled) -> Gallery:
    known = {client.id: client for client in run.clients}.get(one.client)
    name = known.name if known and known.name else f"client {one.client}"
    metrics = known.metrics.get(one.task, {}) if known else {}
    metric = dict(judged_tasks(run)).get(one.task, "")
    scored = f"{named(metric)} {shown(metric, metrics[metric])}" if metric in metrics else ""
    inputs = sorted(key for key in one.shown if key.startswith(INPUT))
    strips = tuple(_strip(one, key) for key in [*inputs, *ROWS])
    return Gallery(whole(name), ", ".join(part for part in (known.group if known else "", scored) if part), strips)


def _strip(one: Sampled, key: str) -> Strip:
    how = one.shown[key]
    name = ROWS.get(key) or short(key.removeprefix(INPUT))
    scale = "" if (how.low, how.high) == (0, 1) else f"{how.low:.3g} to {how.high:.3g}"
    pictures = [
        Picture(_drawn(one, key, how, sample) if there else "", f"{name}, sample {sample + 1}")
        for sample, there in enumerate(how.present)
    ]
    return Strip(name, scale, tuple(pictures))


def _drawn(one: Sampled, key: str, how: Shown, sample: int) -> str:
    values = one.values[key][sample]
    if how.form == "audio" and len(values) == 1:
        return address(png(values.flip(1), heat()))  # the first row is the lowest frequency and belongs at the bottom
    return address(png(values))


@cache
def heat() -> bytes:
    """Return 256 colours from dark to bright (Magma, even steps of lightness): red, green and blue of each."""
    from plotly.colors import sample_colorscale, unlabel_rgb

    colours = sample_colorscale("Magma", [number / 255 for number in range(256)])
    return bytes(round(float(part)) for colour in colours for part in unlabel_rgb(colour))
