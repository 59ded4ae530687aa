"""Pictures of experts and of clients' updates: what they show, and that only runs which recorded it have them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from tests.engine.test_experts_in_federations import MODEL
from tests.worlds import tiny

from polyfed.errors import UserError
from polyfed.experiment.running import run
from polyfed.report.comparison import write_comparison
from polyfed.report.comparison_figures import method_colours
from polyfed.report.component_kinds import kinds_of
from polyfed.report.expert_figures import MANY_CLIENTS, MANY_TYPES, NAMED_CLIENTS, expert_use_card, shares
from polyfed.report.page import write_report
from polyfed.report.palette import group_palette
from polyfed.report.plotting import Card
from polyfed.report.records import RunData, load_run
from polyfed.report.update_comparison import updates_card
from polyfed.report.update_figures import MANY_COMPONENTS, MANY_ROWS, agreement_card, divergence_card
from polyfed.report.variants import variants

Make = Callable[..., Path]
USE = {
    "digit": {
        "image": {"general": {"general": 0.1, "digit": 0.2}, "image": {"general": 0.3, "digit": 0.1}},
        "photo": {"general": {"general": 0.2, "digit": 0.05}, "image": {"general": 0.03, "digit": 0.02}},
    },
    "parity": {"image": {"general": {"general": 0.5, "parity": 0.5}}},
}
GRID = ("expert.general.general", "expert.general.digit", "expert.image.general", "expert.image.digit", "head.digit")


def add(folder: Path, lines: Iterable[dict[str, Any]]) -> Path:
    with (folder / "records.jsonl").open("a") as records:
        records.writelines(json.dumps(line) + "\n" for line in lines)
    return folder


def use(client: int, weights: Any, number: int = 5) -> dict[str, Any]:
    return {"kind": "expert_use", "round": number, "client": client, "weights": weights}


def agreement(number: int, **cosines: float) -> dict[str, Any]:
    named = {name.replace("__", "."): value for name, value in cosines.items()}
    return {"kind": "agreement", "round": number, "exchange": 0, "step": "train", "cosine": named} | {
        "clients": dict.fromkeys(named, 3)
    }


def divergence(client: int, number: int, **distances: float) -> dict[str, Any]:
    named = {name.replace("__", "."): value for name, value in distances.items()}
    line = {"kind": "client", "round": number, "step": "train", "client": client, "modalities": ["image"]}
    return {**line, "examples": 9, "divergence": named}


def drawn(card: Card | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    assert card is not None
    spec = json.loads(str(card.plots[0].spec))
    return spec["data"], spec["layout"]


def map_of(data: RunData) -> Card | None:
    return expert_use_card(data, group_palette(data))


# ------------------------------------------------------------------------------------------------ experts


def test_weights_are_summed_over_modalities_and_averaged_over_tasks(make_run: Make, tmp_path: Path) -> None:
    data = load_run(add(make_run(tmp_path / "run", clients=2), [use(0, USE)]))
    assert shares(data, 0) == {
        ("general", "general"): pytest.approx((0.1 + 0.2 + 0.5) / 2),
        ("general", "digit"): pytest.approx(0.125),
        ("general", "parity"): pytest.approx(0.25),
        ("image", "general"): pytest.approx(0.165),
        ("image", "digit"): pytest.approx(0.06),
    }
    assert sum(shares(data, 0).values()) == pytest.approx(1.0)
    assert shares(data, 1) == {}


def test_the_map_has_a_row_per_client_and_a_column_per_expert(make_run: Make, tmp_path: Path) -> None:
    other = {"digit": {"audio": {"general": {"general": 0.25, "digit": 0.75}}}}
    lines = [use(1, USE, 0), use(0, USE), use(1, other), use(1, {"digit": {}}, 3)]  # the last line is of an older round
    card = map_of(load_run(add(make_run(tmp_path / "run", clients=3), lines)))
    (trace,), layout = drawn(card)
    assert layout["xaxis"]["ticktext"] == [
        "general → general",
        "general → digit",
        "general → parity",
        "image → general",
        "image → digit",
    ]
    rows = layout["yaxis"]["ticktext"]
    assert [row.split(" <")[0] for row in rows] == ["client 1", "client 0"]  # by group: audio, image
    palette = group_palette(load_run(tmp_path / "run"))
    assert all(palette.colours[group] in row for group, row in zip(("audio", "image"), rows, strict=True))
    assert trace["z"] == [[0.25, 0.75, None, None, None], [0.4, 0.125, 0.25, 0.165, 0.06]]
    assert (trace["zmin"], trace["zmax"]) == (0, 0.75)
    assert trace["customdata"][0][1] == "client 1, general → digit"


@pytest.mark.parametrize("clients", [1, NAMED_CLIENTS, NAMED_CLIENTS + 1, MANY_CLIENTS + 1, 1000])
def test_few_and_many_clients(clients: int, make_run: Make, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", clients=clients, rounds=1)
    card = map_of(load_run(add(folder, (use(client, USE) for client in range(clients)))))
    (trace,), layout = drawn(card)
    assert min(clients, MANY_CLIENTS) // 2 < len(trace["z"]) <= MANY_CLIENTS
    assert len(layout["yaxis"]["ticktext"]) == (clients if clients <= NAMED_CLIENTS else 3)
    assert card is not None and bool(card.note) == (clients > MANY_CLIENTS)


def test_only_so_many_experts_are_drawn(make_run: Make, tmp_path: Path) -> None:
    weights = {"digit": {"image": {"general": {f"task {number}": 0.01 for number in range(MANY_TYPES + 5)}}}}
    card = map_of(load_run(add(make_run(tmp_path / "run", clients=1), [use(0, weights)])))
    (trace,), _ = drawn(card)
    assert len(trace["z"][0]) == MANY_TYPES
    assert card is not None and f"{MANY_TYPES} of {MANY_TYPES + 5}" in card.note


@pytest.mark.parametrize("weights", [{}, {"digit": {}}, {"digit": {"image": {}}}, {"digit": {"image": {"image": {}}}}])
def test_without_weights_there_is_no_map(weights: Any, make_run: Make, tmp_path: Path) -> None:
    assert map_of(load_run(add(make_run(tmp_path / "run"), [use(0, weights)]))) is None


# ------------------------------------------------------------------------------------------------ updates


def test_few_components_have_a_line_each(make_run: Make, tmp_path: Path) -> None:
    lines = [agreement(1, head__digit=0.5, fusion=-0.25), agreement(2, head__digit=0.25)]
    card = agreement_card(load_run(add(make_run(tmp_path / "run"), lines)))
    traces, _ = drawn(card)
    assert {trace["name"]: (trace["x"], trace["y"]) for trace in traces} == {
        "fusion": ([1], [-0.25]),
        "head.digit": ([1, 2], [0.5, 0.25]),
    }
    assert card is not None and card.table is not None
    assert card.table.rows == (("fusion", "3", "−0.250", "−0.250"), ("head.digit", "3", "0.375", "0.250"))


def test_many_components_are_put_together_by_kind(make_run: Make, tmp_path: Path) -> None:
    many = {f"stem__m{number}": 0.1 * (number % 3) for number in range(MANY_COMPONENTS)}
    line = agreement(1, **many, expert__image__digit=0.4, expert__audio__digit=0.2)
    card = agreement_card(load_run(add(make_run(tmp_path / "run"), [line])))
    traces, _ = drawn(card)
    assert {trace["name"]: trace["y"] for trace in traces} == {
        "expert modality → task": [pytest.approx(0.3)],
        "stem": [pytest.approx(sum(many.values()) / MANY_COMPONENTS)],
    }
    assert card is not None and "mean over the components of a kind" in card.note
    assert card.table is not None and len(card.table.rows) == MANY_COMPONENTS + 2


def test_tables_and_legends_end_somewhere(make_run: Make, tmp_path: Path) -> None:
    line = agreement(1, **{f"kind{number}__part": 0.5 for number in range(MANY_ROWS + 9)})
    card = agreement_card(load_run(add(make_run(tmp_path / "run"), [line])))
    assert card is not None and card.table is not None
    assert (len(card.table.rows), len(card.legend)) == (MANY_ROWS, MANY_COMPONENTS)
    assert card.table.note and "59 more kinds" in card.note


def test_the_divergence_of_many_components_is_put_together_by_kind(make_run: Make, tmp_path: Path) -> None:
    many = {f"stem__m{number}": float(number) for number in range(MANY_COMPONENTS)}
    lines = [
        divergence(0, 1, **many, expert__image__digit=1.0, expert__audio__digit=4.0),
        divergence(1, 1, expert__image__digit=3.0),  # mean over clients first, then over components
        divergence(0, 2, expert__audio__digit=8.0),
    ]
    card = divergence_card(load_run(add(make_run(tmp_path / "run"), lines)))
    traces, _ = drawn(card)
    assert {trace["name"]: (trace["x"], trace["y"]) for trace in traces} == {
        "expert modality → task": ([1, 2], [3.0, 8.0]),
        "stem": ([1], [pytest.approx(sum(many.values()) / MANY_COMPONENTS)]),
    }
    assert card is not None and "mean over the components of a kind" in card.note
    assert [chip.group for chip in card.legend] == [trace["legendgroup"] for trace in traces]


@pytest.mark.parametrize("components", [1, MANY_COMPONENTS, MANY_COMPONENTS + 1, 30])
def test_no_two_lines_of_a_card_share_a_colour(components: int, make_run: Make, tmp_path: Path) -> None:
    values = {f"kind{number}__part": 0.5 for number in range(components)}
    data = load_run(add(make_run(tmp_path / "run"), [agreement(1, **values), divergence(0, 1, **values)]))
    for card in (agreement_card(data), divergence_card(data)):
        colours = [trace["line"]["color"] for trace in drawn(card)[0]]
        assert len(colours) == len(set(colours)) == min(components, MANY_COMPONENTS)


@pytest.mark.parametrize(
    ("grid", "component", "kind"),
    [
        ("pairs", "expert.general.general", "expert general → general"),
        ("pairs", "expert.general.digit", "expert general → task"),
        ("pairs", "expert.image.general", "expert modality → general"),
        ("pairs", "expert.image.digit", "expert modality → task"),
        ("axes", "expert.input.general", "expert, input general"),
        ("axes", "expert.input.image", "expert, input modality"),
        ("axes", "expert.output.general", "expert, output general"),
        ("axes", "expert.output.digit", "expert, output task"),
        ("pairs", "self_attention.image", "self attention"),
        ("pairs", "projection", "projection"),
        (["?"], "expert.odd", "expert"),
    ],
)
def test_kinds(grid: Any, component: str, kind: str, make_run: Make, tmp_path: Path) -> None:
    data = load_run(make_run(tmp_path / "run", rounds=1))
    data = RunData(data.folder, {"model": {"expert_grid": grid}}, data.text, data.summary, data.history)
    assert kinds_of(data, [component]) == {kind: [component]}


def test_methods_are_compared_by_the_agreement_of_their_experts(make_run: Make, tmp_path: Path) -> None:
    def made(place: str, seed: int, shift: float, **options: Any) -> Path:
        folder = make_run(tmp_path / place, seed=seed, options=options)
        values = dict(zip((name.replace(".", "__") for name in GRID), (0.1, 0.2, 0.3, 0.4, -0.5), strict=True))
        return add(folder, [agreement(1, **{name: value + shift for name, value in values.items()})])

    folders = [made("a", 0, 0.0, beta=1), made("b", 1, 0.1, beta=1), made("c", 0, 0.2, beta=0), tmp_path / "d"]
    make_run(folders[-1], method="fedprox")
    found = variants([load_run(folder) for folder in folders])
    card = updates_card(found, method_colours(found))
    traces, layout = drawn(card)
    assert layout["xaxis"]["categoryarray"][-1] == "head"
    bars = {trace["legendgroup"]: trace["y"] for trace in traces}
    assert bars.keys() == {"fedavg[beta=1]", "fedavg[beta=0]"}
    assert bars["fedavg[beta=1]"] == pytest.approx([0.15, 0.25, 0.35, 0.45, -0.45])
    assert card is not None and card.table is not None
    table = {row[0]: row[1:] for row in card.table.rows}
    assert table == {"fedavg[beta=1]": ("0.300 ± 0.071", "−0.450 ± 0.071"), "fedavg[beta=0]": ("0.450", "−0.300")}
    assert [chip.label for chip in card.legend] == ["fedavg[beta=1]", "fedavg[beta=0]"]
    assert "Agreement of updates" in write_comparison(folders, tmp_path / "out.html").read_text()


# ------------------------------------------------------------------------------------------------ pages and records


def test_a_run_of_experts_has_both_cards(tmp_path: Path) -> None:
    changes = {"model": MODEL, "method__name": "disentafl", "rounds": 1, "engine__diagnostics": True}
    run(tiny(**changes), tmp_path / "run")
    data = load_run(tmp_path / "run")
    (trace,), layout = drawn(map_of(data))
    assert len(trace["z"]) == len(data.clients)
    for row in trace["z"]:
        assert sum(value for value in row if value is not None) == pytest.approx(1.0, abs=1e-3)
    assert layout["xaxis"]["ticktext"][0] == "general → general"
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<h3>Experts</h3>" in page and "<h3>Agreement of updates</h3>" in page


def test_other_models_have_no_map_and_older_runs_neither(make_run: Make, tmp_path: Path) -> None:
    run(tiny(rounds=1, engine__diagnostics=True), tmp_path / "run")
    assert map_of(load_run(tmp_path / "run")) is None
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<h3>Experts</h3>" not in page and "<h3>Agreement of updates</h3>" in page
    old = make_run(tmp_path / "old")
    page = write_report(old).read_text()
    assert "<h3>Experts</h3>" not in page and "Agreement of updates" not in page
    assert "Agreement of updates" not in write_comparison([old], tmp_path / "old.html").read_text()


@pytest.mark.parametrize(
    "change",
    [
        {"cosine": {"head": 1.5}},
        {"cosine": {"head": None}},
        {"cosine": [0.5]},
        {"clients": {"head": -1}},
        {"round": -1},
        {"kind": "expert_use"},
        {"kind": "expert_use", "client": 0, "weights": {"digit": {"image": {"general": 0.5}}}},
        {"kind": "expert_use", "client": 0, "weights": {"digit": {"image": {"general": {"digit": 1.5}}}}},
        {"kind": "expert_use", "client": 0, "weights": {"digit": {"image": {"general": {"digit": None}}}}},
    ],
)
def test_malformed_lines_are_refused(change: dict[str, Any], make_run: Make, tmp_path: Path) -> None:
    folder = add(make_run(tmp_path / "run", rounds=1), [{**agreement(1, head=0.5), **change}])
    with pytest.raises(UserError, match="not a record polyfed wrote"):
        load_run(folder)


def test_what_is_no_number_is_refused(make_run: Make, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", rounds=1)
    with (folder / "records.jsonl").open("a") as records:
        records.write('{"kind": "agreement", "round": 1, "cosine": {"head": NaN}}\n')
    with pytest.raises(UserError, match="not a record polyfed wrote"):
        load_run(folder)


def test_names_from_outside_are_escaped(make_run: Make, tmp_path: Path) -> None:
    evil = "<img src=x>"
    weights = {evil: {evil: {evil: {evil: 1.0}}}}
    lines = [use(0, weights), {**agreement(1), "cosine": {evil: 0.5, f"expert.{evil}.{evil}": 0.5}}]
    folder = add(make_run(tmp_path / "run"), lines)
    assert map_of(load_run(folder)) is not None
    assert evil not in write_report(folder).read_text()
    assert evil not in write_comparison([folder], tmp_path / "out.html").read_text()
