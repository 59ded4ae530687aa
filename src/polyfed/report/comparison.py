"""Write a page that compares several runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from polyfed.report.comparison_figures import cost_card, curve_cards, judged_columns, method_colours
from polyfed.report.formats import listed, plural, short
from polyfed.report.gain_figures import gain_card
from polyfed.report.page import render, save
from polyfed.report.plotting import Card
from polyfed.report.records import RunData, load_run
from polyfed.report.rounds_figures import rounds_card
from polyfed.report.same_bits import same_bits
from polyfed.report.tables import ComparisonTable, comparison_table
from polyfed.report.unimodal_comparison import unimodal_card
from polyfed.report.update_comparison import updates_card
from polyfed.report.variants import Variant, shared_differences, variants


def write_comparison(folders: Sequence[Path], out: Path) -> Path:
    """Read run folders, write a page at ``out`` that compares them and return its path.

    Raises UserError if a folder cannot be read or two runs cannot be told apart.
    """
    runs = [load_run(folder) for folder in folders]
    out = Path(out)
    return save(out, render("comparison.html", comparison_content(runs, out.parent)))


def comparison_content(runs: Sequence[RunData], place: Path) -> dict[str, Any]:
    """Gather everything the comparison's template shows; links are relative to ``place``."""
    table = comparison_table(runs)
    found = variants(runs)
    colours = method_colours(found)
    cards = [
        ("progress", "Progress", curve_cards(found, table, colours)),
        ("modalities", "Modalities", [card for card in (unimodal_card(found, colours),) if card]),
        ("updates", "Clients’ updates", [card for card in (updates_card(found, colours),) if card]),
        (
            "cost",
            "Cost",
            [
                card
                for card in (
                    rounds_card(found, table, colours),
                    cost_card(table, colours),
                )
                if card
            ],
        ),
    ]
    cards.append(("transfer", "Transfer", [card for card in (_gain_card(table),) if card]))
    sections = [section for section in cards if section[2]]
    chapters = [("table", "Table"), *((id_, name) for id_, name, _ in sections), ("runs", "Runs")]
    return {
        "title": f"Comparison of {plural(len(found), 'method')}"
        if len(found) > 1
        else f"Seeds of {short(found[0].label, 60)}",
        "kicker": "polyfed comparison",
        "lead": _lead(found, len(runs)),
        "chapters": chapters,
        "heads": _heads(table),
        "rows": [_row(table, index) for index in range(len(table.rows))],
        "remarks": _remarks(found, table),
        "sections": sections,
        "runs": [_run(one, run, place) for one in found for run in one.runs],
    }


def _gain_card(table: ComparisonTable) -> Card | None:
    judged = [column[:2] for column in judged_columns(table)]
    return gain_card([one for one in table.gains if (one.task, one.metric) in judged], "local training")


def _lead(found: Sequence[Variant], runs: int) -> str:
    names = [short(one.label, 60) for one in found]
    seeds = sorted({run.summary.seed for one in found for run in one.runs})
    data = sorted({short(str(run.setting("data", "name") or "unknown data")) for one in found for run in one.runs})
    shown = listed(names[:10]) if len(names) <= 10 else f"{', '.join(names[:10])} and {len(names) - 10} more"
    return (
        f"{plural(runs, 'run')} on {listed(data)}: {shown}; {plural(len(seeds), 'seed')}. Figures are of the last "
        "round on test samples, first averaged over clients, then over seeds; ± is the standard deviation over seeds."
    )


def _heads(table: ComparisonTable) -> list[tuple[str, int, list[str]]]:
    """Return the heading of each task and metric, with the clients its columns stand for."""
    heads: list[tuple[str, int, list[str]]] = []
    for judged in (column for column in table.columns if column.group is None):
        columns = [column for column in table.columns if column[:2] == judged[:2]]
        title = judged.heading.removesuffix(f", {judged.clients}")
        heads.append((title, len(columns), [column.clients for column in columns]))
    return heads


def _row(table: ComparisonTable, index: int) -> list[tuple[str, bool]]:
    """Return a row's cells as text, and whether each is the best of its column."""
    row, texts = table.rows[index], table.lines()[index]
    wins = [False, False, False, *(column in row.wins for column in table.columns), False, False]
    return list(zip(texts, wins, strict=True))


def _remarks(found: Sequence[Variant], table: ComparisonTable) -> list[str]:
    remarks = []
    differences = shared_differences(found)
    if differences:
        more = f"; and {len(differences) - 8} more settings" if len(differences) > 8 else ""
        remarks.append(f"Besides the method, the runs differ in {'; '.join(differences[:8])}{more}.")
    for group in same_bits(found):
        names = listed(short(one.label, 60) for one in group)
        remarks.append(f"{names} gave the same bits: with these settings they are the same method.")
    if table.caution:
        remarks.append(table.caution)
    counts = {len(one.runs) for one in found}
    if counts == {1}:
        remarks.append("Every method ran with one seed, so there is no ±: differences may be chance.")
    elif len(counts) > 1:
        remarks.append("Not every method ran with the same number of seeds.")
    judged, tasks = len(judged_columns(table)), sum(column.group is None for column in table.columns)
    if judged < tasks:
        remarks.append(f"Plots show the first {judged} of {tasks} tasks.")
    return remarks


def _run(one: Variant, run: RunData, place: Path) -> dict[str, str]:
    report = run.folder / "report.html"
    name, value = run.summary.told_digest
    link = quote(Path(os.path.relpath(report.resolve(), place.resolve())).as_posix()) if report.is_file() else ""
    return {
        "method": short(one.label, 60),
        "seed": str(run.summary.seed),
        "name": short(run.summary.experiment, 60),
        "rounds": f"{run.summary.rounds:,}",
        "digest": value[:12] if name == "digest" else f"{value[:12]} ({name})",
        "link": link,
        "folder": run.folder.name,
    }
