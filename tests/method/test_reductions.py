"""Known relations between methods, bit for bit (methods sheets FedHGB 8.19-8.23, DisentAFL 6)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from polyfed.engine.drive import drive
from polyfed.engine.loop import Outcome
from polyfed.engine.resident import Resident
from polyfed.experiment.world import build_world
from polyfed.method.objective import Proximal, supervised
from polyfed.method.protocol import Clock, Reply
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


def test_on_the_plain_network_a_module_of_one_client_in_four_moves_a_quarter_under_fedavg() -> None:
    """P18: from equal values, with equal numbers of samples, as far as under Multi-FedAvg."""
    changes: dict[str, Any] = {
        "rounds": 1,
        "scenario__modalities__sets": [["image"], ["image"], ["audio"], ["image"]],
        "model": {"name": "experts", "expert_grid": "module", "gate": "uniform", "width": 8, "heads": 2, "ratio": 2},
    }

    def equal(number: int, client: int, reply: Reply) -> Reply:
        return replace(reply, examples=20)

    start = build_world(tiny(**changes)).architecture.initial(3)
    owners = train(tiny(**changes, method__name="multi-fedavg"), deliver=equal).state.parameters
    everybody = train(tiny(**changes, method__missing="dilute"), deliver=equal).state.parameters
    shares = {"stem.audio": 0.25, "input_stack.audio": 0.25, "stem.image": 0.75, "input_stack.image": 0.75}
    for part, share in shares.items():
        names = [name for name in start if name.startswith(f"{part}.") and not name.endswith("key.bias")]
        assert names
        for name in names:
            moved = owners[name] - start[name]
            assert float(moved.abs().max()) > 1e-5
            torch.testing.assert_close(everybody[name] - start[name], share * moved, rtol=1e-3, atol=1e-7)


def test_clients_of_several_modalities_count_alpha_fold() -> None:
    """P20, by hand: only client 2 has two modalities, so with alpha 3 the weights are 10, 20, 3 times 30 and 40."""
    world = build_world(tiny(method__name="multi-fedavg", method__alpha=3.0))
    roster = world.federation.cards
    assert [card.modalities for card in roster.values()] == [("image",), ("audio",), ("audio", "image"), ("image",)]
    sent = {0: (10, 1.0), 1: (20, 2.0), 2: (30, 4.0), 3: (40, 8.0)}

    def answered(wanted: Any) -> Any:
        for client, (examples, value) in sent.items():
            values = {
                name: torch.full_like(v, value) for name, v in wanted.orders[client].tensors["parameters"].items()
            }
            wanted.reducer.add(client, Reply(examples, {"parameters": values}))
        return wanted.reducer.finish()

    state = world.method.begin(world.architecture.initial(3), roster)
    found = drive(world.method.round(state, roster, Clock(0, 1, 1)), answered).parameters
    expected = {
        "encoder.image": (10 * 1 + 90 * 4 + 40 * 8) / 140,
        "encoder.audio": (20 * 2 + 90 * 4) / 110,
        "head.digit": (10 * 1 + 20 * 2 + 90 * 4) / 120,
        "head.parity": (20 * 2 + 90 * 4 + 40 * 8) / 150,
    }
    for part, value in expected.items():
        held = [found[name] for name in found if name.startswith(f"{part}.")]
        assert held
        assert all(torch.allclose(each, torch.full_like(each, value), rtol=1e-6) for each in held)


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
