from __future__ import annotations

import pytest
import torch

from polyfed.data.schema import Modality
from polyfed.errors import UserError
from polyfed.model.encoder_convolution import default_channels
from polyfed.model.encoder_transformer import PatchTransformer
from polyfed.model.encoders import FITTING, default_encoder
from polyfed.model.parts import ENCODERS, build
from tests.model.examples import AUDIO, IMAGE, SENSOR, TEXT, VECTOR, assert_batched_equals_looped, values_of

EVERY = [(name, modality) for modality in (IMAGE, AUDIO, SENSOR, VECTOR, TEXT) for name in FITTING[modality.kind]]
WIDTH = 8


@pytest.mark.parametrize(("name", "modality"), EVERY)
def test_maps_samples_to_features_one_by_one(name: str, modality: Modality) -> None:
    encoder = ENCODERS.build(name, {}, modality, WIDTH)
    values = values_of(modality, 5)
    features = encoder(values)
    assert features.shape == (5, WIDTH)
    torch.testing.assert_close(encoder(values[2:3])[0], features[2])


@pytest.mark.parametrize(("name", "modality"), EVERY)
def test_zeros_of_an_absent_sample_give_finite_features_and_gradients(name: str, modality: Modality) -> None:
    encoder = ENCODERS.build(name, {}, modality, WIDTH)
    features = encoder(torch.zeros_like(values_of(modality, 2)))
    features.square().sum().backward()
    assert features.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters() if parameter.grad is not None)


@pytest.mark.parametrize(("name", "modality"), EVERY)
def test_models_of_many_clients_can_be_stacked(name: str, modality: Modality) -> None:
    values = torch.stack([values_of(modality, 3, seed) for seed in range(2)])
    assert_batched_equals_looped(lambda: ENCODERS.build(name, {}, modality, WIDTH), values)


@pytest.mark.parametrize(("name", "modality"), EVERY)
def test_holds_parameters_only(name: str, modality: Modality) -> None:
    encoder = ENCODERS.build(name, {}, modality, WIDTH)
    assert list(encoder.buffers()) == []
    assert any(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize("name", ["cnn", "transformer"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 13), (1, 28, 28), (1, 20, 50), (1, 112, 112), (2, 1, 3)])
def test_reads_any_size(name: str, shape: tuple[int, ...]) -> None:
    modality = Modality("m", "image", shape)
    assert ENCODERS.build(name, {}, modality, WIDTH)(values_of(modality, 2)).shape == (2, WIDTH)


@pytest.mark.parametrize("time", [1, 7, 50, 128])
def test_cnn1d_reads_any_length(time: int) -> None:
    modality = Modality("m", "sensor", (9, time))
    assert ENCODERS.build("cnn1d", {}, modality, WIDTH)(values_of(modality, 2)).shape == (2, WIDTH)


@pytest.mark.parametrize(
    ("size", "channels"),
    [
        ((8, 8), (16, 32)),
        ((20, 24), (16, 32)),
        ((32, 32), (16, 32)),
        ((64, 20), (16, 32, 64)),
        ((128,), (16, 32, 64, 64)),
    ],
)
def test_larger_inputs_get_more_stages(size: tuple[int, ...], channels: tuple[int, ...]) -> None:
    assert default_channels(size, grid=4) == channels


def test_cnn_halves_in_the_last_stages_and_averages_the_rest() -> None:
    encoder = ENCODERS.build("cnn", {"channels": [4, 6]}, Modality("m", "image", (1, 8, 40)), WIDTH)
    stages = encoder.get_submodule("stages")
    maps = [stages[:count](torch.zeros(1, 1, 8, 40)).shape for count in (1, 2)]
    assert maps == [(1, 4, 8, 20), (1, 6, 4, 10)]
    assert encoder.get_parameter("project.0.weight").shape == (WIDTH, 6 * 4 * 4)  # 10 frames -> 4 cells of up to 3


def test_patches_by_hand() -> None:
    encoder = ENCODERS.build("transformer", {"patch": 2}, Modality("m", "image", (1, 3, 3)), WIDTH)
    assert isinstance(encoder, PatchTransformer)
    image = torch.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    expected = [[1.0, 2, 4, 5], [3, 0, 6, 0], [7, 8, 0, 0], [9, 0, 0, 0]]
    assert encoder.patches(image).tolist() == [expected]


