"""Other simulators on W1 to W3, where they are installed: pfl-research and Flower. Written for the versions named.

Each trains the same model with the same steps, one thread per process. Both insist on something in their first round
(pfl evaluates, Flower may not have found all nodes yet), so their start-up is not quite the same work.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.turns import Turns
from benchmarks.workloads import LR, Data, Workload

NEVER = 10**9
PFL, FLOWER = "pfl-research 0.6", "Flower 1.41 simulation"
NEEDED = {PFL: ("pfl",), FLOWER: ("flwr", "ray")}
INSTALL = {PFL: 'pip install "pfl[pytorch]"', FLOWER: 'pip install "flwr[simulation]"'}


def installed() -> list[str]:
    """Return the peers that can be run here."""
    return [peer for peer, modules in NEEDED.items() if all(find_spec(module) for module in modules)]


def absent() -> list[str]:
    """Say in a line each which peers are not installed, and how to install them."""
    return [f"{peer}: not installed ({INSTALL[peer]})" for peer in NEEDED if peer not in installed()]


def run(peer: str, workload: Workload, rounds: int, turns: Turns) -> None:
    """Run rounds of a peer, in turns."""
    runners: dict[str, Callable[[Workload, int, Turns], None]] = {PFL: run_pfl, FLOWER: run_flower}
    runners[peer](workload, rounds, turns)


# ---------------------------------------------------------------------------------------------- pfl-research


def run_pfl(workload: Workload, rounds: int, turns: Turns) -> None:
    """One process; every client's tensors are views of the data."""
    data = workload.data()
    turns.begin()
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam.base import NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    class Taught(nn.Sequential):
        def loss(self, inputs: torch.Tensor, labels: torch.Tensor, **_: Any) -> torch.Tensor:
            return cross_entropy(self(inputs), labels)

        def metrics(self, *_: Any, **__: Any) -> dict[str, Any]:
            return {}

    class Watched(TrainingProcessCallback):
        def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Any]:
            turns.round_done()
            return False, Metrics()

    def dataset(client: int) -> Any:
        return PyTorchTensorDataset(data.of(client))

    federated = FederatedDataset(dataset, get_user_sampler("random", list(range(workload.clients))))
    module = Taught(*workload.parts().values())
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    FederatedAveraging().run(
        NNAlgorithmParams(rounds, evaluation_frequency=NEVER, train_cohort_size=workload.cohort, val_cohort_size=0),
        SimulatedBackend(training_data=federated, val_data=federated),
        model,
        NNTrainHyperParams(local_batch_size=workload.batch_size, local_num_epochs=1, local_learning_rate=LR),
        callbacks=[Watched()],
        send_metrics_to_platform=False,
    )


# ---------------------------------------------------------------------------------------------- Flower


@lru_cache(maxsize=1)
def resident(workload: Workload) -> tuple[Data, nn.Module]:
    """Make the data and the model once in each of Ray's processes."""
    torch.set_num_threads(1)
    return workload.data(), nn.Sequential(*workload.parts().values())


def run_flower(workload: Workload, rounds: int, turns: Turns) -> None:
    """Ray's processes with one core each."""
    os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(Path.cwd())}
    turns.begin()
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    client_app, server_app = ClientApp(), ServerApp()

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        from benchmarks.peers import resident

        data, model = resident(workload)
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        inputs, labels = data.of(int(context.node_config["partition-id"]))
        descent = torch.optim.SGD(model.parameters(), lr=LR)
        for start in range(0, len(inputs), workload.batch_size):
            batch = slice(start, start + workload.batch_size)
            descent.zero_grad()
            torch.autograd.backward(cross_entropy(model(inputs[batch]), labels[batch]))
            descent.step()
        metrics = MetricRecord({"num-examples": len(inputs)})
        arrays = ArrayRecord(model.state_dict())
        return Message(content=RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    class Watched(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            found = super().aggregate_train(server_round, replies)
            turns.round_done()
            return found

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        cohort = workload.cohort
        strategy = Watched(
            fraction_train=cohort / workload.clients, fraction_evaluate=0.0, min_available_nodes=workload.clients
        )
        arrays = ArrayRecord(nn.Sequential(*workload.parts().values()).state_dict())
        strategy.start(grid, arrays, num_rounds=rounds)

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server_app, client_app, workload.clients, backend_config=resources)
