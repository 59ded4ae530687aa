"""How much a client uses each path: means over its test samples, and what a run records of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from polyfed.data.samples import Batch
from polyfed.engine.expert_use import ExpertUse, use_record
from polyfed.model.architecture import Mixing
from tests.engine.test_experts_in_federations import MODEL, lines, of_experts
from tests.model.examples import DIGIT, IMAGE, VECTOR, batch_of
from tests.model.expert_examples import loaded, small
from tests.worlds import train

KEYS = ("image|general|general", "image|image|digit")


def batch(labelled: list[bool]) -> Batch:
    return Batch({}, {}, {}, {"digit": torch.tensor(labelled)})


def test_means_over_labelled_samples_that_have_a_modality() -> None:
    use = ExpertUse()
    rows = torch.tensor([[0.5, 0.5], [0.2, 0.8], [1.0, 0.0], [0.0, 0.0]])
    use.add({"digit": Mixing(KEYS, rows)}, batch([True, True, False, True]))
    use.add({"digit": Mixing(KEYS, torch.tensor([[0.8, 0.2]]))}, batch([True, True]))  # alike for all samples
    assert use.means() == {"digit": {KEYS[0]: pytest.approx(2.3 / 4), KEYS[1]: pytest.approx(1.7 / 4)}}


def test_without_samples_there_is_no_mean() -> None:
    use = ExpertUse()
    assert use.means() == {}
    use.add({"digit": Mixing(KEYS, torch.tensor([[0.8, 0.2]]))}, batch([False]))
    assert use.means() == {}


def test_the_record_goes_by_scopes() -> None:
    assert use_record(3, 1, {"digit": dict(zip(KEYS, (0.25, 0.75), strict=True))}) == {
        "kind": "expert_use",
        "round": 3,
        "client": 1,
        "weights": {"digit": {"image": {"general": {"general": 0.25}, "image": {"digit": 0.75}}}},
    }


@pytest.mark.parametrize(("gate", "moved"), [("uniform", 0.0), ("learned", 1.0), ("input", 1.0)])
def test_models_tell_how_they_mix(gate: str, moved: float) -> None:
    """The weights told are those used: the weighted sum of the latents is what the heads see."""
    model = small({m.name: m for m in (IMAGE, VECTOR)}, {"digit": DIGIT}, gate=gate)
    module = loaded(model, ["image", "vector"], ["digit"], moved)
    outputs = module(batch_of([IMAGE, VECTOR], [DIGIT], 6))
    ((task, mixing),) = outputs.mixing.items()
    assert task == "digit" and set(mixing.keys) == set(outputs.latents)
    latents = torch.stack([outputs.latents[key] for key in mixing.keys], 1)
    torch.testing.assert_close((mixing.weights.unsqueeze(-1) * latents).sum(1), outputs.fused)
    torch.testing.assert_close(mixing.weights.sum(1), torch.ones(len(mixing.weights)))
    if gate == "uniform":
        torch.testing.assert_close(mixing.weights, torch.full_like(mixing.weights, 1 / 8))


def test_the_plain_network_mixes_nothing() -> None:
    model = small({"image": IMAGE}, {"digit": DIGIT}, expert_grid="module")
    assert loaded(model, ["image"], ["digit"])(batch_of([IMAGE], [DIGIT], 2)).mixing == {}


def summed(value: Any) -> float:
    return sum(map(summed, value.values())) if isinstance(value, dict) else value


@pytest.mark.parametrize("gate", ["uniform", "input"])
def test_a_run_records_every_client_at_every_evaluation(gate: str, tmp_path: Path) -> None:
    experiment = of_experts("disentafl", model={**MODEL, "gate": gate}, engine__diagnostics=True)
    train(experiment, tmp_path)
    found = lines(tmp_path, "expert_use")
    judged = [line for line in lines(tmp_path, "evaluation") if line["split"] == "test"]
    assert [(line["round"], line["client"]) for line in found] == [(line["round"], line["client"]) for line in judged]
    for line, other in zip(found, judged, strict=True):
        assert line["weights"].keys() == other["metrics"].keys()
        for weights in line["weights"].values():
            assert summed(weights) == pytest.approx(1.0, abs=1e-9)
            if gate == "uniform" or line["round"] == 0:
                paths = [value for held in weights.values() for first in held.values() for value in first.values()]
                assert paths == pytest.approx([1 / (4 * len(weights))] * len(paths), abs=1e-6)
    first, last = found[0], found[-len(found) // 2]
    assert (first["client"], first["round"], last["client"], last["round"]) == (0, 0, 0, 1)
    assert (first["weights"] == last["weights"]) is (gate == "uniform")


def test_nothing_else_than_the_grid_has_an_expert_use(tmp_path: Path) -> None:
    train(of_experts(model={**MODEL, "expert_grid": "module"}, engine__diagnostics=True), tmp_path)
    assert not lines(tmp_path, "expert_use") and lines(tmp_path, "agreement")
