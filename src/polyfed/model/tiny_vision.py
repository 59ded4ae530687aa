"""Pre-training of the tiny LLaVA's vision tower on drawn scenes, before there is any text.

CLIP's tower learns from captions of the web what is in a picture. Ours is told outright, patch by patch: whether an
object covers the patch, and which shape, colour, size and edges it has. Linear layers read that from the hidden state
that LLaVA uses (the last but one) and are thrown away afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from polyfed import rng
from polyfed.data.scene_examples import crowded_scenes
from polyfed.data.scene_pictures import picture
from polyfed.data.scenes import BACKGROUNDS, COLOURS, SHAPES, SIDE, SIZES, Object, Scene
from polyfed.model.tiny_descent import Descent, Watch, minibatches

FACTS: Mapping[str, tuple[int, float]] = {
    "background": (len(BACKGROUNDS), 0.2),
    "centre": (2, 0.5),
    "covered": (2, 0.5),
    "shape": (len(SHAPES), 4.0),
    "colour": (len(COLOURS), 1.0),
    "size": (len(SIZES), 0.5),
    **dict.fromkeys(("left", "top", "right", "bottom"), (SIDE + 1, 0.5)),
}
"""What is told of a patch: how many answers there are, and the weight of the loss. Shapes are the hardest to learn.

``centre``: whether an object's middle is in the patch. From ``shape`` on: of the object that covers most of it.
"""
NOTHING = -100
COVERED = 1 / 8
"""An object is told of in patches of which its box covers at least this share."""
PICTURES = 20_000
BATCH = 32
RATES = (0.01, 0.004)
FEATURES_AT_ONCE = 256


def train_tower(model: Any, processor: Any, seed: int, steps: int, watch: Watch) -> None:
    """Train the tower of a tiny LLaVA (all but its last layer, which LLaVA does not use) for so many steps."""
    if not steps:
        return
    tower, config = model.model.vision_tower, model.config.vision_config
    scenes = crowded_scenes(min(PICTURES, steps * BATCH), seed)
    pictures = torch.stack([picture(scene) for scene in scenes])
    told = torch.from_numpy(np.stack([facts(scene, config.patch_size) for scene in scenes]))
    with rng.seeded(seed, "readers of the vision tower"):
        readers = nn.ModuleList(nn.Linear(config.hidden_size, answers) for answers, _ in FACTS.values())
    matrices = [weight for weight in tower.encoder.layers[:-1].parameters() if weight.dim() == 2]
    held = {id(weight) for weight in matrices}
    others = [weight for weight in (*tower.parameters(), *readers.parameters()) if id(weight) not in held]
    descent = Descent(matrices, others, steps, RATES)
    for done, chosen in enumerate(minibatches(len(scenes), BATCH, steps, seed, "pictures"), 1):
        hidden = patch_states(tower, pixels(pictures[chosen], processor))
        watch(done, descent.step(_loss(readers, hidden, told[chosen])))


def facts(scene: Scene, patch: int) -> npt.NDArray[np.int64]:
    """Return what is told of each patch, row by row: (patches, facts), ``NOTHING`` where there is nothing to say."""
    side = SIDE // patch
    told = np.full((side, side, len(FACTS)), NOTHING, dtype=np.int64)
    told[..., :3] = BACKGROUNDS.index(scene.background), 0, 0
    shares = np.stack([_shares(thing, patch) for thing in scene.objects])
    most = shares.argmax(0)
    for row, column in np.argwhere(shares.max(0) >= COVERED):
        told[row, column, 2:] = 1, *_told_of(scene.objects[most[row, column]])
    for thing in scene.objects:
        x, y = thing.centre
        told[int(y) // patch, int(x) // patch, 1] = 1
    return told.reshape(side * side, len(FACTS))


def _told_of(thing: Object) -> tuple[int, ...]:
    kind = SHAPES.index(thing.shape), COLOURS.index(thing.colour), SIZES.index(thing.size)
    return *kind, thing.x, thing.y, thing.x + thing.across, thing.y + thing.across


def _shares(thing: Object, patch: int) -> npt.NDArray[np.float64]:
    """Return which share of each patch an object's box covers: (rows, columns)."""
    begin = np.arange(0, SIDE, patch)
    down, across = (
        np.clip(np.minimum(start + thing.across, begin + patch) - np.maximum(start, begin), 0, None) / patch
        for start in (thing.y, thing.x)
    )
    return np.outer(down, across)


def _loss(readers: nn.ModuleList, hidden: Tensor, told: Tensor) -> Tensor:
    losses = [
        weight * functional.cross_entropy(read(hidden).flatten(0, 1), told[..., i].flatten(), ignore_index=NOTHING)
        for i, (read, (_, weight)) in enumerate(zip(readers, FACTS.values(), strict=True))
    ]
    return torch.stack(losses).sum()


def pixels(pictures: Tensor, processor: Any) -> Tensor:
    """Scale pictures (batch, 3, SIDE, SIDE) of bytes as the processor does, many at once: they need no resizing."""
    images = processor.image_processor
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (images.image_mean, images.image_std))
    return (pictures.float() / 255 - mean) / deviation


def patch_states(tower: Any, scaled: Tensor) -> Tensor:
    """Return the hidden states that LLaVA uses: (batch, patches, width). The layer after them is not run."""
    hidden = tower.pre_layrnorm(tower.embeddings(scaled))
    for layer in tower.encoder.layers[:-1]:
        hidden = layer(hidden, attention_mask=None)
    states: Tensor = hidden[:, 1:]
    return states


def features(model: Any, processor: Any, scenes: Sequence[Scene]) -> Tensor:
    """Return the features of scenes' pictures once and for all: (scenes, patches, width)."""
    parts = [scenes[i : i + FEATURES_AT_ONCE] for i in range(0, len(scenes), FEATURES_AT_ONCE)]
    with torch.no_grad():
        pictures = (torch.stack([picture(scene) for scene in part]) for part in parts)
        return torch.cat([patch_states(model.model.vision_tower, pixels(part, processor)) for part in pictures])
