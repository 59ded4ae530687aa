"""Routers, text adapters, sizes of models and written answers in the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from polyfed.engine.answers import CALLED, FILE, LARGEST_SIDE, LONGEST_TEXT, Answered, Sheet
from polyfed.engine.kept_samples import encoded
from polyfed.errors import UserError
from polyfed.report.answer_figures import answer_cards
from polyfed.report.answers import LARGEST_FILE, read_answers
from polyfed.report.formats import named, shown, shown_gain
from polyfed.report.neighbour_figures import neighbours_card
from polyfed.report.page import write_report
from polyfed.report.plotting import Card
from polyfed.report.records import load_run
from polyfed.report.router_figures import MANY_ROWS, router_card
from polyfed.report.size_figures import sizes_card

Make = Callable[..., Path]
HOSTILE = '<img src="x" onerror="alert(1)">'


def add(folder: Path, lines: Iterable[dict[str, Any]]) -> Path:
    with (folder / "records.jsonl").open("a") as records:
        records.writelines(json.dumps(line) + "\n" for line in lines)
    return folder


def drawn(card: Card | None, place: int = 0) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    assert card is not None
    spec = json.loads(str(card.plots[place].spec))
    return spec["data"], spec["layout"]


def summarised(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    summary = json.loads((folder / "summary.json").read_text())
    change(summary)
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def of_two_tasks(make_run: Make, folder: Path, clients: int = 4) -> Path:
    """Make a run whose even clients solve one task and whose odd ones solve the other."""

    def change(summary: dict[str, Any]) -> None:
        for client in summary["clients"]:
            client["tasks"] = [("vqa", "caption")[client["id"] % 2]]

    return summarised(make_run(folder, clients=clients, rounds=2, tasks=("vqa", "caption")), change)


# ------------------------------------------------------------------------------------------------ routers


def router(client: int, number: int, task: str, **weights: float) -> dict[str, Any]:
    return {"kind": "router_use", "round": number, "client": client, "weights": {task: weights}}


def test_the_map_of_routers_has_clients_by_task(make_run: Make, tmp_path: Path) -> None:
    lines = [
        router(0, 1, "vqa", vqa=0.9, caption=0.1),
        router(0, 2, "vqa", vqa=0.25, caption=0.75),
        router(1, 2, "caption", caption=0.5, vqa=0.5),
        router(2, 2, "vqa", vqa=0.6, caption=0.4),
        router(2, 1, "vqa", vqa=0.0, caption=1.0),  # of an older round
    ]
    card = router_card(load_run(add(of_two_tasks(make_run, tmp_path / "run"), lines)))
    (trace,), layout = drawn(card)
    assert layout["yaxis"]["ticktext"] == ["client 0 (vqa)", "client 2 (vqa)", "client 1 (caption)"]
    assert layout["xaxis"]["ticktext"] == ["adapter of vqa", "adapter of caption"]
    assert trace["z"] == [[0.25, 0.75], [0.6, 0.4], [0.5, 0.5]]
    assert [(frame["x0"] < 0.5, frame["y0"]) for frame in layout["shapes"]] == [
        (True, pytest.approx(-0.44)),
        (True, pytest.approx(0.56)),
        (False, pytest.approx(1.56)),
    ]
    assert card is not None and card.table is not None
    assert card.table.rows[0] == ("client 0 (vqa)", "vqa", "0.250", "0.750")


def test_only_so_many_routers_are_shown(make_run: Make, tmp_path: Path) -> None:
    folder = of_two_tasks(make_run, tmp_path / "run", MANY_ROWS + 3)
    lines = [router(client, 2, "vqa", vqa=1.0) for client in range(MANY_ROWS + 3)]
    card = router_card(load_run(add(folder, lines)))
    assert card is not None and card.table is not None
    assert len(card.table.rows) == len(drawn(card)[0][0]["z"]) == MANY_ROWS
    assert f"first {MANY_ROWS} of {MANY_ROWS + 3}" in card.note


def test_runs_without_routers_and_links_have_no_such_cards(make_run: Make, tmp_path: Path) -> None:
    data = load_run(make_run(tmp_path / "run"))
    assert router_card(data) is None and neighbours_card(data) is None and sizes_card(data) is None
    assert answer_cards(data) == []


# ------------------------------------------------------------------------------------------------ text adapters


def linked(number: int, **links: Any) -> dict[str, Any]:
    told = {name.replace("__", "."): held for name, held in links.items()}
    return {"kind": "note", "round": number, "numbers": {}, "clients": {}, "links": told}


def test_the_map_of_text_adapters_marks_whom_one_is_mixed_with(make_run: Make, tmp_path: Path) -> None:
    parts = {"0": {"0": 0.5, "2": 0.5}, "1": {"1": 1.0}, "2": {"0": 0.125, "1": 0.25, "2": 0.625}}
    lines = [
        linked(1, features__part={"0": {"0": 1.0}}),
        linked(2, features__part=parts, features__distance={"0": {"1": 3.0, "2": 1.0}, "1": {"2": 2.0}}),
        linked(2, across__part=parts),
    ]
    card = neighbours_card(load_run(add(of_two_tasks(make_run, tmp_path / "run", 3), lines)))
    assert card is not None and [plot.label for plot in card.plots] == ["after features", "after across"]
    (heat, dots), layout = drawn(card)
    assert layout["yaxis"]["ticktext"] == ["client 0 (vqa)", "client 2 (vqa)", "client 1 (caption)"]
    assert heat["z"] == [[None, 1.0, 3.0], [1.0, None, 2.0], [3.0, 2.0, None]]
    assert list(zip(dots["x"], dots["y"], strict=True)) == [(1, 0), (0, 1), (2, 1)]
    assert heat["customdata"][0][1] == "client 0 (vqa) takes 50.0 % of client 2 (vqa), distance 1"
    assert heat["customdata"][0][2] == "client 0 (vqa) takes nothing of client 1 (caption), distance 3"
    assert [line["x0"] for line in layout["shapes"]] == [-0.5, 1.5]
    assert card.table is not None and card.table.rows[1] == (
        "client 2 (vqa)",
        "features",
        "client 1 25.0 % (2) and client 0 12.5 % (1)",
        "62.5 %",
    )
    (heat, _), _ = drawn(card, 1)
    assert heat["z"][1] == [0.125, None, 0.25]
    assert card.table.rows[5] == ("client 1 (caption)", "across", "nobody", "100.0 %")


# ------------------------------------------------------------------------------------------------ sizes


def test_sizes_are_put_together_by_kind_and_client(make_run: Make, tmp_path: Path) -> None:
    first = {"step": "a", "client": 0, "present": {"adapter.x": 5, "adapter.y": 2, "lora": 1}, "trained": {"lora": 1}}
    first |= {"down": {"lora": 1}, "up": {"lora": 1}}
    twin = {**first, "client": 1, "present": {"adapter.x": 7, "lora": 1}}
    other = {**first, "client": 2, "step": "b"}
    third = {**other, "client": 3, "up": {}}
    frozen = {"vision_tower": 1234}

    def change(summary: dict[str, Any]) -> None:
        summary["parameters"] |= {"frozen": frozen, "steps": [first, twin, other, third]}

    card = sizes_card(load_run(summarised(make_run(tmp_path / "run"), change)))
    assert card is not None and card.table is not None
    assert card.table.rows[:3] == (
        ("a", "adapter", "7", "0", "0", "0"),
        ("a", "lora", "1", "1", "1", "1"),
        ("a", "together", "8", "1", "1", "1"),
    )
    assert [row[0] for row in card.table.rows[3:]] == ["b, as client 2"] * 3 + ["b, as client 3"] * 3
    assert "vision tower 1,234" in card.note
    assert "<td>together</td>" in write_report(tmp_path / "run").read_text()


# ------------------------------------------------------------------------------------------------ answers


def answered(written: str = "blue", **changes: Any) -> Answered:
    return replace(Answered("what colour?", ("red",), written, {"accuracy": 0.0}, {}, True), **changes)


def sheet(*samples: Answered, task: str = "digit", side: int = 2) -> Sheet:
    picture = torch.arange(3 * side * side, dtype=torch.int64).to(torch.uint8).view(3, side, side)
    return Sheet(task, 1, samples, {place: picture.clone() for place, one in enumerate(samples) if one.picture})


def test_right_and_wrong_ones_are_shown_with_boxes(make_run: Make, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    right, far = (0.25, 0.0, 0.75, 1.0), (0.5, -2.0, 3.0, 0.5)
    samples = (
        answered(scores={"accuracy": 1.0, "iou": 0.5}, boxes={"right": right, "written": far}),
        answered(scores={"accuracy": 0.0, "iou": 0.0}, boxes={"right": right}),
        answered(scores={"accuracy": 0.6}),
        answered(scores={}, picture=False),
    )
    (folder / FILE).write_bytes(encoded(CALLED, [sheet(*samples)], 5))
    (card,) = answer_cards(load_run(folder))
    (shown_,) = card.written
    assert shown_.title == "client 1" and shown_.text.startswith("accuracy ")
    verdicts = [(one.verdict, one.mark) for one in shown_.examples]
    assert verdicts == [("right, overlap 0.50", "right"), ("wrong, no box", "wrong"), ("60 % agree", ""), ("", "")]
    assert [asdict(frame) for frame in shown_.examples[0].frames] == [
        {"kind": "right", "left": "25.00", "top": "0.00", "width": "50.00", "height": "100.00"},
        {"kind": "written", "left": "50.00", "top": "0.00", "width": "50.00", "height": "50.00"},
    ]
    assert shown_.examples[0].coarse and not shown_.examples[3].address
    page = write_report(folder).read_text()
    assert page.count('<rect class="right"') == 2 and page.count('<rect class="written"') == 1
    assert "Written answers" in page and "dashed orange" in page


def test_texts_from_data_stay_texts(make_run: Make, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    hostile = answered(HOSTILE, question=HOSTILE, answers=(HOSTILE, "a\nb"))
    (folder / FILE).write_bytes(encoded(CALLED, [sheet(hostile, task=HOSTILE)], 5))
    page = write_report(folder).read_text()
    assert HOSTILE not in page and page.count("&lt;img src=") >= 3 and "<bdi>a b</bdi>" in page


def broken(change: Callable[[dict[str, Any], dict[str, Any]], object]) -> bytes:
    """Return a sound file with something changed."""
    sound = sheet(answered())
    tensors: dict[str, Any] = {"0.0": sound.pictures[0]}
    entry = {"task": "digit", "client": 1, "samples": [asdict(one) for one in sound.samples]}
    head: dict[str, Any] = {"format": 1, "round": 5, "entries": [entry]}
    change(head, tensors)
    return save(tensors, {"answers": json.dumps(head)})


def first(head: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = head["entries"][0]["samples"][0]
    return found


BROKEN: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not safetensors"),
    "huge": (bytes(LARGEST_FILE + 1), "more than 4,000,000"),
    "no head": (save({"a": torch.zeros(1)}, {}), "Invalid JSON"),
    "format": (broken(lambda head, _: head.update(format=2)), "format: Input should be 1"),
    "long": (broken(lambda head, _: first(head).update(written="x" * (LONGEST_TEXT + 1))), "at most 400 characters"),
    "crowd": (broken(lambda head, _: head["entries"][0].update(samples=[first(head)] * 5)), "at most 4 items"),
    "clients": (broken(lambda head, _: head.update(entries=head["entries"] * 13)), "at most 12 items"),
    "score": (broken(lambda head, _: first(head).update(scores={"accuracy": 2})), "less than or equal to 1"),
    "metric": (broken(lambda head, _: first(head).update(scores={HOSTILE: 1})), "'accuracy' or 'iou'"),
    "far": (broken(lambda head, _: first(head).update(boxes={"right": [0, 0, 1, 9]})), "less than or equal to 3"),
    "no number": (broken(lambda head, _: first(head).update(boxes={"right": [0, 0, 1, float("nan")]})), "equal to"),
    "absent": (broken(lambda _, held: held.update({"0.1": held.pop("0.0")})), "the tensor 0.0 is missing"),
    "kind": (broken(lambda _, held: held.update({"0.0": torch.zeros(3, 2, 2)})), "torch.float32"),
    "large": (
        broken(lambda _, held: held.update({"0.0": torch.zeros(3, 2, LARGEST_SIDE + 1, dtype=torch.uint8)})),
        "sides of 1 to 128",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_not_sound_is_refused_by_name(name: str, tmp_path: Path) -> None:
    content, message = BROKEN[name]
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_answers(tmp_path)
    assert str(tmp_path / FILE) in str(caught.value)


@given(data=st.data())
def test_damage_anywhere_is_refused_or_harmless(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(encoded(CALLED, [sheet(answered())], 5))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.mktemp("damaged")
    (folder / FILE).write_bytes(content)
    try:
        found = read_answers(folder)
    except UserError:
        return
    assert all(value.dtype == torch.uint8 for one in found for value in one.pictures.values())


# ------------------------------------------------------------------------------------------------ metrics


def test_metrics_of_language_tasks_have_names_and_digits() -> None:
    assert (named("cider"), named("iou"), named("accuracy")) == ("CIDEr", "mean overlap (IoU)", "accuracy")
    assert (shown("cider", 123.456), shown("iou", 0.5)) == ("123.5", "0.500")
    assert shown_gain("cider", -3.21) == "−3.2"
