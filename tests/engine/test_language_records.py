"""What a run with language tasks records: use of routers, links of text adapters, sizes of models, written answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from polyfed.data.samples import Asked, Batch
from polyfed.data.schema import Task
from polyfed.engine.answers import FILE, LARGEST_SIDE, LONGEST_TEXT, chosen_cards, clipped, sheet_of, shrunk
from polyfed.engine.evaluate import Evaluation, score
from polyfed.engine.expert_use import ExpertUse, use_record
from polyfed.engine.loop import Outcome
from polyfed.engine.notes import note_record
from polyfed.experiment.summary import parameters
from polyfed.experiment.world import World, build_world
from polyfed.method.protocol import MOST_LINKED, Note
from polyfed.method.text_adapters import coefficients, distances, links
from polyfed.model.architecture import Mixing
from polyfed.report.answers import read_answers
from polyfed.scenario.federation import Card
from tests.language import experiment, shared_checkpoint

pytest.importorskip("transformers", reason="language models need the extra polyfed[mllm]")
pytest.importorskip("peft", reason="language models need the extra polyfed[mllm]")

TINY = {"rounds": 1, "data.examples": 3, "data.test_examples": 2, "engine.diagnostics": True}
Ran = tuple[World, Outcome, Path]


def ran(folder: Path, **changes: object) -> Ran:
    folder.mkdir()
    named = {key.replace("__", "."): value for key, value in changes.items()}
    world = build_world(experiment(shared_checkpoint(), {**TINY, **named}))
    return world, world.loop(folder).run(), folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return ran(tmp_path_factory.mktemp("language") / "run")


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


# ------------------------------------------------------------------------------------------------ routers


def test_weights_of_adapters_are_means_over_samples_with_a_picture() -> None:
    use = ExpertUse()
    weights = torch.tensor([[0.5, 0.5], [0.1, 0.9], [0.0, 0.0]])
    batch = Batch({}, {}, {}, {"vqa": torch.tensor([True, True, True])})
    use.add({"vqa": Mixing(("vqa", "caption"), weights, "adapters")}, batch)
    assert use.of == "adapters"
    assert use_record(2, 4, use.means(), use.of) == {
        "kind": "router_use",
        "round": 2,
        "client": 4,
        "weights": {"vqa": {"vqa": pytest.approx(0.3), "caption": pytest.approx(0.7)}},
    }


def test_a_run_records_the_mean_probability_over_image_tokens(whole: Ran) -> None:
    world, outcome, folder = whole
    found = [line for line in lines(folder, "router_use") if line["round"] == 1]
    assert [line["client"] for line in found] == list(range(9))
    for line in found:
        card = world.federation.cards[line["client"]]
        ((task, weights),) = line["weights"].items()
        others = sorted(set(world.federation.tasks) - {task})
        assert (task,) == card.tasks and list(weights) == [task, *others]
        held = outcome.personal[card.id]
        router = {**held["parameters"], **held.get("trained", {})}["router.weight"]
        features = world.federation.client(card.id).test.batch().inputs["image"]
        expected = torch.softmax(features @ router.T, -1).mean((0, 1)).tolist()
        assert list(weights.values()) == pytest.approx(expected, abs=1e-5)


def test_models_without_a_router_have_no_use_of_it(tmp_path: Path) -> None:
    _, _, folder = ran(tmp_path / "run", method__name="fedavg")
    assert not lines(folder, "router_use") and lines(folder, "evaluation")


# ------------------------------------------------------------------------------------------------ text adapters


def test_links_tell_distances_once_and_parts_that_are_not_zero() -> None:
    adapters = [{"lora.a": torch.tensor([value])} for value in (0.0, 3.0, 1.0)]
    apart = distances(adapters)
    found = links([4, 6, 9], apart, coefficients(apart, [2, 2, 2], 1, "convex"))
    assert found["distance"] == {4: {6: 3.0, 9: 1.0}, 6: {9: 2.0}}
    assert found["part"] == {4: {4: 0.5, 9: 0.5}, 6: {6: 0.5, 9: 0.5}, 9: {4: 0.5, 9: 0.5}}
    assert links([4], apart[:1, :1], torch.ones(1, 1)) == {"part": {4: {4: 1.0}}, "distance": {}}
    assert set(links([4, 6, 9], None, torch.eye(3))) == {"part"}
    many = MOST_LINKED + 1
    assert links(range(many), None, torch.eye(many)) == {}


def test_a_note_without_links_is_written_as_before() -> None:
    assert note_record(3, Note({"a": 1.0})) == {"kind": "note", "round": 3, "numbers": {"a": 1.0}, "clients": {}}
    assert note_record(3, Note(links={"x": {1: {2: 0.5}}}))["links"] == {"x": {"1": {"2": 0.5}}}


def test_pilot_notes_both_stages(whole: Ran) -> None:
    first, second = lines(whole[2], "note")
    assert set(first["links"]) == {"features.distance", "features.part"}
    assert set(second["links"]) == {"across.distance", "across.part"}
    for client, parts in second["links"]["across.part"].items():
        assert sum(parts.values()) == pytest.approx(1.0)
        assert len(parts) == 7 and parts[client] == pytest.approx(second["clients"][client]["across.own_part"])
        held = second["links"]["across.distance"]
        apart = {o: held.get(client, {}).get(o) or held[o][client] for o in map(str, range(9)) if o != client}
        assert set(parts) - {client} == set(sorted(apart, key=lambda other: apart[other])[:6])


# ------------------------------------------------------------------------------------------------ sizes


def test_counts_are_those_of_the_formulas(whole: Ran) -> None:
    """AP and CP: #ψ = D C + C + C² + C, #lora = r Σ (d_in + d_out), T tasks, a router of T D."""
    world, outcome, _ = whole
    base: Any = world.architecture
    width, features, tasks = base.base.width, base.base.features, len(world.federation.tasks)
    connector = features * width + width + width**2 + width
    text = base.base.model.config.text_config
    inner, hidden = text.intermediate_size, text.hidden_size
    key = text.num_key_value_heads * (hidden // text.num_attention_heads)
    both = (2 * (hidden + hidden), 2 * (hidden + key), 3 * (hidden + inner))  # q and o; k and v; gate, up, down
    lora = 2 * text.num_hidden_layers * sum(both)
    totals = {
        held["step"]: {way: sum(held[way].values()) for way in ("present", "trained", "down", "up")}
        for held in outcome.progress.models
    }
    assert len(outcome.progress.models) == 6 and [held["client"] for held in outcome.progress.models[:3]] == [0, 3, 6]
    one = connector + lora
    assert totals["features"] == {"present": one + connector, "trained": one + connector, "down": one, "up": one}
    assert totals["across"] == {
        "present": 2 * tasks * connector + tasks * features + lora,
        "trained": tasks * connector + tasks * features + lora,
        "down": tasks * connector + lora,
        "up": one,
    }
    frozen = parameters(world)["frozen"]
    tower = base.base.model.model.vision_tower
    assert frozen["vision_tower"] == sum(value.numel() for value in tower.parameters())
    assert sum(frozen.values()) + connector == sum(value.numel() for value in base.base.model.parameters())


def test_what_was_counted_is_what_travelled(whole: Ran) -> None:
    _, outcome, folder = whole
    for held in outcome.progress.models:
        (line,) = (
            one for one in lines(folder, "client") if (one["step"], one["client"]) == (held["step"], held["client"])
        )
        for way in ("down", "up"):
            assert {
                **{name: 4 * count for name, count in held[way].items()},
                "envelope": line["bytes"][way]["envelope"],
            } == (line["bytes"][way])


def test_resuming_and_workers_count_the_same(whole: Ran, tmp_path: Path) -> None:
    _, first, folder = whole
    _, second, other = ran(tmp_path / "workers", engine__workers=2)
    assert second.progress.models == first.progress.models
    assert (other / FILE).read_bytes() == (folder / FILE).read_bytes()
    resumed = build_world(experiment(shared_checkpoint(), TINY)).loop(folder).run(resume=True)
    assert resumed.progress.models == first.progress.models


# ------------------------------------------------------------------------------------------------ answers


def test_samples_are_the_first_ones_of_every_client(whole: Ran) -> None:
    world, _, folder = whole
    found = read_answers(folder)
    assert [sheet.client for sheet in found] == [0, 3, 6, 1, 4, 7, 2, 5, 8], "one of each task by turns"
    for sheet in found:
        samples = world.federation.client(sheet.client).test
        asked = samples.asked(torch.arange(2))
        assert [one.question for one in sheet.samples] == [one.question for one in asked]
        assert [one.answers for one in sheet.samples] == [one.answers[:5] for one in asked]
        for place, one in enumerate(asked):
            assert one.picture is not None
            assert sheet.pictures[place].tolist() == one.picture().tolist()
        assert all(("right" in one.boxes) is (sheet.task == "grounding") for one in sheet.samples)
        assert all(bool(one.scores) is (sheet.task != "caption") for one in sheet.samples)


def asked(answer: str, question: str = "what?", picture: Callable[[], Any] | None = None) -> Asked:
    return Asked(question, (answer,), picture)


def test_samples_are_judged_one_by_one() -> None:
    card = Card(0, "client 0", (), ("find",), 1)
    task = Task("find", "language", (4,), metric="grounding")
    far = "[0.00, 0.00, 1.00, 99999999999999999999]"
    sheet = sheet_of(task, card, [asked("[0.0, 0.0, 1.0, 1.0]")] * 3, ["[0.0, 0.0, 1.0, 0.5]", "there", far])
    assert [one.scores["accuracy"] for one in sheet.samples] == [1.0, 0.0, 0.0]
    assert sheet.samples[0].scores["iou"] == 0.5
    assert [set(one.boxes) for one in sheet.samples] == [{"right", "written"}, {"right"}, {"right", "written"}]
    assert sheet.samples[2].boxes["written"] == (0.0, 0.0, 1.0, 3.0)
    assert not sheet.pictures and not sheet.samples[0].picture


def test_long_and_odd_texts_are_made_harmless() -> None:
    assert clipped("a\ud800b") == "a?b"
    assert clipped("x" * LONGEST_TEXT) == "x" * LONGEST_TEXT
    assert len(clipped("x" * 10**6)) == LONGEST_TEXT and clipped("x" * 10**6).endswith("…")


def test_large_pictures_are_shrunk_and_keep_their_shape() -> None:
    values = torch.zeros(3, 4 * LARGEST_SIDE, 2 * LARGEST_SIDE, dtype=torch.uint8)
    values[0, :4, :4] = 100
    found = shrunk(asked("", picture=values.numpy))
    assert (found.dtype, found.shape) == (torch.uint8, (3, LARGEST_SIDE, LARGEST_SIDE // 2))
    assert found[0, 0, 0] == 100 and not found[1:].any()
    small = torch.ones(3, 5, 7, dtype=torch.uint8)
    assert torch.equal(shrunk(asked("", picture=small.numpy)), small)


def test_nobody_is_shown_without_language_tasks() -> None:
    from tests.worlds import tiny

    assert chosen_cards(build_world(tiny()).federation) == []


# ------------------------------------------------------------------------------------------------ score


def test_captions_weigh_no_more_than_answers() -> None:
    tasks = {"vqa": Task("vqa", "language", (1,), metric="vqa"), "tell": Task("tell", "language", metric="caption")}
    found = [
        Evaluation(0, "test", {"vqa": 1}, {"vqa": {"accuracy": 0.5, "loss": 3.0}}),
        Evaluation(1, "test", {"tell": 1}, {"tell": {"cider": 250.0, "loss": 3.0}}),
    ]
    assert score(found, tasks) == pytest.approx((0.5 + 0.25) / 2)
