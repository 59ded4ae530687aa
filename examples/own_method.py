"""Your own method, written against polyfed.method.protocol: averaging in which a client that fits badly counts more.

In each round

1. the server sends every chosen client k the components that k holds,
2. k trains on its own samples and reports the parameters w_k, its n_k samples and its mean training loss per task l_k,
3. for every parameter, over the clients that hold it: w = sum_k a_k w_k / sum_k a_k with a_k = n_k l_k^power.

With power = 0 it is FedAvg. It is an example, related to q-FedAvg (Li et al., ICLR 2020) but simpler. ``plugin.yaml``
uses the same file from the command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

import polyfed
from polyfed.method.averaging import Context, named_by
from polyfed.method.objective import supervised
from polyfed.method.protocol import Clock, Cohort, Conversation, Fit, Groups, Order, Reply, Work, ask, expected, fit
from polyfed.model.architecture import Tensors
from polyfed.scenario.federation import Card, Client, ClientId, Roster


@dataclass(frozen=True)
class Server:
    parameters: Tensors


class LossWeighted:
    """Averaging with weights n_k l_k^power."""

    def __init__(self, context: Context, *, power: Annotated[float, Field(ge=0)] = 1.0) -> None:
        self.context, self.power = context, power
        self.steps = {"train": self.train}

    def begin(self, initial: Tensors, roster: Roster) -> Server:
        return Server(dict(initial))

    def enrol(self, initial: Tensors, card: Card) -> Groups:
        return {}  # nothing stays on the client

    def round(self, state: Server, roster: Roster, clock: Clock) -> Conversation[Server]:
        def draft(cohort: Cohort) -> dict[ClientId, Order]:
            return {k: self.order(state, roster[k], active) for k, active in cohort.items()}

        chosen, _ = yield from self.context.select.choose(draft, {}, roster, clock)
        replies = yield from ask(draft(chosen))
        weights = {k: r.examples * r.numbers["loss"] ** self.power for k, r in replies.items()}
        averaged = dict(state.parameters)
        for name in averaged:
            held = {k: r.tensors["parameters"][name] for k, r in replies.items() if name in r.tensors["parameters"]}
            if held:
                total = sum(weights[k] for k in held)
                averaged[name] = torch.stack([weights[k] / total * value for k, value in held.items()]).sum(0)
        return Server(averaged)

    def order(self, state: Server, card: Card, active: frozenset[str]) -> Order:
        sent = {"parameters": self.deploy(state, card)}
        return Order("train", active, sent, expects=expected(sent))  # the reply must look like what was sent

    def train(self, order: Order, personal: Groups, client: Client, clock: Clock) -> Work:
        start = order.tensors["parameters"]
        fitted = yield from fit(Fit(supervised, start, client.train, self.context.recipe, order.active))
        loss = fitted.numbers["loss"] / len(client.card.tasks)  # the objective sums over the client's tasks
        return Reply(len(client.train), {"parameters": fitted.parameters}, {"loss": loss}), personal

    def deploy(self, state: Server, card: Card) -> Tensors:
        return {name: state.parameters[name] for name in named_by(tuple(state.parameters), card.components)}


polyfed.METHODS.add("loss-weighted", LossWeighted)

if __name__ == "__main__":
    print("mean test accuracy, task digit\nmethod         all    audio only")
    for method in ("fedavg", "loss-weighted"):
        experiment = polyfed.load(changes={"rounds": 8, "baseline": None, "method.name": method})
        digit = polyfed.run(experiment).summary["tasks"]["digit"]["accuracy"]
        print(f"{method:13}  {digit['mean']:.3f}  {digit['by_modalities']['audio']:.3f}")
