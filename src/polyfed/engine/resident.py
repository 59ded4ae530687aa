"""Resident models: built once per set of components, with parameters and gradients as views of two flat buffers.

So loading, an optimiser step and taking the result away are single passes over memory, whatever the number of tensors.
Weights of convolutions lie channels-last, in which PyTorch's CPU convolutions are faster; their shape is the usual one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from polyfed.data.samples import Batch
from polyfed.data.schema import Task
from polyfed.errors import UserError
from polyfed.model.architecture import Outputs, Tensors


class Resident:
    """A model as an objective sees it. ``values`` and ``slopes`` (parameters,) are the flat buffers.

    Parameters that the architecture built frozen (a pre-trained base) are no part of them: they stay in the module,
    are never loaded, and an architecture may share them among its models.
    """

    def __init__(self, module: nn.Module, tasks: Mapping[str, Task]) -> None:
        self.module = module
        self.tasks = tasks
        self.parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
        first = next(iter(self.parameters.values()))
        for name, parameter in self.parameters.items():
            if parameter.dtype != first.dtype:
                raise UserError(f"parameter {name!r} is {parameter.dtype}; the model's others are {first.dtype}")
        size = sum(parameter.numel() for parameter in self.parameters.values())
        self.values = torch.empty(size, dtype=first.dtype, device=first.device)
        self.slopes = torch.zeros_like(self.values)
        values = self.views(self.values)
        for name, parameter in self.parameters.items():
            values[name].copy_(parameter.detach())
            parameter.data = values[name]
        self._unusual = [name for name, value in values.items() if not value.is_contiguous()]
        self._loaded: list[tuple[Tensor, int]] = []
        self._last = self.values.clone()

    def __call__(self, batch: Batch) -> Outputs:
        """Compute features and predictions."""
        outputs: Outputs = self.module(batch)
        return outputs

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Cut a flat buffer (parameters,) into views by parameter name."""
        sizes = [parameter.numel() for parameter in self.parameters.values()]
        pieces = torch.split(flat, sizes)
        return {
            name: shaped(piece, tuple(parameter.shape))
            for (name, parameter), piece in zip(self.parameters.items(), pieces, strict=True)
        }

    def load(self, values: Tensors) -> None:
        """Copy values into the parameters; every one of them must be given.

        Clients of one round mostly start from the same tensors: these are gathered once and then copied in one pass.
        """
        missing = self.parameters.keys() - values.keys()
        if missing:
            raise LookupError(f"no value for parameter {min(missing)!r}")
        given = [values[name] for name in self.parameters]
        same = len(given) == len(self._loaded) and all(
            one is other and one._version == version for one, (other, version) in zip(given, self._loaded, strict=True)
        )
        if not same:
            for target, value in zip(self.views(self._last).values(), given, strict=True):
                target.copy_(value)
            self._loaded = [(value, value._version) for value in given]
        self.values.copy_(self._last)

    def train_only(self, names: Collection[str]) -> None:
        """Compute gradients of these parameters only."""
        for name, parameter in self.parameters.items():
            if parameter.requires_grad != (name in names):
                parameter.requires_grad_(name in names)

    def snapshot(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return copies of the current values of these parameters, on the CPU.

        They are contiguous, as they would be after travelling: sums over them must not depend on the layout here.
        """
        flat = torch.empty(self.values.shape, dtype=self.values.dtype)
        sizes = [parameter.numel() for parameter in self.parameters.values()]
        pieces = zip(self.parameters.items(), torch.split(flat, sizes), strict=True)
        held = {name: piece.view(parameter.shape) for (name, parameter), piece in pieces}
        flat.copy_(self.values)
        for name in self._unusual:
            held[name].copy_(self.parameters[name].detach())
        return {name: held[name] for name in names}

    def segments(self, flat: Tensor, names: Iterable[str]) -> list[Tensor]:
        """Return the stretches of a flat buffer that these parameters fill; neighbours are one stretch."""
        wanted = set(names)
        stretches: list[list[int]] = []
        at = 0
        for name, parameter in self.parameters.items():
            end = at + parameter.numel()
            if name in wanted and stretches and stretches[-1][1] == at:
                stretches[-1][1] = end
            elif name in wanted:
                stretches.append([at, end])
            at = end
        return [flat[start:end] for start, end in stretches]


def shaped(piece: Tensor, shape: tuple[int, ...]) -> Tensor:
    """View a flat piece in a shape; weights of two-dimensional convolutions lie channels-last."""
    if len(shape) == 4:
        out, channels, height, width = shape
        return piece.view(out, height, width, channels).permute(0, 3, 1, 2)
    return piece.view(shape)
