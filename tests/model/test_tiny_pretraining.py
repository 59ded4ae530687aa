"""Pre-training of the tiny LLaVA: what it is told, and that packing and caching change nothing but the time."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from polyfed import rng
from polyfed.data.scene_examples import TASKS, common_examples, pretraining_scenes
from polyfed.data.scene_pictures import picture
from polyfed.data.scenes import Object, Scene
from polyfed.model.tiny_descent import LAST, WARM_UP, Descent, minibatches, shape_of_rate
from polyfed.model.tiny_language import Texts, packed_loss
from polyfed.model.tiny_llava import Sizes, tiny_llava
from polyfed.model.tiny_pretraining import LANGUAGE, VISION, Steps, pretrain, scores
from polyfed.model.tiny_vision import FACTS, NOTHING, facts, features, patch_states, pixels

pytest.importorskip("transformers", reason="the extra 'mllm' is not installed")
Image = pytest.importorskip("PIL.Image")

SMALL = Sizes(vision_width=32, vision_layers=3, text_width=48, text_layers=2)


@cache
def built() -> tuple[Any, Any]:
    return tiny_llava(0, SMALL)


def test_what_is_told_of_patches_by_hand() -> None:
    """A ring in the upper left patch, one pixel of it in the next; a cross over the four patches in the middle."""
    ring, cross = Object("ring", "red", "small", 1, 0, 8), Object("cross", "blue", "large", 10, 10, 12)
    told = facts(Scene("white", (ring, cross)), 8).reshape(4, 4, len(FACTS))
    names = list(FACTS)
    assert names[:3] == ["background", "centre", "covered"]
    assert (told[..., 0] == 2).all()
    assert [divmod(int(i), 4) for i in told[..., 1].ravel().nonzero()[0]] == [(0, 0), (2, 2)]
    assert told[0, 0].tolist() == [2, 1, 1, 4, 0, 0, 1, 0, 9, 8]
    # one column of eight pixels is just an eighth of a patch
    assert told[0, 1].tolist() == [2, 0, 1, 4, 0, 0, 1, 0, 9, 8]
    for place in ((1, 1), (1, 2), (2, 1)):
        assert told[place].tolist() == [2, 0, 1, 3, 2, 1, 10, 10, 22, 22]
    assert told[3, 3].tolist() == [2, 0, 0, *[NOTHING] * 7]


def test_of_two_objects_in_a_patch_the_larger_is_told() -> None:
    left, right = Object("square", "red", "small", 0, 0, 6), Object("circle", "green", "small", 7, 0, 6)
    told = facts(Scene("black", (left, right)), 8)
    assert told[0, list(FACTS).index("colour")] == 0
    assert told[1, list(FACTS).index("colour")] == 1


def test_pictures_are_scaled_as_by_the_processor() -> None:
    _, processor = built()
    image = common_examples("vqa", 1, 0)[0].image
    theirs = processor.image_processor(Image.fromarray(image.permute(1, 2, 0).numpy()), return_tensors="pt")
    assert torch.allclose(pixels(image[None], processor), theirs["pixel_values"], atol=1e-6)


def test_features_are_those_that_llava_uses() -> None:
    model, processor = built()
    scenes = [example.scene for example in common_examples("vqa", 3, 0)]
    scaled = pixels(torch.stack([picture(scene) for scene in scenes]), processor)
    with torch.no_grad():
        expected = model.model.vision_tower(scaled, output_hidden_states=True).hidden_states[-2][:, 1:]
        assert torch.allclose(patch_states(model.model.vision_tower, scaled), expected, atol=1e-6)
    assert torch.allclose(features(model, processor, scenes), expected, atol=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_the_prompt_is_the_processors(task: Any) -> None:
    _, processor = built()
    texts = Texts(processor)
    for example in common_examples(task, 3, 0):
        content = [
            {"type": "image", "image": Image.fromarray(example.image.permute(1, 2, 0).numpy())},
            {"type": "text", "text": example.instruction},
        ]
        theirs = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
        )
        assert texts.opening + texts.instruction(example.instruction) == tuple(theirs["input_ids"][0].tolist())


def test_packing_changes_no_loss() -> None:
    """The mean over answers of each one's mean loss, as the model alone gives it, picture by picture."""
    model, processor = built()
    drawn = pretraining_scenes(3, 0)
    texts = Texts(processor)
    asked = [[texts.asked(said) for said in told] for _, told in drawn]
    assert {len(each) for each in asked} != {1}
    alone = []
    for (scene, _), each in zip(drawn, asked, strict=True):
        scaled = pixels(picture(scene)[None], processor)
        for instruction, answer in each:
            tokens = torch.tensor([[*texts.opening, *instruction, *answer]])
            labels = tokens.clone()
            labels[:, : -len(answer)] = -100
            with torch.no_grad():
                alone.append(model(input_ids=tokens, labels=labels, pixel_values=scaled).loss)
    with torch.no_grad():
        packed = packed_loss(model, texts.packed(asked), features(model, processor, [scene for scene, _ in drawn]))
    assert packed.item() == pytest.approx(torch.stack(alone).mean().item(), rel=1e-4)


