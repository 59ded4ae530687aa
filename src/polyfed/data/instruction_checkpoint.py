"""What of a LLaVA checkpoint makes samples of instructions: its tokenizer, its chat template and its vision tower."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polyfed.data.checkpoint_place import checkpoint_place
from polyfed.data.instruction_answers import shown
from polyfed.errors import UserError

IMAGES_AT_ONCE = 64

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""What Vicuna, and with it LLaVA-1.5, was tuned with; other words would be another prompt."""

VICUNA = f"""\
{{{{- "{SYSTEM} " -}}}}
{{%- for message in messages -%}}
{{%- if message.role == "user" -%}}
{{{{- "USER: " -}}}}
{{%- for part in message.content if part.type == "image" -%}}{{{{- "<image>\\n" -}}}}{{%- endfor -%}}
{{%- for part in message.content if part.type == "text" -%}}{{{{- part.text -}}}}{{%- endfor -%}}
{{{{- " ASSISTANT:" -}}}}
{{%- else -%}}
{{%- for part in message.content if part.type == "text" -%}}{{{{- " " ~ part.text -}}}}{{%- endfor -%}}
{{{{- eos_token -}}}}
{{%- endif -%}}
{{%- endfor -%}}
"""
"""Vicuna v1, the form of LLaVA-1.5, for processors without a chat template."""

Message = dict[str, Any]


