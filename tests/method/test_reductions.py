"""Known relations between methods, bit for bit (methods sheets FedHGB 8.19-8.23, DisentAFL 6)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from polyfed.engine.loop import Outcome
from polyfed.engine.resident import Resident
from polyfed.experiment.world import build_world
from polyfed.method.objective import Proximal, supervised
from tests.worlds import tiny, train

PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fedprox with mu 0 is fedavg": ({"method__name": "fedprox", "method__mu": 0.0}, {"method__name": "fedavg"}),
    "multi-fedavg with alpha 1 is fedavg": ({"method__name": "multi-fedavg"}, {"method__name": "fedavg"}),
}


def final(**changes: Any) -> Outcome:
    return train(tiny(**changes))


@pytest.mark.parametrize("pair", PAIRS)
def test_reductions(pair: str) -> None:
    one, other = PAIRS[pair]
    assert final(**one).digest == final(**other).digest


def test_server_sgd_without_momentum_is_fedavg_to_rounding() -> None:
    one = final(method__name="fedavgm", method__momentum=0.0).state.parameters
    other = final(method__name="fedavg").state.parameters
    for name in other:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-6)


SOLO: dict[str, Any] = {
    "scenario__clients": 1,
    "scenario__modalities": {"name": "all"},
    "scenario__tasks": {"name": "all"},
    "scenario__partition": {"name": "iid"},
    "train__batch_size": 512,
}


def test_one_client_makes_fedavg_and_centralized_local_training() -> None:
    server = final(method__name="fedavg", **SOLO).state.parameters
    alone = final(method__name="local", **SOLO).personal[0]["parameters"]
    pooled = final(method__name="centralized", **SOLO).personal[0]["parameters"]
    for name, value in alone.items():
        assert torch.equal(server[name], value)
        assert torch.equal(pooled[name], value)


@pytest.mark.parametrize("name", ["fedprox", "multi-fedavg", "fedadam"])
def test_other_settings_do_differ(name: str) -> None:
    options = {"fedprox": {"method__mu": 1.0}, "multi-fedavg": {"method__alpha": 100.0}, "fedadam": {}}[name]
    assert final(method__name=name, **options).digest != final(method__name="fedavg").digest


def test_dilution_moves_a_component_of_few_holders_less() -> None:
    """Only clients 1 and 2 hold audio; under dilution the image-only clients count as unchanged."""
    start = build_world(tiny()).architecture.initial(3)

    def distance(outcome: Outcome) -> float:
        names = [name for name in start if name.startswith("encoder.audio")]
        return sum(float((outcome.state.parameters[name] - start[name]).square().sum()) for name in names)

    renormalised = final(rounds=1, method__name="fedavg")
    dilute = final(rounds=1, method__name="fedavg", method__missing="dilute")
    assert 0 < distance(dilute) < distance(renormalised)


def test_the_distance_from_the_received_model_falls_with_mu() -> None:
    def moved(mu: float) -> float:
        outcome = final(
            rounds=1, method__name="fedprox", method__mu=mu, train__epochs=5, train__lr=0.02, **SOLO
        ).state.parameters
        start = build_world(tiny(**SOLO)).architecture.initial(3)
        return sum(float((outcome[name] - start[name]).square().sum()) for name in outcome)

    distances = [moved(mu) for mu in (0.0, 0.1, 1.0, 10.0)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < distances[0] / 2


def test_the_proximal_term_is_half_mu_times_the_squared_distance() -> None:
    world = build_world(tiny())
    client = world.federation.client(2)
    model = Resident(world.architecture.assemble(client.card.components), world.architecture.tasks)
    model.load(world.architecture.initial(0))
    name = "head.digit.bias"
    anchor = {key: value.detach().clone() for key, value in model.parameters.items()}
    anchor[name] = anchor[name] + 2.0
    batch = client.train.batch()
    with_term, logged = Proximal(0.5)(model, batch, {"anchor": anchor})
    without, _ = supervised(model, batch, {})
    expected = 0.25 * anchor[name].numel() * 4.0
    assert float((with_term - without).detach()) == pytest.approx(expected, rel=1e-4)
    assert float(logged["proximal"].detach()) == pytest.approx(expected, rel=1e-5)
