"""The contract between a method (the algorithm) and an engine (what executes it).

The server half of a method is a generator that yields exchanges and receives their answers; a client step is a
generator that yields requests (train this, measure that) and receives results. Neither does any I/O, so a test can
drive them by hand, the simulator in one process and a network across sites.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from polyfed.data.samples import Batch, Samples
from polyfed.data.schema import Task
from polyfed.model.architecture import Outputs, Tensors
from polyfed.model.losses import Logged
from polyfed.rng import Key, torch_generator
from polyfed.scenario.federation import Card, Client, ClientId, Roster

Groups = Mapping[str, Tensors]
"""Named groups of named tensors: "parameters", "prototypes", ..."""

Cohort = Mapping[ClientId, frozenset[str]]
"""The clients that are asked, and the modalities each is to use."""

A = TypeVar("A")
A_co = TypeVar("A_co", covariant=True)
S = TypeVar("S")
T = TypeVar("T")


# ---------------------------------------------------------------------------------------------- messages


@dataclass(frozen=True)
class Expected:
    """What a reply's tensor must look like; ``largest`` bounds its Euclidean norm where nothing was sent to compare."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    largest: float | None = None


Expects = Mapping[str, Mapping[str, Expected]]
"""What a reply must hold: by group and tensor name."""


@dataclass(frozen=True)
class Order:
    """Server -> one client: do ``step`` with the ``active`` modalities.

    ``expects`` names every tensor the reply must hold, by group; anything else in a reply is refused. It stays with
    the server and does not travel; nor does ``needs``, the range of each number that the reply must hold.
    """

    step: str
    active: frozenset[str]
    tensors: Groups = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    expects: Expects = field(default_factory=dict)
    needs: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """One client -> server. ``examples`` counts the training samples the reply rests on."""

    examples: int
    tensors: Groups = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)


UNTRAINED = "untrained."
"""What the numbers of a reply begin with that name components which the client was sent but did not train."""

MOST_NAMED = 128
"""Parts of a model of which a method tells numbers by name: a reply may hold only so many, and so should a note."""


def untrained(reply: Reply) -> list[str]:
    """Name the components that a client says it did not train."""
    return [name.removeprefix(UNTRAINED) for name in reply.numbers if name.startswith(UNTRAINED)]


def expected(groups: Groups) -> dict[str, dict[str, Expected]]:
    """Describe tensors so that a reply can be held against them."""
    return {
        group: {name: Expected(tuple(value.shape), value.dtype) for name, value in tensors.items()}
        for group, tensors in groups.items()
    }


# ---------------------------------------------------------------------------------------------- exchanges


class Reducer(Protocol[A_co]):
    """A one-pass reduction. Replies arrive in ascending client id, refused ones never."""

    def add(self, client: ClientId, reply: Reply) -> None:
        """Take one reply in; the reply is dropped afterwards."""
        ...

    def finish(self) -> A_co:
        """Return the reduced value."""
        ...

    @property
    def counted(self) -> tuple[ClientId, ...]:
        """Clients whose replies were added."""
        ...


Orders = Mapping[ClientId, Order]

Reading = Callable[[Groups], Groups]
"""Finds the values that tensors stand for as they travel, such as those of parameters in 8 bits."""


def as_it_is(groups: Groups) -> Groups:
    """Read tensors that travel as they are."""
    return groups


@dataclass(frozen=True)
class Ask:
    """Send orders and gather every reply, by client; refused and lost replies are missing.

    ``aside``: this only prepares the round; whoever is asked does not thereby take part in it. ``reading`` is for those
    who look at messages from outside: what screens replies and what compares updates goes by the values that it finds.
    It is called only with tensors whose names, shapes and types are as expected.
    """

    orders: Orders
    aside: bool = field(default=False, kw_only=True)
    reading: Reading = field(default=as_it_is, kw_only=True)


@dataclass(frozen=True)
class Fold(Ask):
    """Send orders and feed the replies to a reducer one at a time; only the reduced value comes back."""

    reducer: Reducer[Any]


Links = Mapping[ClientId, Mapping[ClientId, float]]
"""A number of each pair of clients: by the client it is of, and by the other one."""

MOST_LINKED = 64
"""Clients up to which a method tells numbers of pairs of them."""


@dataclass(frozen=True)
class Note:
    """What the server wants in the records: numbers of the round, and numbers of single clients. Nobody is asked.

    ``links`` are numbers of pairs of clients: by name, by the client they are of, and by the other one.
    """

    numbers: Mapping[str, float] = field(default_factory=dict)
    clients: Mapping[ClientId, Mapping[str, float]] = field(default_factory=dict)
    links: Mapping[str, Links] = field(default_factory=dict)


Conversation = Generator[Ask | Note, Any, T]


