"""The ``experts`` model: what it computes, against a plain transcription of its formulas, and how gates weigh."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyfed.data.schema import Modality
from polyfed.model.architecture import Architecture
from polyfed.model.catalog import MODELS
from polyfed.model.expert_gates import weights
from tests.model.examples import DIGIT, IMAGE, PICTURE, VECTOR, batch_of

MODALITIES = {m.name: m for m in (IMAGE, VECTOR)}
TASKS = {t.name: t for t in (DIGIT, PICTURE)}
SIDE = st.integers(1, 9)
TINY = {"width": 6, "heads": 2, "ratio": 1.5, "queries": 3}


def small(**options: Any) -> Architecture:
    return MODELS.build("experts", {**TINY, **options}, MODALITIES, TASKS)


@dataclass
class Transcription:
    """The formulas for one sample, written down without any sharing of work."""

    values: dict[str, Tensor]
    grid: str
    heads: int = 2
    layers: int = 2

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.values[f"{name}.weight"].T + self.values[f"{name}.bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.values[f"{name}.weight"] + self.values[f"{name}.bias"]

    def attend(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        q, k, v = (self.linear(f"{name}.{part}", z) for part, z in (("query", x), ("key", y), ("value", y)))
        depth = q.shape[1] // self.heads
        found = []
        for head in range(self.heads):
            own = slice(head * depth, (head + 1) * depth)
            found.append((q[:, own] @ k[:, own].T / math.sqrt(depth)).softmax(-1) @ v[:, own])
        return self.linear(f"{name}.output", torch.cat(found, 1))

    def forward(self, name: str, x: Tensor) -> Tensor:
        hidden = torch.nn.functional.gelu(self.linear(f"{name}.1", self.norm(f"{name}.0", x)))
        return x + self.linear(f"{name}.3", hidden)

    def path(self, z: Tensor, a: str, b: str) -> Tensor:
        first, second = f"expert.{a}.{b}.input", f"expert.{a}.{b}.output"
        if self.grid == "axes":
            first, second = f"expert.input.{a}", f"expert.output.{b}"
        for layer in range(self.layers):
            normal = self.norm(f"self_attention.{a}.norms.{layer}", z)
            z = z + self.attend(f"self_attention.{a}.layers.{layer}", normal, normal)
            z = self.forward(f"{first}.layers.{layer}", z)
        q = self.values[f"cross_attention.{b}.queries"]
        for layer in range(self.layers):
            normal = self.norm(f"cross_attention.{b}.norms.{layer}", q)
            q = q + self.attend(f"cross_attention.{b}.layers.{layer}", normal, z)
            q = self.forward(f"{second}.layers.{layer}", q)
        return q

    def stem(self, name: str, patches: Tensor) -> Tensor:
        return self.norm(
            f"stem.{name}.norm", self.linear(f"stem.{name}.embed", patches) + self.values[f"stem.{name}.positions"]
        )

    def mixture(self, tokens: dict[str, Tensor], task: str, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The mixed latent (width,) and the scaled query tokens (paths · queries, width)."""
        paths = []
        for name, z in tokens.items():
            general = self.linear("projection", z)
            paths += [self.path(general, "general", b) for b in ("general", task)]
            paths += [self.path(z, name, b) for b in ("general", task)]
        alpha = logits.softmax(-1)
        latent = sum((weight * path.mean(0) for weight, path in zip(alpha, paths, strict=True)), torch.zeros(6))
        return latent, torch.cat([len(paths) * weight * path for weight, path in zip(alpha, paths, strict=True)])

    def draw(self, task: str, c: Tensor) -> Tensor:
        o = self.values[f"head.{task}.queries"]
        o = o + self.attend(f"head.{task}.attention", self.norm(f"head.{task}.before_attention", o), c)
        return self.linear(f"head.{task}.draw", self.norm(f"head.{task}.norm", o))


def patches_of(image: Tensor, size: int) -> Tensor:
    """An image (height, width) as its patches, row by row."""
    height, width = image.shape
    return torch.stack(
        [image[y : y + size, x : x + size].flatten() for y in range(0, height, size) for x in range(0, width, size)]
    )


