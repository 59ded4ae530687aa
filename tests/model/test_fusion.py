from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from polyfed.errors import UserError
from polyfed.model.fusion import Fusion
from polyfed.model.parts import FUSIONS

NAMES = ("audio", "image", "text")
FEATURES, FUSED, ROWS = 4, 8, 5
EVERY = FUSIONS.names()


def made(name: str, modalities: tuple[str, ...] = NAMES, **options: object) -> tuple[Fusion, nn.ModuleDict]:
    fusion = FUSIONS.build(name, {"width": FUSED, **options}, FEATURES)
    return fusion, nn.ModuleDict({part: fusion.part(part) for part in (*modalities, *fusion.shared)})


def features(rows: int = ROWS) -> dict[str, Tensor]:
    return {name: torch.randn(rows, FEATURES) for name in NAMES}


def masks(rows: list[str]) -> dict[str, Tensor]:
    """One text per sample, naming the modalities it has by their first letters."""
    return {name: torch.tensor([name[0] in row for row in rows]) for name in NAMES}


PRESENT = masks(["ait", "a", "it", "t", ""])


@given(st.lists(st.sets(st.sampled_from("ait")), min_size=1, max_size=6))
def test_concat_is_a_linear_layer_on_the_concatenation(rows: list[set[str]]) -> None:
    fusion, parts = made("concat", activation="none")
    z, present = features(len(rows)), masks(["".join(row) for row in rows])
    one = nn.Linear(len(NAMES) * (FEATURES + 1), FUSED, bias=False)
    weights = [parts.get_submodule(m).get_parameter("weight") for m in NAMES]
    biases = [parts.get_submodule(m).get_parameter("bias")[:, None] for m in NAMES]
    one.weight = nn.Parameter(torch.cat([*weights, *biases], dim=1).detach())
    held = [z[m] * present[m][:, None] for m in NAMES]
    flags = [present[m][:, None].float() for m in NAMES]
    torch.testing.assert_close(fusion.fuse(parts, z, present), one(torch.cat([*held, *flags], dim=1)))


def test_concat_by_hand() -> None:
    fusion = FUSIONS.build("concat", {"width": 1}, 1)
    parts = nn.ModuleDict({name: nn.Linear(1, 1) for name in ("a", "b")})
    with torch.no_grad():
        for part, weight, bias in ((parts["a"], 2.0, 1.0), (parts["b"], -1.0, 0.5)):
            part.get_parameter("weight").fill_(weight)
            part.get_parameter("bias").fill_(bias)
    z = {"a": torch.tensor([[1.0], [1.0], [1.0]]), "b": torch.tensor([[1.0], [1.0], [9.0]])}
    present = {"a": torch.tensor([True, True, False]), "b": torch.tensor([True, False, True])}
    # 2·1+1 + (−1·1+0.5) = 2.5;  2·1+1 = 3;  relu(−9+0.5) = 0
    assert fusion.fuse(parts, z, present).flatten().tolist() == [2.5, 3.0, 0.0]


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh", "none"])
def test_activation(activation: str) -> None:
    plain, parts = made("concat", activation="none")
    fusion, _ = made("concat", activation=activation)
    z = features()
    expected = plain.fuse(parts, z, PRESENT)
    if activation != "none":
        expected = getattr(functional, activation)(expected)
    torch.testing.assert_close(fusion.fuse(parts, z, PRESENT), expected)


@pytest.mark.parametrize("name", EVERY)
def test_absent_rows_are_not_used_even_if_they_hold_nan(name: str) -> None:
    fusion, parts = made(name)
    z = features()
    spoilt = {m: torch.where(PRESENT[m][:, None], z[m], torch.nan).requires_grad_() for m in NAMES}
    fused = fusion.fuse(parts, spoilt, PRESENT)
    torch.testing.assert_close(fused, fusion.fuse(parts, z, PRESENT), rtol=0, atol=0)
    fused.square().sum().backward()
    for m in NAMES:
        gradient = spoilt[m].grad
        assert gradient is not None
        assert (gradient[~PRESENT[m]] == 0).all()
        assert (gradient[PRESENT[m]] != 0).any()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in parts.parameters())


@pytest.mark.parametrize("name", EVERY)
def test_sample_without_any_modality_gives_zeros(name: str) -> None:
    fusion, parts = made(name)
    fused = fusion.fuse(parts, features(2), masks(["", ""]))
    assert (fused == 0).all()
    fused.sum().backward()
    assert all(parameter.grad is None or (parameter.grad == 0).all() for parameter in parts.parameters())


@pytest.mark.parametrize("name", EVERY)
def test_absent_modality_gets_no_gradient(name: str) -> None:
    fusion, parts = made(name)
    fusion.fuse(parts, features(3), masks(["ai", "i", "a"])).square().sum().backward()
    assert all((parameter.grad == 0).all() for parameter in parts.get_submodule("text").parameters())
    assert any((parameter.grad != 0).any() for parameter in parts.get_submodule("image").parameters())


@pytest.mark.parametrize("name", EVERY)
def test_not_holding_a_modality_equals_its_absence(name: str) -> None:
    fusion, parts = made(name)
    z, present = features(2), masks(["ai", "i"])
    fewer = nn.ModuleDict({part: module for part, module in parts.items() if part != "text"})
    alone = fusion.fuse(fewer, {m: z[m] for m in ("image", "audio")}, present)
    torch.testing.assert_close(alone, fusion.fuse(parts, z, present))


@pytest.mark.parametrize("name", EVERY)
def test_models_of_many_clients_can_be_stacked(name: str) -> None:
    fusion, _ = made(name)
    models = [made(name)[1] for _ in range(2)]

    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = models[0]

        def forward(self, z: dict[str, Tensor], present: dict[str, Tensor]) -> Tensor:
            return fusion.fuse(self.parts, z, present)

    def loss(parameters: dict[str, Tensor], z: dict[str, Tensor], present: dict[str, Tensor]) -> Tensor:
        return functional_call(Fused(), parameters, (z, present)).square().sum()

    each = [{f"parts.{k}": v.detach() for k, v in model.named_parameters()} for model in models]
    data = [(features(), PRESENT), (features(), masks(["t", "", "ai", "i", "ait"]))]
    stacked = {k: torch.stack([parameters[k] for parameters in each]) for k in each[0]}
    z, present = ({m: torch.stack([one[place][m] for one in data]) for m in NAMES} for place in (0, 1))
    together = vmap(grad(loss))(stacked, z, present)
    for place, parameters in enumerate(each):
        for k, gradient in grad(loss)(parameters, *data[place]).items():
            torch.testing.assert_close(together[k][place], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_dropout_acts_in_training_only(name: str) -> None:
    fusion, parts = made(name, dropout=0.5)
    z = features()
    parts.eval()
    whole = fusion.fuse(parts, z, PRESENT)
    torch.testing.assert_close(fusion.fuse(parts, z, PRESENT), whole, rtol=0, atol=0)
    parts.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        thinned = fusion.fuse(parts, z, PRESENT)
    kept = thinned != 0
    assert kept.any()
    assert (~kept & (whole != 0)).any()
    torch.testing.assert_close(thinned[kept], 2 * whole[kept])


def test_width_is_that_of_the_features_unless_chosen() -> None:
    assert FUSIONS.build("concat", {}, FEATURES).width == FEATURES
    assert FUSIONS.build("attention", {"width": 12}, FEATURES).width == 12


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(UserError, match="heads 3 do not divide the attention width 8"):
        made("attention", heads=3)
