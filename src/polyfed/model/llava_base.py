"""The frozen base of a LLaVA: loaded once, never trained, shared by every model that is made of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from polyfed.data.checkpoint_place import checkpoint_place
from polyfed.data.quiet_loading import without_bars
from polyfed.errors import UserError
from polyfed.rng import seeded

ADAPTED = r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
"""All linear layers of the language model but its head; the vision tower has layers of the same names."""

Weights = Literal["float32", "bfloat16", "4bit"]


@dataclass(frozen=True)
class LoraSizes:
    """Low-rank adapters: rank, alpha (the update is alpha / rank · B A) and dropout before A."""

    rank: int = 64
    alpha: int = 128
    dropout: float = 0.05


@dataclass(frozen=True)
class LlavaBase:
    """A LlavaForConditionalGeneration whose weights are frozen.

    ``features`` and ``width`` are those of image features and of image tokens, ``tokens`` image tokens per picture;
    features are the tower's hidden state ``layer``, with its first token if ``whole``.
    """

    model: Any
    tokenizer: Any
    features: int
    width: int
    tokens: int
    image_token: int
    padding: int
    layer: int
    whole: bool

    def twin(self) -> Any:
        """Return a model of its own modules and of the very same weights, in which adapters can be put."""
        weights = [*self.model.parameters(), *self.model.buffers()]
        return copy.deepcopy(self.model, {id(weight): weight for weight in weights})

    @property
    def frozen(self) -> dict[str, int]:
        """Parameters by part; the pre-trained connector is none of them, for its copies are the components."""
        held = self.model.model
        whole, tower, connector = (
            sum(count(value) for value in part.parameters())
            for part in (self.model, held.vision_tower, held.multi_modal_projector)
        )
        return {"language_model": whole - tower - connector, "vision_tower": tower}

    def projector(self) -> dict[str, Tensor]:
        """Return copies of the pre-trained connector's weights, in float32, by the names of ``Connector``."""
        held: Mapping[str, Tensor] = self.model.model.multi_modal_projector.state_dict()
        return {name: value.detach().float().clone() for name, value in held.items()}


def load_base(path: str, weights: Weights = "float32", checkpointing: bool = False) -> LlavaBase:
    """Load a LLaVA from where ``checkpoint_place`` says, and freeze it.

    Weights are read from safetensors only; with ``4bit`` the language model's layers are held as NF4 (QLoRA, Dettmers
    et al., 2023) and the rest in bfloat16. Raises UserError if an extra is missing or ``path`` is no LLaVA.
    """
    transformers = libraries()
    place = checkpoint_place(path, "model.path")
    held = four_bits(transformers) if weights == "4bit" else {"dtype": getattr(torch, weights)}
    try:
        with without_bars():
            model = transformers.LlavaForConditionalGeneration.from_pretrained(
                place.name, **held, use_safetensors=True, local_files_only=place.local
            )
        tokenizer = transformers.AutoTokenizer.from_pretrained(place.name, local_files_only=place.local)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"model.path: {path!r} cannot be loaded as a LLaVA ({error}); give a folder with config.json and "
            "safetensors of a LlavaForConditionalGeneration"
        ) from error
    return frozen(model, tokenizer, path, checkpointing)


def four_bits(transformers: Any) -> dict[str, Any]:
    """Return how a base of 4 bits is loaded.

    Raises UserError that names the extra if bitsandbytes is missing, and where there is no GPU: on a processor
    bitsandbytes (0.50) lets no gradients through such layers, and the connector would be trained wrongly.
    """
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"model.weights: 4bit needs bitsandbytes ({error}): pip install 'polyfed[mllm,4bit]', or use bfloat16"
        ) from error
    if not torch.cuda.is_available():
        raise UserError("model.weights: 4bit needs a GPU; without one use bfloat16 or float32")
    settings = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["model.vision_tower", "model.multi_modal_projector", "lm_head"],
    )
    return {"quantization_config": settings, "dtype": torch.bfloat16}


def count(value: Any) -> int:
    """Count the numbers of a parameter, also of one of 4 bits, two of which are one byte."""
    state = getattr(value, "quant_state", None)
    return int(value.numel()) if state is None else math.prod(state.shape)


def frozen(model: Any, tokenizer: Any, path: str = "the model", checkpointing: bool = False) -> LlavaBase:
    """Freeze a loaded LLaVA. Raises UserError where it has no padding token."""
    config = model.config
    padding = config.text_config.pad_token_id
    if padding is None:
        raise UserError(f"model.path: {path!r} names no padding token (text_config.pad_token_id in its config.json)")
    model.requires_grad_(False)
    model.eval()
    if checkpointing:
        # Versions of transformers name it one way or the other.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    whole = config.vision_feature_select_strategy == "full"
    return LlavaBase(
        model,
        tokenizer,
        vision.hidden_size,
        config.text_config.hidden_size,
        side * side + whole,
        config.image_token_id,
        int(padding),
        config.vision_feature_layer,
        whole,
    )


def add_lora(model: Any, name: str, sizes: LoraSizes, seed: int = 0, drawn_as: str = "lora") -> dict[str, nn.Parameter]:
    """Put low-rank adapters into the language model of a twin, and return their parameters.

    Names are those of the layers with ``A`` (rank, in) or ``B`` (out, rank), such as ``layers.0.self_attn.q_proj.A``.
    The first values of A depend on the seed and on ``drawn_as`` alone, those of B are zero.
    """
    import peft

    config = peft.LoraConfig(
        r=sizes.rank, lora_alpha=sizes.alpha, lora_dropout=sizes.dropout, bias="none", target_modules=ADAPTED
    )
    vars(model).pop("peft_config", None)  # of the adapter before, beside which peft would warn to put another
    with seeded(seed, drawn_as):
        peft.inject_adapter_in_model(config, model, adapter_name=name)
    found = {}
    for full, parameter in model.named_parameters():
        for matrix in ("A", "B"):
            ending = f".lora_{matrix}.{name}.weight"
            if full.endswith(ending):
                # What trains is float32, whatever the base: small steps are lost in fewer bits.
                parameter.data = parameter.data.float()
                layer = full.removesuffix(ending).split("language_model.", 1)[1]
                found[f"{layer}.{matrix}"] = parameter
    return found


def adapted_layers(model: Any, adapters: Collection[str]) -> tuple[Any, ...]:
    """Put all these adapters of a twin in use, so that their outputs add up, and return the layers that have them."""
    from peft.tuners.lora import LoraLayer

    layers = tuple(module for module in model.modules() if isinstance(module, LoraLayer))
    for layer in layers:
        layer.set_adapter(list(adapters))
    return layers


def libraries() -> Any:
    """Return transformers; raises UserError that names the extra if it, or peft, is not installed."""
    try:
        import peft  # noqa: F401
        import transformers
    except ImportError as error:
        raise UserError(
            f"the model 'llava' needs transformers and peft ({error}): pip install 'polyfed[mllm]'"
        ) from error
    return transformers