@pytest.mark.parametrize("grid", ["pairs", "axes"])
@pytest.mark.parametrize("gate", ["uniform", "learned", "input"])
def test_predictions_are_those_of_the_formulas(grid: str, gate: str) -> None:
    model = small(expert_grid=grid, gate=gate)
    values = {name: value + 0.3 * torch.randn(value.shape) for name, value in model.initial(0).items()}
    module = model.assemble(model.components(list(MODALITIES), list(TASKS)))
    module.load_state_dict(values)
    batch = batch_of([IMAGE, VECTOR], [DIGIT, PICTURE], rows=2)
    outputs = module(batch)
    plain = Transcription(values, grid)
    for row in range(2):
        image, vector = batch.inputs["image"][row, 0], batch.inputs["vector"][row]
        tokens = {"image": plain.stem("image", patches_of(image, 2)), "vector": plain.stem("vector", vector[None])}
        summary = (tokens["image"].mean(0) + tokens["vector"].mean(0)) / 2

        def logits(task: str, summary: Tensor = summary) -> Tensor:
            if gate == "input":
                return torch.cat([plain.linear(f"gate.{m}.{task}", summary) for m in MODALITIES])
            learned = {"learned": lambda m: values[f"gate.{m}.{task}.logits"], "uniform": lambda m: torch.zeros(4)}
            return torch.cat([learned[gate](m) for m in MODALITIES])

        latent, _ = plain.mixture(tokens, "digit", logits("digit"))
        expected = plain.linear("head.digit.linear", latent)
        torch.testing.assert_close(outputs.predictions["digit"][row], expected, rtol=1e-4, atol=1e-4)
        other, c = plain.mixture(tokens, "picture", logits("picture"))
        drawn = patches_of(outputs.predictions["picture"][row, 0, :8, :6], 2)  # 9 x 7 pixels: the last patches are cut
        inner = plain.draw("picture", c).reshape(5, 4, 4)[:4, :3].flatten(0, 1)
        torch.testing.assert_close(drawn, inner, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(outputs.fused[row], (latent + other) / 2, rtol=1e-4, atol=1e-4)


def as_axes(name: str) -> str:
    """Name a parameter of the plain network as the grid by axes names it."""
    kind, scope, part, *rest = name.split(".")
    attention, stage = {"input_stack": ("self", "input"), "output_stack": ("cross", "output")}.get(kind, ("", ""))
    if not stage:
        return name
    return ".".join([f"{attention}_attention" if part == "attention" else f"expert.{stage}", scope, *rest])


def test_the_plain_network_with_one_modality_is_one_path() -> None:
    model = small(expert_grid="module")
    module = model.assemble(model.components(["image"], list(TASKS)))
    values = {name: value + 0.3 * torch.randn(value.shape) for name, value in model.initial(0).items()}
    module.load_state_dict({name: values[name] for name in module.state_dict()})
    batch = batch_of([IMAGE], [DIGIT, PICTURE], rows=1)
    outputs = module(batch)
    plain = Transcription({as_axes(name): value for name, value in values.items()}, "axes")
    tokens = plain.stem("image", patches_of(batch.inputs["image"][0, 0], 2))
    expected = plain.linear("head.digit.linear", plain.path(tokens, "image", "digit").mean(0))
    torch.testing.assert_close(outputs.predictions["digit"][0], expected, rtol=1e-4, atol=1e-4)
    drawn = plain.draw("picture", plain.path(tokens, "image", "picture"))[0].reshape(2, 2)
    torch.testing.assert_close(outputs.predictions["picture"][0, 0, :2, :2], drawn, rtol=1e-4, atol=1e-4)
    assert outputs.latents == {}


def test_the_plain_network_reads_the_tokens_of_all_modalities_at_once() -> None:
    """Of two equal modalities each has half of the attention, so that nothing changes."""
    twin = Modality("twin", "image", IMAGE.shape, family="image")
    model = MODELS.build("experts", {**TINY, "expert_grid": "module"}, {"image": IMAGE, "twin": twin}, TASKS)
    values = model.initial(0)
    values |= {name.replace("image", "twin"): value for name, value in values.items() if name.startswith("stem.image")}
    one, both = (model.assemble(model.components(held, ["digit"])) for held in (["image"], ["image", "twin"]))
    batch = batch_of([IMAGE], [DIGIT])
    doubled = batch._replace(
        inputs={**batch.inputs, "twin": batch.inputs["image"]},
        present={**batch.present, "twin": batch.present["image"]},
    )
    for module in (one, both):
        module.load_state_dict({name: values[name] for name in module.state_dict()})
    torch.testing.assert_close(both(doubled).predictions, one(batch).predictions)


# ------------------------------------------------------------------------------------------------ gates


@given(st.lists(st.floats(-50, 50), min_size=4, max_size=4), st.lists(st.booleans(), min_size=4, max_size=4))
@settings(max_examples=50, deadline=None)
def test_weights_sum_to_one_over_what_is_present(logits: list[float], present: list[bool]) -> None:
    """P16: absent paths have weight 0, the others what they would have alone."""
    found = weights(torch.tensor([logits]), torch.tensor([present]))[0]
    kept = [logit for logit, here in zip(logits, present, strict=True) if here]
    assert (found[~torch.tensor(present)] == 0).all()
    torch.testing.assert_close(found[torch.tensor(present)], torch.tensor(kept).softmax(-1))


@pytest.mark.parametrize("gate", ["uniform", "learned", "input"])
def test_gates_begin_as_the_plain_mean_of_the_paths(gate: str) -> None:
    """P16."""
    model = small(gate=gate)
    module = model.assemble(model.components(list(MODALITIES), ["digit"]))
    first = model.initial(0)
    module.load_state_dict({name: first[name] for name in module.state_dict()})
    outputs = module(batch_of([IMAGE, VECTOR], [DIGIT]))
    torch.testing.assert_close(outputs.fused, torch.stack(list(outputs.latents.values())).mean(0))
