"""A method whose parameters travel in 8 bits, both ways: fewer bytes, rounded values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from polyfed.method.protocol import (
    Ask,
    ClientStep,
    Clock,
    Conversation,
    Expected,
    Expects,
    Fold,
    Groups,
    Method,
    Note,
    Order,
    Reducer,
    Reply,
    Work,
)
from polyfed.model.architecture import Tensors
from polyfed.scenario.federation import Card, Client, ClientId, Roster

S = TypeVar("S")

PARAMETERS = "parameters"
QUANTIZED = "quantized"
"""The group of whole numbers from −127 to 127, int8, by parameter name."""

SCALES = "scales"
"""The group of what those are multiples of: (rows,) of a matrix, () of a bias."""

HIGHEST = 127


class Arriving:
    """Finds what arrives of one state's parameters; each is rounded once, so that clients still share it."""

    def __init__(self) -> None:
        self._state: Any = None
        self._found: dict[int, tuple[Tensor, Tensor]] = {}

    def of(self, state: Any, parameters: Tensors) -> Tensors:
        """Return what arrives of these parameters of a state."""
        if state is not self._state:
            self._state, self._found = state, {}
        chosen = set(quantizable(shapes_of(parameters)))
        return {name: self._rounded(value) if name in chosen else value for name, value in parameters.items()}

    def _rounded(self, value: Tensor) -> Tensor:
        if id(value) not in self._found:
            # The value is kept, so that no other one can come to have its identity.
            self._found[id(value)] = value, dequantize(*quantize(value))
        return self._found[id(value)][1]


@dataclass(frozen=True)
class Quantized(Generic[S]):
    """Another method, the parameters of whose messages are quantised.

    Symmetric, to the nearest multiple of max|x| / 127: one scale per row (first axis) of every tensor of two or more
    axes, one per bias; what belongs to a normalisation stays as it is, and so do other groups. The method itself, its
    server and its clients, sees the values that arrive, in float32. Those are also the ones deployed.
    """

    method: Method[S]
    _arriving: Arriving = field(default_factory=Arriving, init=False, repr=False, compare=False)

    @property
    def steps(self) -> Mapping[str, ClientStep]:
        """What a client can be asked to do."""
        return {name: unpacking(step) for name, step in self.method.steps.items()}

    def begin(self, initial: Tensors, roster: Roster) -> S:
        """Return the server's first state."""
        return self.method.begin(initial, roster)

    def enrol(self, initial: Tensors, card: Card) -> Groups:
        """Return the personal groups a client starts with."""
        return self.method.enrol(initial, card)

    def deploy(self, state: S, card: Card) -> Tensors:
        """Return the server's part of one client's model, as the client has it once it is sent."""
        return self._arriving.of(state, self.method.deploy(state, card))

    def round(self, state: S, roster: Roster, clock: Clock) -> Conversation[S]:
        """Hold the method's exchanges, each with packed orders and unpacked replies."""
        conversation = self.method.round(state, roster, clock)
        answer: Any = None
        while True:
            try:
                wanted = conversation.send(answer)
            except StopIteration as end:
                after: S = end.value
                return after
            answer = yield packed_exchange(wanted)
            if isinstance(answer, Mapping) and isinstance(wanted, Ask) and not isinstance(wanted, Fold):
                answer = {client: unpacked_reply(reply) for client, reply in answer.items()}


def unpacking(step: ClientStep) -> ClientStep:
    """Make a client step one that reads packed orders and packs its reply."""

    def unpacked_step(order: Order, personal: Groups, client: Client, clock: Clock) -> Work:
        reply, personal = yield from step(replace(order, tensors=unpacked(order.tensors)), personal, client, clock)
        return replace(reply, tensors=packed(reply.tensors)), personal

    return unpacked_step


class Unpacking(Generic[S]):
    """Feeds unpacked replies to another reducer."""

    def __init__(self, reducer: Reducer[S]) -> None:
        self._reducer = reducer

    @property
    def counted(self) -> tuple[ClientId, ...]:
        """Clients whose replies were added."""
        return self._reducer.counted

    def add(self, client: ClientId, reply: Reply) -> None:
        """Take one reply in."""
        self._reducer.add(client, unpacked_reply(reply))

    def finish(self) -> S:
        """Return the reduced value."""
        return self._reducer.finish()


# ---------------------------------------------------------------------------------------------- messages


