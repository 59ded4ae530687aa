"""A client's LLaVA where pictures or texts are taken away."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from polyfed.data.samples import Batch
from polyfed.errors import UserError
from polyfed.experiment.world import World, build_world
from polyfed.model.llava import Llava
from polyfed.model.llava_model import LlavaModel, on_the_right
from tests.language import checkpoint, experiment

pytest.importorskip("transformers", reason="language models need the extra polyfed[mllm]")
pytest.importorskip("peft", reason="language models need the extra polyfed[mllm]")

FEW = {"rounds": 1, "data.examples": 4, "data.test_examples": 1}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return checkpoint(tmp_path_factory.mktemp("tiny"))


def world_of(path: str, **changes: object) -> World:
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return build_world(experiment(path, {**FEW, "method.name": "fedavg", **named}))


def trained_model(world: World) -> LlavaModel:
    module = world.architecture.assemble(["connector", "lora"]).eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in module.named_parameters():
            if "lora" in name:
                value.copy_(torch.randn(value.shape, generator=draw) / 2)
    assert isinstance(module, LlavaModel)
    return module


def blind(batch: Batch, rows: list[int]) -> Batch:
    """Take the pictures of some rows away, as a scenario does: what stands in their place is zero."""
    present = batch.present["image"].clone()
    present[rows] = False
    image = batch.inputs["image"] * present.view(-1, 1, 1)
    inputs, masks = {**batch.inputs, "image": image}, {**batch.present, "image": present}
    return batch._replace(inputs=inputs, present=masks, everywhere=batch.everywhere - {"image"})


def without_marks(batch: Batch, mark: int, padding: int) -> Batch:
    """Write the texts of a batch without the marks of pictures, and leave the pictures out."""
    texts = []
    for tokens, targets in zip(batch.inputs["text"], batch.targets["vqa"], strict=True):
        kept = tokens != mark
        gone = int((~kept).sum())
        texts.append(
            (
                torch.cat([tokens[kept], torch.full((gone,), padding)]),
                torch.cat([targets[kept], torch.full((gone,), -100)]),
            )
        )
    tokens, targets = (torch.stack(list(each)) for each in zip(*texts, strict=True))
    return batch._replace(
        inputs={"text": tokens},
        present={"text": batch.present["text"]},
        targets={**batch.targets, "vqa": targets},
        everywhere=frozenset({"text"}),
    )


@pytest.mark.parametrize("whole", [True, False], ids=["no pictures", "some pictures"])
def test_marks_of_pictures_that_are_not_here_are_passed_over(path: str, whole: bool) -> None:
    world = world_of(path)
    assert isinstance(world.architecture, Llava)
    model, base = trained_model(world), world.architecture.base
    batch = world.federation.client(0).train.batch()
    rows = list(range(len(batch.inputs["text"]))) if whole else [1, 2]
    plain = without_marks(batch, base.image_token, base.padding)
    given = blind(batch, rows)
    if whole:
        inputs = {"text": batch.inputs["text"]}
        given = batch._replace(inputs=inputs, present={"text": batch.present["text"]}, everywhere=frozenset({"text"}))
    with torch.no_grad():
        found, wanted = model(given), model(plain)
        written, expected = model.write(given, "vqa"), model.write(plain, "vqa")
    for row in rows:
        kept = (batch.inputs["text"][row] != base.image_token) & (batch.inputs["text"][row] != base.padding)
        logits = found.predictions["vqa"][row][kept[: found.predictions["vqa"].shape[1]]]
        torch.testing.assert_close(logits, wanted.predictions["vqa"][row][: len(logits)], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.features["text"][row], wanted.features["text"][row], rtol=1e-4, atol=1e-4)
        assert written[row] == expected[row]
    others = [row for row in range(len(batch.inputs["text"])) if row not in rows]
    if others:
        with torch.no_grad():
            seeing = model(batch).predictions["vqa"]
        torch.testing.assert_close(found.predictions["vqa"][others], seeing[others], rtol=1e-4, atol=1e-4)
        assert (found.predictions["vqa"][rows] - seeing[rows]).abs().max() > 1e-2


def test_moving_to_the_right_keeps_the_order() -> None:
    values = torch.arange(1.0, 11.0).view(2, 5, 1)
    wanted = torch.tensor([[True, False, True, False, False], [True, True, True, False, False]])
    moved, seen = on_the_right(values, wanted)
    assert moved.squeeze(-1).tolist() == [[0, 1, 3], [6, 7, 8]]
    assert seen.tolist() == [[False, True, True], [True, True, True]]


@pytest.mark.parametrize("method", ["fedavg", "pilot"])
def test_clients_without_pictures_train(path: str, method: str) -> None:
    outcome = world_of(path, method__name=method, scenario__keep=["text"]).loop().run()
    assert all(entry["metrics"] for entry in outcome.progress.latest)


@pytest.mark.parametrize(
    ("modalities", "message"),
    [
        ({"name": "n-of-m", "n": 1}, r"model llava: a client with image alone has no questions and answers"),
        ({"name": "sample-skew", "base": "all"}, r"model llava: there are samples without their 'text'"),
    ],
)
def test_what_has_no_text_is_refused(path: str, modalities: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        world_of(path, scenario__modalities=modalities).loop().run()


def test_pilot_has_no_global_model(path: str) -> None:
    told: list[dict[str, Any]] = []
    changes: dict[str, Any] = {"method__name": "pilot", "engine__server_test": True}
    world_of(path, **changes).loop(observers=[told.append]).run()
    assert "evaluation" in {line["kind"] for line in told}
    assert "server_evaluation" not in {line["kind"] for line in told}


def test_single_modalities_of_language_tasks_are_not_judged(path: str) -> None:
    with pytest.raises(UserError, match=r"engine\.unimodal: .* none of the tasks .* is a classification"):
        world_of(path, engine__unimodal=True)
