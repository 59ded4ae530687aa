"""Pre-training of the tiny LLaVA's connector and language model on the three tasks, the vision tower being frozen.

All that is asked about a picture goes through the language model at once, behind a single copy of the picture: what is
asked sees the picture and itself only, at the positions that it would have alone. So the loss is that of separate
samples, at a third of the cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from polyfed.data.scene_examples import pretraining_scenes
from polyfed.data.scene_texts import Said
from polyfed.model.tiny_descent import Descent, Watch, minibatches
from polyfed.model.tiny_vision import features

Asked = tuple[tuple[int, ...], tuple[int, ...]]
"""The tokens of an instruction, behind the picture's, and those of its answer."""
PICTURES = 12_000
BATCH = 12
RATES = (0.01, 0.004)
IGNORED = -100
NOBODY = -1
"""Whom padding belongs to; the picture and what stands before it are 0, what is asked is 1, 2, ..."""


@dataclass(frozen=True)
class Packed:
    """Instructions about several pictures, one picture a row: each (pictures, tokens).

    ``labels`` are the next tokens where these belong to an answer. ``weights`` are one over the answer's length, so
    that all answers count alike: otherwise captions, of twenty tokens, would leave little to answers of one word.
    """

    tokens: Tensor
    labels: Tensor
    weights: Tensor
    positions: Tensor
    owners: Tensor

    def mask(self) -> Tensor:
        """Return what is added to attention: 0 where a token may look, else very little: (pictures, 1, n, n)."""
        asking, seen = self.owners[:, :, None], self.owners[:, None]
        allowed = ((asking == seen) | (seen == 0)).tril()
        return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[:, None]


def train_language(model: Any, processor: Any, seed: int, steps: int, watch: Watch) -> None:
    """Train connector and language model of a tiny LLaVA for so many steps."""
    if not steps:
        return
    drawn = pretraining_scenes(min(PICTURES, steps * BATCH), seed)
    seen = features(model, processor, [scene for scene, _ in drawn])
    texts = Texts(processor)
    asked = [[texts.asked(said) for said in told] for _, told in drawn]
    descent = Descent(*_trained(model), steps, RATES)
    for done, chosen in enumerate(minibatches(len(drawn), BATCH, steps, seed, "instructions"), 1):
        packed = texts.packed([asked[i] for i in chosen.tolist()])
        watch(done, descent.step(packed_loss(model, packed, seen[chosen])))


class Texts:
    """Turns what is asked about pictures into tokens, in the form of the processor's chat template."""

    def __init__(self, processor: Any) -> None:
        self._processor, self._tokenizer = processor, processor.tokenizer
        self.before = self._prompt("").partition("\n")[0] + "\n"
        self._known: dict[str, tuple[int, ...]] = {}
        self.opening = self._tokens(self.before)

    def _tokens(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False).input_ids)

    def _prompt(self, instruction: str) -> str:
        """Return an instruction in the template, with the picture's mark as often as it has tokens."""
        content = [{"type": "image"}, {"type": "text", "text": instruction}]
        text: str = self._processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
        side = self._processor.image_processor.crop_size["height"] // self._processor.patch_size
        return text.replace(self._tokenizer.image_token, self._tokenizer.image_token * side * side)

    def instruction(self, text: str) -> tuple[int, ...]:
        """Return the tokens of an instruction that stand behind the picture's, up to where the answer begins."""
        if text not in self._known:  # most are asked again and again, and templates are slow
            self._known[text] = self._tokens(self._prompt(text).removeprefix(self.before))
        return self._known[text]

    def asked(self, said: Said) -> Asked:
        """Return an instruction and the first of its answers as tokens."""
        return self.instruction(said.instruction), self._tokens(f" {said.answers[0]}{self._tokenizer.eos_token}")

    def packed(self, asked: Sequence[Sequence[Asked]]) -> Packed:
        """Pack all that is asked about each of several pictures into a row."""
        rows = [list(self._row(each)) for each in asked]
        longest = max(map(len, rows))
        padding = (self._tokenizer.pad_token_id, IGNORED, 0.0, 0, NOBODY)
        filled = [row + [padding] * (longest - len(row)) for row in rows]
        columns = [torch.tensor([[token[i] for token in row] for row in filled]) for i in range(len(padding))]
        return Packed(*columns)

    def _row(self, asked: Sequence[Asked]) -> Iterator[tuple[int, int, float, int, int]]:
        """Yield token, label, weight, position and owner."""
        for position, token in enumerate(self.opening):
            yield token, IGNORED, 0.0, position, 0
        for owner, (instruction, answer) in enumerate(asked, 1):
            labels = (*[IGNORED] * (len(instruction) - 1), *answer, IGNORED)
            weights = (*[0.0] * (len(instruction) - 1), *[1 / len(answer)] * len(answer), 0.0)
            for i, token in enumerate(instruction + answer):
                yield token, labels[i], weights[i], len(self.opening) + i, owner


def packed_loss(model: Any, packed: Packed, seen: Tensor) -> Tensor:
    """Return the weighted mean loss of answers; ``seen`` (pictures, patches, width) are the pictures' features."""
    body = model.model
    marks = (packed.tokens == model.config.image_token_id)[..., None]
    embedded = body.language_model.embed_tokens(packed.tokens)
    embedded = embedded.masked_scatter(marks, body.multi_modal_projector(seen))
    states = body.language_model(
        inputs_embeds=embedded, attention_mask=packed.mask(), position_ids=packed.positions, use_cache=False
    ).last_hidden_state
    answering = packed.labels != IGNORED
    losses = functional.cross_entropy(model.lm_head(states[answering]), packed.labels[answering], reduction="none")
    weights = packed.weights[answering]
    return (losses * weights).sum() / weights.sum()


def _trained(model: Any) -> tuple[list[Any], list[Any]]:
    """Return what is trained: the matrices of layers, and the rest."""
    layers = (model.model.multi_modal_projector, model.model.language_model.layers)
    matrices = [weight for module in layers for weight in module.parameters() if weight.dim() == 2]
    held = {id(weight) for weight in matrices}
    whole = (model.model.multi_modal_projector, model.model.language_model, model.lm_head)
    return matrices, [weight for module in whole for weight in module.parameters() if id(weight) not in held]
