"""The vision tower of a LLaVA alone: the weights of its language model are not read."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from safetensors import SafetensorError

from polyfed.data.checkpoint_place import checkpoint_place
from polyfed.data.quiet_loading import without_bars
from polyfed.errors import UserError

KEY = "data.checkpoint"
OTHERS = ("language_model", "multi_modal_projector", "lm_head")
"""What names of weights hold that are none of the tower's, in all layouts in which checkpoints of LLaVA are written."""


def load_tower(path: str) -> Any:
    """Load the vision tower of a LLaVA in float32 from where ``checkpoint_place`` says.

    Weights are read from safetensors only, in one file or several. Raises UserError if there are none, or if one of
    the tower's is missing.
    """
    place = checkpoint_place(path, KEY)
    try:
        with without_bars():
            model, told = _tower_only().from_pretrained(
                place.name,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=place.local,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{KEY}: the vision tower of {path!r} cannot be loaded ({error}); give a folder as "
            "save_pretrained writes it"
        ) from error
    missing = sorted(told["missing_keys"])
    if missing:
        raise UserError(f"{KEY}: {path!r} has no weights for {missing[0]!r} of its vision tower")
    return model.vision_tower.eval()


def _tower_only() -> Any:
    """Return a class of LLaVAs that are nothing but their tower.

    As one of transformers' own models it finds its weights wherever a whole LLaVA does.
    """
    library: Any = import_module("transformers")
    whole = library.LlavaPreTrainedModel

    def build(self: Any, config: Any) -> None:
        whole.__init__(self, config)
        self.vision_tower = library.AutoModel.from_config(config.vision_config)
        self.post_init()

    return type("TowerOnly", (whole,), {"__init__": build, "_keys_to_ignore_on_load_unexpected": list(OTHERS)})