def ask(orders: Orders, *, aside: bool = False) -> Conversation[dict[ClientId, Reply]]:
    """Exchange orders for all replies: ``replies = yield from ask(orders)``."""
    replies: dict[ClientId, Reply] = yield Ask(orders, aside=aside)
    return replies


def fold(orders: Orders, reducer: Reducer[A], *, aside: bool = False) -> Conversation[A]:
    """Exchange orders for a reduced value: ``total = yield from fold(orders, reducer)``."""
    total: A = yield Fold(orders, reducer, aside=aside)
    return total


def note(wanted: Note) -> Conversation[None]:
    """Have something recorded: ``yield from note(Note(...))``."""
    yield wanted


# ---------------------------------------------------------------------------------------------- client requests


class Model(Protocol):
    """What an objective sees: the client's model with its current parameters bound."""

    @property
    def parameters(self) -> Tensors:
        """Current parameters by name."""
        ...

    @property
    def tasks(self) -> Mapping[str, Task]:
        """Tasks of the federation by name."""
        ...

    def __call__(self, batch: Batch) -> Outputs:
        """Compute features and predictions."""
        ...


Objective = Callable[[Model, Batch, Groups], tuple[Tensor, Logged]]
"""A pure function of model, batch and extra tensors -> loss () and what is to be logged.

A logged ``Share`` (sum and number of samples) becomes an exact mean however the samples are cut into batches; a plain
scalar () is averaged over batches, weighted by their size, and so is the loss itself. An objective holds no state,
writes branches on tensor values with ``torch.where`` and counts only samples whose ``labelled`` mask is true, whatever
the length of the batch, so that batches may be padded and clients stacked.
"""


class Adaptive(ABC):
    """A base for objectives with a memory from one step to the next, or that change gradients before they are used.

    Fits with such an objective are never stacked.
    """

    def __call__(self, model: Model, batch: Batch, extra: Groups) -> tuple[Tensor, Logged]:
        """Return what the first step would."""
        loss, logged, _ = self.loss(model, batch, extra, {})
        return loss, logged

    @abstractmethod
    def loss(self, model: Model, batch: Batch, extra: Groups, memory: Tensors) -> tuple[Tensor, Logged, Tensors]:
        """Return the loss (), what is logged, and the memory for the next step."""

    def gradients(self, gradients: Tensors, memory: Tensors, generator: torch.Generator) -> Tensors:
        """Return the gradients to use, by parameter name, given those of the loss and the memory just returned."""
        return gradients


Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Recipe:
    """How to fit: optimiser, local epochs, batch size. A new optimiser starts with every fit.

    ``schedule`` lowers the learning rate from ``lr`` over the steps of a fit, step j of n: to (1 − j / n) lr
    (``linear``) or (1 + cos(π j / n)) lr / 2 (``cosine``). A share ``warmup`` of the steps comes before that, in which
    the learning rate rises evenly to ``lr``. With ``least_epochs`` each client draws its epochs anew every round.
    """

    optimizer: str = "sgd"
    lr: float = 0.05
    momentum: float = 0.0
    weight_decay: float = 0.0
    epochs: int = 1
    batch_size: int = 32
    clip_norm: float | None = None
    schedule: Schedule = "constant"
    least_epochs: int | None = None
    warmup: float = 0.0

    @property
    def scheduled(self) -> bool:
        """Whether the learning rate depends on the step."""
        return self.schedule != "constant" or self.warmup > 0

    def share_of_lr(self, step: int, steps: int) -> float:
        """Return the share of ``lr`` with which step ``step`` (from 0) of ``steps`` is taken."""
        rising = math.ceil(self.warmup * steps)
        if step < rising:
            return (step + 1) / rising
        step, steps = step - rising, steps - rising
        if self.schedule == "linear":
            return 1 - step / steps
        return (1 + math.cos(math.pi * step / steps)) / 2 if self.schedule == "cosine" else 1.0


@dataclass(frozen=True)
class Fit:
    """Train: minimise ``objective`` over ``data`` from ``start``.

    Only ``active`` modalities are used; only parameters of components that these and the client's tasks call for move,
    and of those only the ones in ``trains`` (component names; None means all of them). ``components`` are those that
    make up the model, where it is not to be all that modalities and tasks call for. ``extra`` holds constants of the
    objective, such as a proximal anchor. What is drawn for a fit depends on its ``purpose`` and on how many of the same
    purpose came before it in the exchange, on no other request. ``memory`` is what an adaptive objective starts with.
    """

    objective: Objective
    start: Tensors
    data: Samples
    recipe: Recipe
    active: frozenset[str]
    trains: frozenset[str] | None = None
    extra: Groups = field(default_factory=dict)
    purpose: str = "request"
    memory: Tensors = field(default_factory=dict)
    components: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Fitted:
    """Parameters after a fit (all names of ``start``), optimiser steps taken and means of the logged scalars.

    ``memory`` is what an adaptive objective ended with.
    """

    parameters: Tensors
    steps: int
    numbers: Mapping[str, float]
    memory: Tensors = field(default_factory=dict)


