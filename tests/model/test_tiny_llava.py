"""The tiny LLaVA: deterministic, loadable, trainable."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from polyfed.data.scene_examples import TASKS, common_examples
from polyfed.data.scene_texts import VOCABULARY
from polyfed.errors import UserError
from polyfed.model.tiny_llava import END, Sizes, save_checkpoint, tiny_llava, tiny_processor, tiny_tokenizer

pytest.importorskip("transformers", reason="the extra 'mllm' is not installed")
Image = pytest.importorskip("PIL.Image")

SMALL = Sizes(vision_width=32, vision_layers=3, text_width=48, text_layers=2)


@cache
def built() -> tuple[Any, Any]:
    return tiny_llava(0, SMALL)


def encoded(task: Any, count: int = 4) -> Any:
    """Conversations about scenes as a batch with labels."""
    _, processor = built()
    conversations = [
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": Image.fromarray(example.image.permute(1, 2, 0).numpy())},
                    {"type": "text", "text": example.instruction},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": example.answers[0]}]},
        ]
        for example in common_examples(task, count, 0)
    ]
    batch = processor.apply_chat_template(
        conversations,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
        processor_kwargs={"padding": True},
    )
    mask = batch.pop("assistant_masks")
    return {**batch, "labels": batch["input_ids"].masked_fill(mask == 0, -100)}


def test_every_word_and_number_of_the_world_is_one_token() -> None:
    tokenizer = tiny_tokenizer()
    numbers = [f"{hundredths / 100:.2f}" for hundredths in range(101)]
    for piece in (*VOCABULARY, *numbers):
        assert [len(tokenizer(text).input_ids) for text in (piece, f" {piece}")] == [1, 1], piece
    assert len(tokenizer(" [0.31, 0.00, 0.69, 1.00]").input_ids) == 10
    assert len(tokenizer) < 800


@pytest.mark.parametrize("text", ["where is it? [0.31, 0.00]", "a giraffe's été, 猫!", " two  spaces\nand lines_"])
def test_any_text_comes_back(text: str) -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_further_texts_make_further_words() -> None:
    assert len(tiny_tokenizer()(" giraffe").input_ids) > 1
    assert len(tiny_tokenizer(["a giraffe", "a giraffe"])(" giraffe").input_ids) == 1


def test_the_same_seed_gives_the_same_bits() -> None:
    before = torch.random.get_rng_state()
    (first, processor), (again, other) = built(), tiny_llava(0, SMALL)
    assert torch.equal(before, torch.random.get_rng_state())
    assert processor.tokenizer.backend_tokenizer.to_str() == other.tokenizer.backend_tokenizer.to_str()
    assert all(torch.equal(mine, yours) for mine, yours in zip(first.parameters(), again.parameters(), strict=True))
    different, _ = tiny_llava(1, SMALL)
    assert not torch.equal(first.lm_head.weight, different.lm_head.weight)


@pytest.mark.parametrize("task", TASKS)
def test_only_the_answer_is_supervised(task: Any) -> None:
    _, processor = built()
    batch = encoded(task)
    examples = common_examples(task, 4, 0)
    for row, labels, example in zip(batch["input_ids"], batch["labels"], examples, strict=True):
        assert processor.tokenizer.decode(labels[labels != -100]) == f" {example.answers[0]}{END}"
        assert int((row == processor.tokenizer.image_token_id).sum()) == (SMALL.image // SMALL.patch) ** 2
        assert (labels[row == processor.tokenizer.image_token_id] == -100).all()


def test_the_prompt_ends_where_the_answer_begins() -> None:
    _, processor = built()
    asked = {"role": "user", "content": [{"type": "text", "text": "why?"}]}
    said = {"role": "assistant", "content": [{"type": "text", "text": "no"}]}
    prompt = processor.apply_chat_template([asked], add_generation_prompt=True)
    assert prompt == "<s>USER: why? ASSISTANT:"
    assert processor.apply_chat_template([asked, said]) == f"{prompt} no{END}"


def test_pictures_are_padded_not_cut() -> None:
    processor = tiny_processor(SMALL, tiny_tokenizer())
    wide = torch.zeros(32, 64, 3, dtype=torch.uint8)
    wide[:, :8] = 255
    pixels = processor.image_processor(Image.fromarray(wide.numpy()), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
    assert pixels[0, :, 16, 1].min() > 1.5  # the white strip at the left edge
    assert pixels[0, :, 1, 1].abs().max() < 0.1  # padding in the mean colour


def test_every_part_is_trained_and_the_loss_falls() -> None:
    model, _ = tiny_llava(2, SMALL)
    batch = encoded("vqa")
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(25):
        loss = model(**batch).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    untrained = {name for name, values in model.named_parameters() if values.grad is None or not values.grad.any()}
    # the features used come from the last layer but one and leave out the class token
    assert all("vision_tower" in name and ("layers.2" in name or "post_layernorm" in name) for name in untrained)


def test_an_ordinary_checkpoint_is_written(tmp_path: Path) -> None:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    model, processor = built()
    folder = tmp_path / "models" / "tiny"
    save_checkpoint(model, processor, folder)
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".jinja"}
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlavaForConditionalGeneration"]
    loaded = LlavaForConditionalGeneration.from_pretrained(folder)
    state = loaded.state_dict()
    assert all(torch.equal(values, state[name]) for name, values in model.state_dict().items())
    text = "<image>\nwhere is the red circle? [0.25, 0.00]"
    picture = Image.new("RGB", (20, 32), "red")
    both = [
        one(images=picture, text=text, return_tensors="pt")
        for one in (processor, LlavaProcessor.from_pretrained(folder))
    ]
    assert all(torch.equal(both[0][name], both[1][name]) for name in ("input_ids", "pixel_values"))
    with torch.no_grad():
        assert torch.equal(model(**both[0]).logits, loaded(**both[1]).logits)


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        save_checkpoint(*built(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'polyfed\[mllm\]'"):
        tiny_llava(0)
