"""Write a run's report: one page in one file that needs no network."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from markupsafe import Markup

from polyfed import __version__
from polyfed.engine.checkpoint import write_atomically
from polyfed.errors import UserError
from polyfed.report.answer_figures import answer_cards
from polyfed.report.blending_figures import clients_card as blended_clients_card
from polyfed.report.blending_figures import heads_card
from polyfed.report.client_figures import client_cards
from polyfed.report.entries import NOTHING
from polyfed.report.expert_figures import expert_use_card
from polyfed.report.facts import MANY_TASKS, description, judged_tasks, refusals, tiles
from polyfed.report.figures import bytes_card, global_card, metric_cards, training_card
from polyfed.report.formats import named, plural, short, shown
from polyfed.report.gain_figures import gain_card
from polyfed.report.gains import LOCAL, gains_over_baseline
from polyfed.report.neighbour_figures import neighbours_card
from polyfed.report.palette import group_palette
from polyfed.report.participation import participation_card
from polyfed.report.picture_figures import picture_cards
from polyfed.report.plotting import Card, Table
from polyfed.report.records import RunData, load_run
from polyfed.report.router_figures import router_card
from polyfed.report.size_figures import sizes_card
from polyfed.report.skew_figures import label_distance_card
from polyfed.report.unimodal_figures import alone_card, imbalance_card
from polyfed.report.update_figures import agreement_card, divergence_card

MANY_REFUSALS = 50


def write_report(folder: Path) -> Path:
    """Read a run folder, write ``report.html`` into it and return its path. Raises UserError as ``load_run`` does."""
    run = load_run(folder)
    return save(run.folder / "report.html", render("report.html", report_content(run)))


def report_content(run: RunData) -> dict[str, Any]:
    """Gather everything the report's template shows."""
    palette = group_palette(run)
    sections = [
        (
            "progress",
            "Progress",
            _present(*metric_cards(run, palette), global_card(run), training_card(run, palette)),
        ),
        ("modalities", "Modalities", _present(alone_card(run, palette), imbalance_card(run))),
        ("experts", "Experts", _present(expert_use_card(run, palette))),
        ("adapters", "Adapters", _present(router_card(run), neighbours_card(run))),
        ("blending", "Blending", _present(heads_card(run), blended_clients_card(run))),
        ("updates", "Clients’ updates", _present(agreement_card(run), divergence_card(run))),
        (
            "clients",
            "Clients",
            _present(
                _gain_card(run), *client_cards(run, palette), label_distance_card(run), participation_card(run, palette)
            ),
        ),
        ("generated", "Generated samples", picture_cards(run)),
        ("written", "Written answers", answer_cards(run)),
        ("traffic", "Communication", _present(bytes_card(run), sizes_card(run))),
    ]
    drawn = [(id_, name, cards) for id_, name, cards in sections if cards]
    chapters = [*((id_, name) for id_, name, _ in drawn), ("refused", "Refused replies"), ("reproduce", "Reproduce")]
    return {
        "title": short(run.summary.experiment, 80) or "Federated run",
        "kicker": f"polyfed report: {short(run.summary.method, 60)}, seed {run.summary.seed}",
        "lead": description(run),
        "chapters": chapters,
        "tiles": tiles(run),
        "remarks": _remarks(run, palette.folded),
        "sections": drawn,
        "refused": _refused_table(run),
        "provenance": _provenance(run),
        "experiment": run.text,
        "baseline": "baseline/report.html" if (run.folder / "baseline" / "report.html").is_file() else "",
    }


def _gain_card(run: RunData) -> Card | None:
    judged = list(judged_tasks(run))[:MANY_TASKS]
    method = run.baseline.method if run.baseline else ""
    return gain_card(gains_over_baseline(run, judged), "local training" if method == LOCAL else short(method))


def _present(*cards: Card | None) -> list[Card]:
    return [card for card in cards if card]


def _remarks(run: RunData, folded: int) -> list[str]:
    remarks = []
    if run.summary.best:
        best = run.summary.best
        tasks = [(task, metric) for task, metric in judged_tasks(run) if metric in best.tasks.get(task, {})]
        figures = [
            f"{short(task)} {named(metric)} {shown(metric, best.tasks[task][metric].mean)}" for task, metric in tasks
        ]
        ending = f": {', '.join(figures[:MANY_TASKS])}" if figures else ""
        remarks.append(
            f"Best round by the {short(best.split)} score: {best.round}{ending}. The tiles show the last round."
        )
    if run.summary.stopped:
        remarks.append(f"Stopped early: {short(run.summary.stopped, 200)}.")
    if not run.history.evaluations:
        remarks.append("No evaluation was recorded, so there are no curves over the rounds.")
    if not run.summary.tasks:
        remarks.append("The summary holds no metric of any task.")
    if len(run.summary.tasks) > MANY_TASKS:
        remarks.append(f"Of {len(run.summary.tasks)} tasks, the first {MANY_TASKS} are shown; summary.json holds all.")
    if folded:
        remarks.append(f"{plural(folded, 'small modality group')} share one colour as “other groups”.")
    return remarks


def _refused_table(run: RunData) -> Table:
    found = refusals(run)
    rows = [
        (str(each.round), str(each.client), short(each.component or "whole reply", 60), short(each.reason, 200))
        for each in found[:MANY_REFUSALS]
    ]
    note = ""
    if len(found) > MANY_REFUSALS:
        reasons = Counter(short(each.reason, 80) for each in found).most_common(3)
        common = ", ".join(f"{reason} ({number:,} times)" for reason, number in reasons)
        note = f"The first {MANY_REFUSALS} of {len(found):,} refused replies. Most often: {common}."
    return Table(("round", "client", "component", "why"), tuple(rows), texts=4, note=note)


def _provenance(run: RunData) -> list[tuple[str, str]]:
    resolved = run.setting("resolved_with")
    versions = resolved if isinstance(resolved, dict) else {"polyfed": run.summary.polyfed}
    text = ", ".join(f"{short(str(name))} {short(str(version))}" for name, version in versions.items())
    digests = {"server digest": run.summary.digest, "personal digest": run.summary.personal_digest}
    known = [(name, short(digest, 80)) for name, digest in digests.items() if digest not in NOTHING]
    return [("versions", text), ("seed", str(run.summary.seed)), *known]


# ------------------------------------------------------------------------------------------------ rendering


def render(template: str, content: dict[str, Any]) -> str:
    """Fill a template of this package. Everything but our own style and scripts is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    folder = Path(__file__).parent / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        version=__version__,
        style=_trusted(folder / "style.css"),
        script=_trusted(folder / "page.js"),
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),  # noqa: S704 - plotly's own code
        **content,
    )


def _trusted(path: Path) -> Markup:
    return Markup(path.read_text(encoding="utf-8"))  # noqa: S704 - a file of this package


def save(path: Path, page: str) -> Path:
    """Write a page whole or not at all and return its path. Raises UserError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page.encode())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    return path