def packed_exchange(wanted: Ask | Note) -> Ask | Note:
    """Pack the orders of an exchange; clients that are sent the same tensors still share them."""
    if isinstance(wanted, Note):
        return wanted
    alike: dict[tuple[int, int], tuple[Groups, Expects]] = {}
    orders = {}
    for client, order in wanted.orders.items():
        key = id(order.tensors), id(order.expects)
        if key not in alike:
            alike[key] = packed(order.tensors), packed_expects(order.expects)
        tensors, expects = alike[key]
        orders[client] = replace(order, tensors=tensors, expects=expects)
    if isinstance(wanted, Fold):
        return replace(wanted, orders=orders, reducer=Unpacking(wanted.reducer), reading=unpacked)
    return replace(wanted, orders=orders, reading=unpacked)


def unpacked_reply(reply: Reply) -> Reply:
    """Return a reply with its parameters as numbers."""
    return replace(reply, tensors=unpacked(reply.tensors))


def packed(groups: Groups) -> Groups:
    """Move what can be quantised of the parameters to groups of their own."""
    parameters = groups.get(PARAMETERS, {})
    chosen = quantizable(shapes_of(parameters))
    if not chosen:
        return groups
    pairs = {name: quantize(parameters[name]) for name in chosen}
    return {
        **groups,
        PARAMETERS: {name: value for name, value in parameters.items() if name not in pairs},
        QUANTIZED: {name: whole for name, (whole, _) in pairs.items()},
        SCALES: {name: scales for name, (_, scales) in pairs.items()},
    }


def unpacked(groups: Groups) -> Groups:
    """Return groups with all parameters in one again, in float32."""
    if QUANTIZED not in groups:
        return groups
    values = {name: dequantize(whole, groups[SCALES][name]) for name, whole in groups[QUANTIZED].items()}
    others = {group: held for group, held in groups.items() if group not in (QUANTIZED, SCALES)}
    return {**others, PARAMETERS: {**groups.get(PARAMETERS, {}), **values}}


def rounded(groups: Groups) -> Groups:
    """Return what arrives of parameters sent in 8 bits."""
    return unpacked(packed(groups))


def packed_expects(groups: Expects) -> Expects:
    """Describe a packed reply, given what the reply is to hold."""
    expects = groups.get(PARAMETERS, {})
    chosen = quantizable({name: one.shape for name, one in expects.items()})
    if not chosen:
        return groups
    shapes = {name: expects[name].shape for name in chosen}
    return {
        **groups,
        PARAMETERS: {name: one for name, one in expects.items() if name not in shapes},
        QUANTIZED: {name: Expected(shape, torch.int8) for name, shape in shapes.items()},
        SCALES: {n: Expected(shape[:1] if len(shape) > 1 else (), torch.float32) for n, shape in shapes.items()},
    }


# ---------------------------------------------------------------------------------------------- numbers


def shapes_of(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors by name."""
    return {name: tuple(value.shape) for name, value in tensors.items()}


def quantizable(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Name the tensors to quantise: those of two or more axes, and the biases that go with such a weight."""
    return [name for name, shape in shapes.items() if len(shape) > 1 or (len(shape) == 1 and is_bias(name, shapes))]


def is_bias(name: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a vector is the bias of a linear map: that of a normalisation goes with a vector."""
    return name.endswith("bias") and len(shapes.get(name.removesuffix("bias") + "weight", ())) > 1


def quantize(value: Tensor) -> tuple[Tensor, Tensor]:
    """Return whole numbers, int8 of the same shape, and scales: (rows,) of a tensor with axes, () of a vector.

    A row of zeros has the scale 1. A row that is not finite has a scale that is not finite.
    """
    rows = value.reshape(len(value) if value.dim() > 1 else 1, -1).float()
    scales = rows.abs().amax(1) / HIGHEST
    scales = torch.where(scales == 0, 1.0, scales)
    whole = (rows / scales.unsqueeze(1)).nan_to_num().round().clamp(-HIGHEST, HIGHEST).to(torch.int8)
    return whole.view(value.shape), scales if value.dim() > 1 else scales.squeeze(0)


def dequantize(whole: Tensor, scales: Tensor) -> Tensor:
    """Return the float32 values that whole numbers and scales stand for."""
    return whole.float() * scales.view(-1, *[1] * (whole.dim() - 1))