def test_patch_options() -> None:
    modality = Modality("m", "audio", (1, 20, 24))
    by_default = ENCODERS.build("transformer", {}, modality, WIDTH)
    oblong = ENCODERS.build("transformer", {"patch": [20, 3], "hidden": 12, "layers": 1, "heads": 3}, modality, WIDTH)
    assert by_default.get_parameter("positions").shape == (5 * 6, WIDTH)
    assert oblong.get_parameter("positions").shape == (1 * 8, 12)
    assert oblong(values_of(modality, 2)).shape == (2, WIDTH)


def test_bag_is_the_mean_over_tokens() -> None:
    encoder = ENCODERS.build("bag", {}, TEXT, 2)
    embedding = encoder.get_parameter("embedding.weight")
    text = torch.tensor([[3, 0, 5, 0, 0, 0], [0, 0, 0, 0, 0, 0], [7, 7, 0, 0, 0, 1]])
    expected = [(embedding[3] + embedding[5]) / 2, torch.zeros(2), (2 * embedding[7] + embedding[1]) / 3]
    torch.testing.assert_close(encoder(text), torch.stack(expected))


@pytest.mark.parametrize("name", FITTING["tokens"])
def test_padding_changes_nothing(name: str) -> None:
    encoder = ENCODERS.build(name, {}, TEXT, WIDTH)
    text = torch.tensor([[4, 9, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6]])
    before = encoder(text)
    with torch.no_grad():
        encoder.get_parameter("embedding.weight")[0] += 100.0
    torch.testing.assert_close(encoder(text), before, rtol=0, atol=0)


def test_order_of_words_counts_for_the_transformer_only() -> None:
    text, turned = torch.tensor([[4, 9, 1, 0, 0, 0]]), torch.tensor([[1, 9, 4, 0, 0, 0]])
    ordered, unordered = (ENCODERS.build(name, {}, TEXT, WIDTH) for name in ("text-transformer", "bag"))
    assert not torch.allclose(ordered(text), ordered(turned))
    torch.testing.assert_close(unordered(text), unordered(turned))


def test_mlp_options() -> None:
    assert len(ENCODERS.build("mlp", {"hidden": []}, VECTOR, WIDTH)) == 2
    deep = ENCODERS.build("mlp", {"hidden": [7, 3]}, VECTOR, WIDTH)
    assert [tuple(p.shape) for p in deep.parameters() if p.dim() == 2] == [(7, 5), (3, 7), (8, 3)]


@pytest.mark.parametrize(
    ("modality", "name"), [(IMAGE, "cnn"), (AUDIO, "cnn"), (SENSOR, "cnn1d"), (VECTOR, "mlp"), (TEXT, "bag")]
)
def test_default_by_kind(modality: Modality, name: str) -> None:
    assert default_encoder(modality) == name


@pytest.mark.parametrize(
    ("name", "modality", "choices"),
    [
        ("cnn", SENSOR, "cnn1d, mlp"),
        ("cnn", TEXT, "bag, text-transformer"),
        ("cnn1d", IMAGE, "cnn, transformer, mlp"),
        ("mlp", TEXT, "bag, text-transformer"),
        ("transformer", VECTOR, "mlp"),
        ("bag", VECTOR, "mlp"),
        ("text-transformer", AUDIO, "cnn, transformer, mlp"),
    ],
)
def test_wrong_kind_is_refused(name: str, modality: Modality, choices: str) -> None:
    with pytest.raises(UserError, match=f"modality '{modality.name}': encoder '{name}' .* Choices: {choices}$"):
        ENCODERS.build(name, {}, modality, WIDTH)


def test_tokens_without_a_vocabulary_are_refused() -> None:
    with pytest.raises(UserError, match=r"'text'.*vocabulary"):
        ENCODERS.build("bag", {}, Modality("text", "tokens", (4,)), WIDTH)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(UserError, match="heads 3 do not divide the attention width 8"):
        ENCODERS.build("transformer", {"heads": 3}, IMAGE, WIDTH)


@pytest.mark.parametrize("options", [{"channels": []}, {"channels": [0]}, {"grid": 0}, {"chanels": [3]}, {"grid": "x"}])
def test_bad_options_name_the_place_and_the_option(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=rf"^here: encoder 'cnn': {next(iter(options))}[.0]*: "):
        build(ENCODERS, {"name": "cnn", **options}, "cnn", "here", IMAGE, WIDTH)