@dataclass(frozen=True)
class Measure:
    """Evaluate ``objective`` over ``data`` without training: the means of what it logs, and of its loss."""

    objective: Objective
    parameters: Tensors
    data: Samples
    active: frozenset[str]
    extra: Groups = field(default_factory=dict)


@dataclass(frozen=True)
class Gradient:
    """Compute the gradient of ``objective`` over all of ``data`` at ``parameters``, without training.

    The model is in evaluation mode. Where the data take several batches, these count by their samples, labelled or not:
    the engine does not know which of them an objective counts.
    """

    objective: Objective
    parameters: Tensors
    data: Samples
    active: frozenset[str]
    extra: Groups = field(default_factory=dict)


@dataclass(frozen=True)
class Embed:
    """Compute the features of all of ``data``, in evaluation mode and without gradient."""

    parameters: Tensors
    data: Samples
    active: frozenset[str]


Request = Fit | Measure | Gradient | Embed

NOTES = "notes"
"""The personal group of what a client notes for the records, () tensors by name. It never leaves the client."""

TRAINED = "trained"
"""The personal group of a client's whole model as it last trained it, if it is to be judged by that and to use that.

Else a client's model is what the server deploys and what is the client's own, which is then judged beside it.
"""

Work = Generator[Request, Any, tuple[Reply, Groups]]
"""What a client step is: yields requests, returns its reply and the client's personal groups."""


def fit(request: Fit) -> Generator[Request, Any, Fitted]:
    """Have a fit done: ``fitted = yield from fit(Fit(...))``."""
    fitted: Fitted = yield request
    return fitted


def measure(request: Measure) -> Generator[Request, Any, dict[str, float]]:
    """Have a measurement done: ``numbers = yield from measure(Measure(...))``."""
    numbers: dict[str, float] = yield request
    return numbers


def gradient(request: Gradient) -> Generator[Request, Any, dict[str, Tensor]]:
    """Have a gradient computed: ``slopes = yield from gradient(Gradient(...))``; names the loss misses are left out."""
    slopes: dict[str, Tensor] = yield request
    return slopes


def embed(request: Embed) -> Generator[Request, Any, dict[str, Tensor]]:
    """Have features computed: ``features = yield from embed(Embed(...))``.

    They are (samples, width) by modality, on the CPU; rows of samples that lack the modality are not to be used.
    """
    features: dict[str, Tensor] = yield request
    return features


# ---------------------------------------------------------------------------------------------- methods


@dataclass(frozen=True)
class Clock:
    """Round (from 1), total rounds, and generators keyed by (seed, round, client, purpose)."""

    seed: int
    round: int
    total: int

    def key(self, purpose: str, client: ClientId | None = None) -> tuple[Key, ...]:
        """Return the key of a generator."""
        return (self.seed, self.round, "server" if client is None else client, purpose)

    def generator(self, purpose: str, client: ClientId | None = None) -> torch.Generator:
        """Return a fresh generator for one purpose of the server (or of one client) in this round."""
        return torch_generator(*self.key(purpose, client))


ClientStep = Callable[[Order, Groups, Client, Clock], Work]


class Method(Protocol[S]):
    """A federated algorithm. State is a frozen dataclass of tensors and plain values: it goes in and comes out."""

    @property
    def steps(self) -> Mapping[str, ClientStep]:
        """What a client can be asked to do."""
        ...

    def begin(self, initial: Tensors, roster: Roster) -> S:
        """Return the server's first state from the first values of every component."""
        ...

    def enrol(self, initial: Tensors, card: Card) -> Groups:
        """Return the personal groups a client starts with."""
        ...

    def round(self, state: S, roster: Roster, clock: Clock) -> Conversation[S]:
        """Hold one round's exchanges and return the next state."""
        ...

    def deploy(self, state: S, card: Card) -> Tensors:
        """Return the server's part of one client's model, as of now."""
        ...


Part = Callable[[Tensors], Tensors]
"""What makes another model of a client's, of parts of it: parameters of the same names."""


@runtime_checkable
class Divisible(Protocol):
    """A method of whose clients' models parts are worth judging by themselves, beside the whole."""

    @property
    def parts(self) -> Mapping[str, Part]:
        """What makes them, by name."""
        ...


def join(received: Tensors, personal: Tensors, *, client: ClientId) -> dict[str, Tensor]:
    """Join a client's received and personal parameters; a name in both is an error."""
    check_apart(received, personal, client=client)
    return {**received, **personal}


def check_apart(received: Tensors, personal: Tensors, *, client: ClientId) -> None:
    """Raise LookupError for a parameter that is both received and personal."""
    if not received.keys().isdisjoint(personal.keys()):
        both = min(received.keys() & personal.keys())
        raise LookupError(f"client {client}: {both!r} is both personal and received")
