"""A LLaVA small enough for two processor cores: its tokenizer, its processor, its weights, drawn and not yet trained.

The folder written is an ordinary checkpoint: ``LlavaForConditionalGeneration.from_pretrained`` and
``LlavaProcessor.from_pretrained`` load it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from polyfed import rng
from polyfed.data.quiet_loading import without_bars
from polyfed.data.scene_texts import VOCABULARY
from polyfed.data.scenes import SIDE
from polyfed.errors import UserError, writing

UNKNOWN, BEGIN, END, PADDING, IMAGE = "<unk>", "<s>", "</s>", "<pad>", "<image>"

PIECES = r" ?[0-9]+(?:\.[0-9]+)?| ?[^\W\d_]+| ?(?:[^\s\w]|_)|\s+"
"""A number is one piece, so that an edge of a box is one token; space belongs to the piece after it."""

POSITION_SPREAD = 0.3
"""Standard deviation of the first position embeddings of patches."""

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role == "user" -%}
{{- "USER: " -}}
{%- for part in message.content if part.type == "image" -%}{{- "<image>\\n" -}}{%- endfor -%}
{%- for part in message.content if part.type == "text" -%}{{- part.text -}}{%- endfor -%}
{{- " ASSISTANT:" -}}
{%- else -%}
{%- generation -%}
{%- for part in message.content if part.type == "text" -%}{{- " " ~ part.text -}}{%- endfor -%}
{{- eos_token -}}
{%- endgeneration -%}
{%- endif -%}
{%- endfor -%}
"""
"""Vicuna's form without its system sentence; the answer and the end of sequence are what is to be generated."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a tiny LLaVA.

    Pictures have ``image`` pixels a side, in patches of ``patch``. The vision tower's hidden states (``vision_layers``
    of them; the last but one is used) have ``vision_width`` numbers, the text model's ``text_width``. They differ on
    purpose: a mix-up then shows at once. ``text_inner`` is the width inside the text model's feed-forward layers (None:
    four times its width), ``vocabulary`` how many tokens have embeddings (None: those of the tokenizer).
    """

    image: int = SIDE
    patch: int = 8
    vision_width: int = 128
    vision_layers: int = 3
    vision_heads: int = 4
    text_width: int = 96
    text_layers: int = 3
    text_heads: int = 4
    positions: int = 512
    text_inner: int | None = None
    vocabulary: int | None = None


def tiny_tokenizer(texts: Iterable[str] = ()) -> Any:
    """Train a byte-level BPE tokenizer on the words of the tiny world and on ``texts``.

    Any text can be encoded; every word of the tiny world and every number from 0.00 to 1.00 is one token.
    """
    library = transformers_library()
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE(unk_token=UNKNOWN))
    pieces = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        special_tokens=[UNKNOWN, BEGIN, END, PADDING, IMAGE],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        vocab_size=4096,
        show_progress=False,
    )
    bpe.train_from_iterator([*_lexicon(), *texts], trainer)
    return library.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PADDING,
        extra_special_tokens={"image_token": IMAGE},
        clean_up_tokenization_spaces=False,
    )


def tiny_processor(sizes: Sizes, tokenizer: Any) -> Any:
    """Return a processor that pads pictures to squares, resizes them, and expands their mark to their tokens."""
    library = transformers_library()
    return library.LlavaProcessor(
        image_processor=library.LlavaImageProcessorPil(
            size={"shortest_edge": sizes.image},
            crop_size={"height": sizes.image, "width": sizes.image},
            do_pad=True,
        ),
        tokenizer=tokenizer,
        patch_size=sizes.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def tiny_llava(seed: int, sizes: Sizes | None = None, texts: Iterable[str] = ()) -> tuple[Any, Any]:
    """Return a model (LlavaForConditionalGeneration, float32) with random weights, and its processor.

    The same seed gives the same bits. ``texts`` are what else the tokenizer shall know well.
    """
    library = transformers_library()
    sizes = sizes or Sizes()
    processor = tiny_processor(sizes, tiny_tokenizer(texts))
    config = llava_config(sizes, processor.tokenizer)
    with rng.seeded(seed, "tiny llava"):
        model = library.LlavaForConditionalGeneration(config)
        # CLIP's own start, 0.02, is nothing beside the patches: where things are would take long to learn
        torch.nn.init.normal_(model.model.vision_tower.embeddings.position_embedding.weight, std=POSITION_SPREAD)
    return model.eval(), processor


def llava_config(sizes: Sizes, tokenizer: Any) -> Any:
    """Return the configuration (LlavaConfig) of a LLaVA of these sizes, with the tokenizer's special tokens."""
    library = transformers_library()
    vision = library.CLIPVisionConfig(
        hidden_size=sizes.vision_width,
        intermediate_size=4 * sizes.vision_width,
        num_hidden_layers=sizes.vision_layers,
        num_attention_heads=sizes.vision_heads,
        image_size=sizes.image,
        patch_size=sizes.patch,
        projection_dim=sizes.vision_width,
    )
    text = library.LlamaConfig(
        vocab_size=sizes.vocabulary or len(tokenizer),
        hidden_size=sizes.text_width,
        intermediate_size=sizes.text_inner or 4 * sizes.text_width,
        num_hidden_layers=sizes.text_layers,
        num_attention_heads=sizes.text_heads,
        num_key_value_heads=sizes.text_heads,
        max_position_embeddings=sizes.positions,
        initializer_range=sizes.text_width**-0.5,  # the usual 0.02 suits widths of thousands
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return library.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.image_token_id,
        image_seq_length=(sizes.image // sizes.patch) ** 2,
    )


def save_checkpoint(model: Any, processor: Any, folder: Path) -> None:
    """Write model and processor to a new folder, complete or not at all; weights as safetensors.

    Raises UserError if the folder is there and not empty, or cannot be written.
    """
    refuse_used(folder)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as draft:
            whole = Path(draft) / folder.name
            with without_bars():
                model.save_pretrained(whole)
                processor.save_pretrained(whole)
            whole.replace(folder)


def refuse_used(folder: Path) -> None:
    """Raise UserError if a checkpoint cannot go there: something is in the folder, or it is a file."""
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty; give a new folder for the checkpoint")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; give a new folder for the checkpoint")


def _lexicon() -> list[str]:
    """Return texts that hold every word and number with and without space before it, twice: once is no pattern."""
    numbers = [f"{hundredths / 100:.2f}" for hundredths in range(101)]
    return [text for word in (*VOCABULARY, *numbers, "USER", "ASSISTANT") for text in (word, f" {word}") for _ in "12"]


def transformers_library() -> Any:
    """Import transformers, or say how to get it."""
    try:
        import transformers
    except ImportError as error:
        raise UserError("language models need transformers and peft: pip install 'polyfed[mllm]'") from error
    return transformers