def trained(steps: Steps, seed: int = 0) -> tuple[dict[str, torch.Tensor], list[tuple[str, int]]]:
    calls: list[tuple[str, int]] = []
    model, _ = pretrain(seed, steps, lambda stage, done, loss: calls.append((stage, done)), SMALL)
    assert all(weight.requires_grad for weight in model.parameters())
    assert not model.training
    return {name: value.clone() for name, value in model.state_dict().items()}, calls


def test_stages_train_their_own_parts_and_the_same_seed_gives_the_same_bits() -> None:
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    both, calls = trained(Steps(2, 2))
    assert calls == [(VISION, 1), (VISION, 2), (LANGUAGE, 1), (LANGUAGE, 2)]
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.get_num_threads() == threads
    again, _ = trained(Steps(2, 2))
    assert all(torch.equal(both[name], again[name]) for name in both)
    other, _ = trained(Steps(2, 2), seed=1)
    assert not torch.equal(both["lm_head.weight"], other["lm_head.weight"])

    vision, _ = trained(Steps(2, 0))
    nothing = built()[0].state_dict()
    unused = ("vision_tower.encoder.layers.2", "vision_tower.post_layernorm")
    for name, value in both.items():
        if "vision_tower" in name:
            assert torch.equal(value, vision[name]), name
            assert torch.equal(value, nothing[name]) == any(part in name for part in unused), name
        else:
            assert torch.equal(vision[name], nothing[name]), name
            assert not torch.equal(value, nothing[name]), name


def test_losses_fall() -> None:
    losses: dict[str, list[float]] = {VISION: [], LANGUAGE: []}
    pretrain(0, Steps(30, 20), lambda stage, done, loss: losses[stage].append(loss), SMALL)
    assert losses[VISION][-1] < 0.95 * losses[VISION][0]
    assert losses[LANGUAGE][-1] < 0.95 * losses[LANGUAGE][0]


def test_all_tasks_are_scored_in_both_parts_of_the_world() -> None:
    model, processor = built()
    found = scores(model, processor, 4, 0)
    assert {task: list(parts[0]) for task, parts in found.items()} == {
        "vqa": ["accuracy"],
        "caption": ["cider"],
        "grounding": ["accuracy", "iou"],
    }
    assert all(len(parts) == 2 for parts in found.values())


def test_learning_rates_rise_and_fall() -> None:
    steps = 10 * WARM_UP
    assert shape_of_rate(0, steps) == pytest.approx(1 / WARM_UP, rel=1e-3)
    assert shape_of_rate(steps // 2, steps) == pytest.approx((1 + LAST) / 2)
    assert shape_of_rate(steps, steps) == pytest.approx(LAST)


def test_a_step_uses_the_rates_of_both_optimisers() -> None:
    """The first steps of both have the size of their learning rate; that of Muon by its root mean square, times 0.2."""
    matrix, vector = torch.nn.Parameter(torch.zeros(4, 4)), torch.nn.Parameter(torch.zeros(4))
    aim = torch.randn(4, 4, generator=rng.torch_generator("aim"))
    loss = ((matrix - aim) ** 2).sum() + ((vector - 1) ** 2).sum()
    assert Descent([matrix], [vector], 100, (0.5, 0.1)).step(loss) == pytest.approx(loss.item())
    rise = 1 / WARM_UP
    assert torch.allclose(vector, torch.full((4,), 0.1 * rise), rtol=1e-3)
    assert 0.1 * rise * 0.5 * 0.2 < float(matrix.detach().square().mean().sqrt()) < 2 * rise * 0.5 * 0.2
    assert matrix.grad is None
    assert vector.grad is None


def test_minibatches_take_each_index_once_before_any_again() -> None:
    batches = list(minibatches(10, 3, 7, "test"))
    assert [len(batch) for batch in batches] == [3] * 7
    for i in (0, 3):
        assert len(set(torch.cat(batches[i : i + 3]).tolist())) == 9
    assert torch.cat(batches[:3]).tolist() != torch.cat(batches[3:6]).tolist()
    (all_there_is,) = minibatches(2, 5, 1, "test")
    assert sorted(all_there_is.tolist()) == [0, 1]
