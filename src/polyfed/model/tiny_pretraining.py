"""Central pre-training of the tiny LLaVA in the broad part of the drawn world, for federated tuning to build on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from polyfed.data.scene_examples import TASKS, Example, SceneTask, common_examples, pretraining_examples
from polyfed.model.metrics import finish
from polyfed.model.text_metrics import text_sums
from polyfed.model.tiny_descent import Watch
from polyfed.model.tiny_language import Texts, train_language
from polyfed.model.tiny_llava import Sizes, tiny_llava
from polyfed.model.tiny_vision import pixels, train_tower

StageWatch = Callable[[str, int, float], None]
"""Called after every step with the stage, the number of its steps done, and the step's loss."""
VISION, LANGUAGE = "vision tower", "language model"
LONGEST_ANSWER = 40
AT_ONCE = 75


@dataclass(frozen=True)
class Steps:
    """How many steps each stage takes; 0 leaves it out."""

    vision: int = 1000
    language: int = 1100


def pretrain(seed: int, steps: Steps, watch: StageWatch, sizes: Sizes | None = None) -> tuple[Any, Any]:
    """Return a pre-trained tiny LLaVA and its processor.

    First the vision tower learns what is where in pictures; then it is frozen, and connector and language model learn
    the three tasks. One thread computes: so the same seed and steps give the same bits on the same machine.
    """
    with one_thread():
        model, processor = tiny_llava(seed, sizes)
        model.train()
        train_tower(model, processor, seed, steps.vision, _of_stage(VISION, watch))
        model.model.vision_tower.requires_grad_(False)
        train_language(model, processor, seed, steps.language, _of_stage(LANGUAGE, watch))
        model.model.vision_tower.requires_grad_(True)
    return model.eval(), processor


def scores(model: Any, processor: Any, count: int, seed: int) -> dict[SceneTask, tuple[dict[str, float], ...]]:
    """Return each task's metrics on ``count`` test examples of the broad part, and on as many of the whole world."""
    broad = pretraining_examples(count * len(TASKS), seed, "test")
    with one_thread():
        return {
            task: tuple(
                _score(model, processor, examples)
                for examples in ([one for one in broad if one.task == task], common_examples(task, count, seed))
            )
            for task in TASKS
        }


def _score(model: Any, processor: Any, examples: Sequence[Example]) -> dict[str, float]:
    texts = Texts(processor)
    parts = [examples[i : i + AT_ONCE] for i in range(0, len(examples), AT_ONCE)]
    said = [answer for part in parts for answer in _answers(model, processor, texts, part)]
    return finish(text_sums(examples[0].task, said, [example.answers for example in examples]))


def _answers(model: Any, processor: Any, texts: Texts, examples: Sequence[Example]) -> list[str]:
    """Return the most likely answers, decoded greedily."""
    asked = [texts.opening + texts.instruction(example.instruction) for example in examples]
    longest = max(map(len, asked))
    padding = processor.tokenizer.pad_token_id
    tokens = torch.tensor([(padding,) * (longest - len(each)) + each for each in asked])
    generated = model.generate(
        input_ids=tokens,
        attention_mask=(tokens != padding).long(),
        pixel_values=pixels(torch.stack([example.image for example in examples]), processor),
        max_new_tokens=LONGEST_ANSWER,
        do_sample=False,
    )
    return [text.strip() for text in processor.tokenizer.batch_decode(generated[:, longest:], skip_special_tokens=True)]


def _of_stage(stage: str, watch: StageWatch) -> Watch:
    return lambda done, loss: watch(stage, done, loss)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread inside: for layers this small more are slower, and sums depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
