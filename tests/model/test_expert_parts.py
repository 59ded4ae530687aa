"""Stems, decoders, patches and attention of the ``experts`` model, and options that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from polyfed.data.schema import Modality, Task
from polyfed.errors import UserError
from polyfed.model.attention import MultiHeadAttention
from polyfed.model.catalog import MODELS
from polyfed.model.expert_layers import FewQueries
from polyfed.model.patches import Patches
from tests.model.examples import DIGIT, IMAGE, PICTURE, TEXT, VECTOR

MODALITIES = {m.name: m for m in (IMAGE, VECTOR)}
TASKS = {t.name: t for t in (DIGIT, PICTURE)}
TINY = {"width": 6, "heads": 2, "ratio": 1.5, "queries": 3}
SIDE = st.integers(1, 9)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_few_queries_is_attention(rows: int, masked: bool) -> None:
    few, usual = FewQueries(12, 3), MultiHeadAttention(12, 3)
    for parameter in few.parameters():
        nn.init.normal_(parameter, std=0.3)
    usual.load_state_dict(few.state_dict())
    asking, memory = torch.randn(rows, 4, 12), torch.randn(5, 7, 12)
    mask = (torch.arange(35).reshape(5, 7) % 3 > 0) if masked else None
    found, expected = few(asking, memory, mask), usual(asking, memory, mask)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    slopes, others = (
        torch.autograd.grad(y.square().sum(), list(m.parameters())) for y, m in ((found, few), (expected, usual))
    )
    torch.testing.assert_close(slopes, others, rtol=1e-3, atol=1e-4)


@given(
    st.integers(1, 2),
    st.integers(1, 9),
    st.integers(1, 9),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_patches_put_together_give_the_sample(
    channels: int, height: int, width: int, patch: tuple[int, int], padded: bool
) -> None:
    patches = Patches((channels, height, width), patch, (height + 3, width + 1) if padded else None)
    samples = torch.arange(2.0 * channels * height * width).reshape(2, channels, height, width) + 1
    cut = patches.cut(samples)
    assert cut.shape == (2, patches.count, patches.values)
    assert torch.equal(patches.join(cut), samples)
    assert cut.sum() == samples.sum()


def test_an_image_is_cut_row_by_row() -> None:
    image = torch.arange(12.0).reshape(1, 1, 3, 4)
    cut = Patches((1, 3, 4), (2, 2), (4, 4)).cut(image)
    assert cut.tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 0, 0], [10, 11, 0, 0]]]


def tokens_of(modality: Modality, **options: Any) -> tuple[int, int]:
    """Number and size of the tokens that a modality becomes."""
    stems = {modality.name: options} if options else {}
    first = MODELS.build("experts", {**TINY, "stems": stems}, {modality.name: modality}, {"digit": DIGIT}).initial(0)
    embedded = first[f"stem.{modality.name}.embed.weight"].shape[1]
    return first[f"stem.{modality.name}.positions"].shape[0], embedded


@pytest.mark.parametrize(
    ("modality", "tokens"),
    [
        (Modality("a", "image", (1, 36, 36)), (81, 16)),
        (Modality("a", "image", (3, 32, 32)), (64, 48)),
        (Modality("a", "image", (3, 64, 64)), (64, 192)),
        (Modality("a", "audio", (1, 112, 112)), (49, 256)),
        (Modality("a", "sensor", (74, 50)), (50, 74)),
        (Modality("a", "sensor", (9, 128)), (64, 18)),
        (Modality("a", "vector", (50,)), (10, 5)),
        (Modality("a", "vector", (4096,)), (16, 256)),
        (Modality("a", "vector", (3,)), (1, 3)),
    ],
)
def test_samples_are_cut_into_the_tokens_of_the_specification(modality: Modality, tokens: tuple[int, int]) -> None:
    assert tokens_of(modality) == tokens


def test_patch_and_canvas_can_be_chosen() -> None:
    image = Modality("a", "image", (1, 28, 28))
    assert tokens_of(image, patch=7) == (16, 49)
    assert tokens_of(image, patch=[14, 7], canvas=28) == (8, 98)
    assert tokens_of(image, canvas=[36, 30]) == (72, 16)
    assert tokens_of(Modality("a", "sensor", (9, 128)), patch=16) == (8, 144)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stems": {"imagee": {}}}, r"model\.stems: unknown modality 'imagee'; did you mean 'image'\?"),
        ({"decoders": {"digits": {}}}, r"model\.decoders: unknown task 'digits'; did you mean 'digit'\?"),
        ({"decoders": {"digit": {}}}, r"model\.decoders: task 'digit' is a classification and has no decoder"),
        ({"stems": {"image": {"canvas": 4}}}, r"model\.stems\.image: canvas \(4, 4\) is smaller than .*\(8, 8\)"),
        ({"stems": {"vector": {"canvas": 4}}}, r"model\.stems\.vector: vector data .* no height and width"),
        ({"stems": {"vector": {"patch": [2, 2]}}}, r"model\.stems\.vector: vector data .* no height and width"),
        ({"stems": {"text": {"patch": 2}}}, r"model\.stems\.text: text has one token per id"),
        ({"stems": {"image": {"patch": 0}}}, r"stems\.image\.patch"),
        ({"stems": {"image": {"size": 2}}}, r"stems\.image\.size"),
        ({"width": 7}, r"heads 2 do not divide the width 7"),
        ({"expert_grid": "pair"}, r"expert_grid: .*'pairs', 'axes' or 'module'"),
        ({"gate": "inputs"}, r"gate: .*'uniform', 'learned' or 'input'"),
        ({"queries": 0}, r"queries: 0 is not allowed"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MODELS.build("experts", {**TINY, **options}, {**MODALITIES, "text": TEXT}, TASKS, place="model")


@pytest.mark.parametrize("name", ["left.eye", "general", "a|b", "type"])
def test_names_that_cannot_be_used_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="modality name"):
        MODELS.build("experts", TINY, {"image": Modality("image", "vector", (3,), family=name)}, TASKS)
    with pytest.raises(UserError, match="task name"):
        MODELS.build("experts", TINY, MODALITIES, {name: Task(name, "regression")})


def test_a_text_without_a_vocabulary_and_a_generated_vector_are_refused() -> None:
    with pytest.raises(UserError, match="'text': a text needs its vocabulary"):
        MODELS.build("experts", TINY, {"text": Modality("text", "tokens", (4,))}, TASKS)
    with pytest.raises(UserError, match=r"task 'sound': .* generates images and spectrograms .*\(9,\)"):
        MODELS.build("experts", TINY, MODALITIES, {"sound": Task("sound", "generation", (9,))})


def test_components_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(UserError, match=r"make no model; with these stems and heads: .*projection"):
        MODELS.build("experts", TINY, MODALITIES, TASKS).assemble(["stem.image", "head.digit"])
    with pytest.raises(UserError, match=r"unknown component 'stem\.smell'"):
        MODELS.build("experts", TINY, MODALITIES, TASKS).assemble(["stem.smell"])
    with pytest.raises(UserError, match="unknown modality 'smell'"):
        MODELS.build("experts", TINY, MODALITIES, TASKS).components(["smell"], [])