class Encoded(NamedTuple):
    """A conversation as tokens, and the spans (first, one past the last) of the answers with their ends of sequence."""

    tokens: list[int]
    answers: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Checkpoint:
    """The processor and the vision tower of a LLaVA; ``vision`` is the tower's configuration, ``path`` its place.

    Features are those of the tower's ``layer``, with its first token if ``whole``. A text has ``longest`` tokens at
    most; a longer one is refused, or with ``cut`` cut off at the end.
    """

    path: str
    processor: Any
    vision: Any
    layer: int
    whole: bool
    longest: int
    cut: bool = False

    @cached_property
    def tower(self) -> Any:
        """The vision tower, on a GPU if there is one; loaded when it is first asked for, for it takes its time.

        Raises UserError as ``load_tower``.
        """
        from polyfed.data.llava_tower import load_tower

        found = load_tower(self.path)
        return found.to("cuda") if torch.cuda.is_available() else found

    @property
    def tokens(self) -> int:
        """Image tokens of one picture."""
        return int((self.vision.image_size // self.vision.patch_size) ** 2) + self.whole

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of a picture's features: (tokens, features)."""
        return self.tokens, int(self.vision.hidden_size)

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """Shape of a picture's pixels: (3, height, width)."""
        side = int(self.vision.image_size)
        return 3, side, side

    @property
    def pads(self) -> bool:
        """Whether the image processor pads pictures to squares, so that it leaves nothing of them out."""
        return bool(getattr(self.processor.image_processor, "do_pad", False))

    @cached_property
    def digest(self) -> str:
        """A SHA-256 of all that features depend on but the picture: the tower, its layer, the image processor.

        The kind of device is part of it, because a GPU rounds otherwise.
        """
        found = hashlib.sha256()
        named = ((name, value) for name, value in self.tower.config.to_dict().items() if name in TOWER_SETTINGS)
        device = next(self.tower.parameters()).device.type
        settings = self.processor.image_processor.to_dict()
        about = [dict(named), self.layer, self.whole, device, settings]
        found.update(json.dumps(about, sort_keys=True, default=str).encode())
        for name, value in sorted(self.tower.state_dict().items()):
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return found.hexdigest()

    def features(self, pictures: Sequence[Callable[[], Any]]) -> Tensor:
        """Return what the tower makes of pictures: (pictures, tokens, features) float32."""
        starts = range(0, len(pictures), IMAGES_AT_ONCE)
        return torch.cat([self.seen([each() for each in pictures[i : i + IMAGES_AT_ONCE]]) for i in starts])

    @torch.no_grad()
    def seen(self, images: Sequence[Any]) -> Tensor:
        """Return what the tower makes of images that are computed together, (images, tokens, features) float32.

        How many there are may change the last bits. Raises UserError as ``pixels``.
        """
        pixels = self.pixels(images)
        device = next(self.tower.parameters()).device
        hidden = self.tower(pixels.to(device), output_hidden_states=True).hidden_states[self.layer]
        found: Tensor = (hidden if self.whole else hidden[:, 1:]).float().cpu()
        return found

    def pixels(self, images: Sequence[Any]) -> Tensor:
        """Return images as the tower takes them: (images, 3, side, side) float32.

        Raises UserError where the image processor makes another size.
        """
        pixels: Tensor = self.processor.image_processor(list(images), return_tensors="pt")["pixel_values"].float()
        if tuple(pixels.shape[1:]) != self.picture_shape:
            raise UserError(
                f"data.checkpoint: the image processor makes pictures of {tuple(pixels.shape[-2:])} pixels, but the "
                f"vision tower takes {self.picture_shape[-1]} a side"
            )
        return pixels

    def encoded(self, turns: Sequence[str], picture: bool, place: str) -> Encoded:
        """Return the tokens of a conversation: questions and answers in turn, the first with a picture or without.

        What is learned are the answers, each with its end of sequence. Raises UserError naming ``place`` where the
        template does not put each answer behind what comes before it, the text is too long, or a turn holds a special
        token of the tokenizer, which would not be read as text.
        """
        self._check_plain(turns, place)
        messages = self._messages(turns, picture)
        whole = self._tokens(messages)
        marks = whole.count(self._mark)
        if marks != picture * self.tokens:
            raise UserError(f"{place}: the checkpoint's chat template writes {marks} image tokens for this text")
        answers, end = [], 0
        for i in range(1, len(messages), 2):
            before = self._tokens(messages[:i], asking=True)
            upto = whole if i + 1 == len(messages) else self._tokens(messages[: i + 1])
            start, end = len(before), _last(upto, self._end) + 1
            if whole[:start] != before or whole[:end] != upto[:end] or end <= start:
                raise UserError(f"{place}: the checkpoint's chat template does not put the answer behind the question")
            answers.append((start, end))
        whole = whole[:end]
        return self._fitted(whole, answers, place)

    def _check_plain(self, turns: Sequence[str], place: str) -> None:
        for i, text in enumerate(turns):
            token = next((token for token in self._special if token in text), None)
            if token is not None:
                raise UserError(
                    f"{place}: the {'answer' if i % 2 else 'question'} {shown(text)} holds {token!r}, a special token "
                    "of the checkpoint's tokenizer, which would not be read as text; write it otherwise"
                )

    def _fitted(self, whole: list[int], answers: Sequence[tuple[int, int]], place: str) -> Encoded:
        if len(whole) <= self.longest:
            return Encoded(whole, tuple(answers))
        if not self.cut:
            raise UserError(f"{place}: the text has {len(whole)} tokens; at most {self.longest} are allowed")
        kept = tuple((start, min(end, self.longest)) for start, end in answers if start < self.longest)
        return Encoded(whole[: self.longest], kept)

    def _messages(self, turns: Sequence[str], picture: bool) -> list[Message]:
        found: list[Message] = []
        for i, text in enumerate(turns):
            written = text if i % 2 == 0 or self._ends else text + self.processor.tokenizer.eos_token
            content: list[dict[str, str]] = [{"type": "text", "text": written}]
            if picture and i == 0:
                content.insert(0, {"type": "image"})
            found.append({"role": "assistant" if i % 2 else "user", "content": content})
        return found

    @cached_property
    def _ends(self) -> bool:
        """Whether the chat template writes the end of sequence behind an answer."""
        asked, answered = ({"role": role, "content": [{"type": "text", "text": "a"}]} for role in ("user", "assistant"))
        before = self._tokens([asked], asking=True)
        return self._end in self._tokens([asked, answered])[len(before) :]

    @cached_property
    def _end(self) -> int:
        return int(self.processor.tokenizer.eos_token_id)

    @cached_property
    def _special(self) -> tuple[str, ...]:
        """What the tokenizer reads as control tokens wherever it stands in a text."""
        tokenizer = self.processor.tokenizer
        added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
        return tuple(sorted({*tokenizer.all_special_tokens, *added}))

    @cached_property
    def _mark(self) -> int:
        return int(self.processor.tokenizer.convert_tokens_to_ids(self.processor.image_token))

    @cached_property
    def _beginning(self) -> list[int]:
        """What the tokenizer puts before every text, such as <s>."""
        tokenizer = self.processor.tokenizer
        found: list[int] = tokenizer("")["input_ids"]
        return [token for token in found[:1] if token == tokenizer.bos_token_id]

    def _tokens(self, messages: Sequence[Message], *, asking: bool = False) -> list[int]:
        text = self.processor.apply_chat_template(
            list(messages),
            tokenize=False,
            add_generation_prompt=asking,
            chat_template=self.processor.chat_template or VICUNA,
        )
        short: list[int] = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        if short[:1] != self._beginning:
            short = self._beginning + short
        return [each for token in short for each in ([token] * self.tokens if token == self._mark else [token])]


TOWER_SETTINGS = frozenset(
    {
        "model_type",
        "hidden_act",
        "layer_norm_eps",
        "num_attention_heads",
        "num_hidden_layers",
        "image_size",
        "patch_size",
    }
)
"""Of the tower's configuration, what its weights do not tell."""


def _last(tokens: Sequence[int], wanted: int) -> int:
    """Return the last place of a token, -1 where it is not."""
    return next((i for i in range(len(tokens) - 1, -1, -1) if tokens[i] == wanted), -1)


def load_checkpoint(path: str, longest: int, *, cut: bool = False) -> Checkpoint:
    """Load the processor of a LLaVA; its vision tower is loaded when it is needed.

    Raises UserError if it is no LLaVA, has no processor, or if the tokenizer has no padding or no end of sequence.
    """
    try:
        from transformers import LlavaConfig, LlavaProcessor
    except ImportError as error:
        raise UserError(f"instructions need transformers ({error}): pip install 'polyfed[mllm]'") from error
    place = checkpoint_place(path, "data.checkpoint")
    try:
        processor = LlavaProcessor.from_pretrained(place.name, local_files_only=place.local)
        config = LlavaConfig.from_pretrained(place.name, local_files_only=place.local)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"data.checkpoint: {path!r} cannot be loaded as a LLaVA with its processor ({error}); give a folder as "
            "save_pretrained writes it"
        ) from error
    whole, layer = config.vision_feature_select_strategy == "full", config.vision_feature_layer
    if not isinstance(layer, int):
        raise UserError(f"data.checkpoint: {path!r} takes features from the layers {layer}; one layer is supported")
    for name in ("pad_token", "eos_token"):
        if getattr(processor.tokenizer, name) is None:
            raise UserError(f"data.checkpoint: the tokenizer of {path!r} has no {name}")
    return Checkpoint(path, processor, config.vision_config, layer, whole, longest, cut)
