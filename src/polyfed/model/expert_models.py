"""Clients' models of the architecture ``experts``: the grid of experts, and the plain network it is compared with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from polyfed.data.samples import Batch
from polyfed.model.architecture import Mixing, Outputs, latent_key
from polyfed.model.expert_gates import PATHS, mean_of_present, weights
from polyfed.model.expert_heads import Mixture, mixed, nothing
from polyfed.model.expert_layers import (
    CrossAttention,
    FeedForwards,
    InputStack,
    OutputStack,
    SelfAttention,
    Sizes,
    input_stage,
    output_stage,
)
from polyfed.model.expert_names import GENERAL, Grid, expert, gate
from polyfed.model.expert_stems import Tokens, joined
from polyfed.model.fusion import Presence, everybody, kept

Part = TypeVar("Part", bound=nn.Module)
Type = tuple[str, str]
"""Input and output scope of a path."""


def types(family: str, task: str) -> list[Type]:
    """Return the types of a modality's paths for a task, in the order of the gate's logits."""
    return [(GENERAL, GENERAL), (GENERAL, task), (family, GENERAL), (family, task)]


class ExpertsModel(nn.Module, ABC):
    """What both models have in common: stems, heads and the names of their parts, which are those of components."""

    def __init__(self, components: Mapping[str, nn.Module], families: Mapping[str, str], sizes: Sizes) -> None:
        super().__init__()
        self.stem, self.head = nn.ModuleDict(), nn.ModuleDict()
        for component in sorted(components):
            place: nn.Module = self
            *above, name = component.split(".")
            for step in above:
                if step not in place._modules:
                    place.add_module(step, nn.ModuleDict())
                place = place.get_submodule(step)
            place.add_module(name, components[component])
        self._families = families
        self._width = sizes.width

    def forward(self, batch: Batch) -> Outputs:
        """Use the modalities that the batch holds and the model has stems for.

        Of the tasks that the model has heads for, those are predicted that the batch has targets of, or all if it has
        none at all: a model of more than the client's own tasks must not compute, let alone train, the others' parts.
        """
        used = sorted(batch.inputs.keys() & self.stem.keys())
        tasks = [task for task in self.head if task in batch.labelled] if batch.labelled else list(self.head)
        if not used:
            return self._without(batch, tasks)
        here: dict[str, Tensor | None] = {m: None if m in batch.everywhere else batch.present[m] for m in used}
        # Absent rows are zero already; should one hold NaN all the same, it must not reach a stem's gradient.
        tokens = {m: self.stem[m](kept(batch.inputs[m], here[m])) for m in used}
        return self._outputs(tokens, here, tasks)

    @abstractmethod
    def _outputs(self, tokens: Mapping[str, Tokens], here: Presence, tasks: Sequence[str]) -> Outputs:
        """Compute everything from the tokens of the modalities in use, of which there is at least one."""

    def _without(self, batch: Batch, tasks: Sequence[str]) -> Outputs:
        """Predict from no modality at all."""
        mask = next(iter([*batch.present.values(), *batch.labelled.values()]))
        mixture = nothing(len(mask), self._width, mask.device)
        return Outputs({}, mixture.latent, self._predicted(dict.fromkeys(tasks, mixture)))

    def _predicted(self, mixtures: Mapping[str, Mixture]) -> dict[str, Tensor]:
        return {task: self.head[task](mixture) for task, mixture in mixtures.items()}


class GridModel(ExpertsModel):
    """Four paths for every modality and task, mixed by gates.

    The paths are those of the types (general, general), (general, task), (family, general) and (family, task). The
    first and the third do not depend on the task and are computed once. Features of a modality are the mean of the
    latents of all its paths.
    """

    def __init__(
        self, components: Mapping[str, nn.Module], families: Mapping[str, str], sizes: Sizes, grid: Grid
    ) -> None:
        super().__init__(components, families, sizes)
        self._grid = grid

    def _outputs(self, tokens: Mapping[str, Tokens], here: Presence, tasks: Sequence[str]) -> Outputs:
        present = presence(here, tokens)
        paths = {m: self._paths(found, self._families[m], here[m], tasks) for m, found in tokens.items()}
        latents = {m: {kind: value.mean(1) for kind, value in found.items()} for m, found in paths.items()}
        features = {m: torch.stack(list(found.values())).mean(0) for m, found in latents.items()}
        summary = mean_of_present(torch.stack([mean_of_tokens(found) for found in tokens.values()], 1), present)
        by_path = None if present is None else present.repeat_interleave(PATHS, 1)
        chosen = {task: [(m, kind) for m in paths for kind in types(self._families[m], task)] for task in tasks}
        gated = {task: weights(self._logits(list(paths), task, summary), by_path) for task in tasks}
        mixtures = {task: mixture(chosen[task], gated[task], paths, latents, by_path) for task in tasks}
        fused = fused_of(mixtures, features, present)
        named = {latent_key(m, *kind): value for m, found in latents.items() for kind, value in found.items()}
        mixing = {task: Mixing(tuple(latent_key(m, *kind) for m, kind in chosen[task]), gated[task]) for task in tasks}
        return Outputs(features, fused, self._predicted(mixtures), latents=named, mixing=mixing)

    def _paths(self, tokens: Tokens, family: str, here: Tensor | None, tasks: Sequence[str]) -> dict[Type, Tensor]:
        """Return the query tokens (batch, queries, width) of a modality's paths, zero where it is absent."""
        inputs = (GENERAL, family)
        outputs = (GENERAL, *tasks)
        starts = {GENERAL: Tokens(self.get_submodule("projection")(tokens.values), tokens.mask), family: tokens}
        deep = {scope: self._deepened(starts[scope], scope, outputs) for scope in inputs}
        found: dict[Type, Tensor] = {}
        for other in outputs:
            attention = part(self, CrossAttention, f"cross_attention.{other}")
            experts = {scope: self._expert("output", scope, other) for scope in inputs}
            asked = output_stage(attention, experts, {scope: deep[scope][other] for scope in inputs})
            found |= {(scope, other): kept(queries, here) for scope, queries in asked.items()}
        return found

    def _deepened(self, tokens: Tokens, scope: str, outputs: tuple[str, ...]) -> dict[str, Tokens]:
        """Send tokens through the input stage of a scope, once for each output scope."""
        attention = part(self, SelfAttention, f"self_attention.{scope}")
        if self._grid == "axes":  # where the expert does not depend on the output scope
            return dict.fromkeys(outputs, input_stage(attention, {scope: self._expert("input", scope)}, tokens)[scope])
        return input_stage(attention, {other: self._expert("input", scope, other) for other in outputs}, tokens)

    def _expert(self, stage: str, scope: str, other: str = GENERAL) -> FeedForwards:
        """Return the networks of a stage for an input scope and an output scope."""
        if self._grid == "axes":
            return part(self, FeedForwards, expert(stage, scope if stage == "input" else other))
        return part(self, FeedForwards, f"{expert(scope, other)}.{stage}")

    def _logits(self, modalities: Sequence[str], task: str, summary: Tensor) -> Tensor:
        """Return the logits (batch or 1, paths) of all modalities' paths for a task."""
        if "gate" not in self._modules:
            return summary.new_zeros(1, PATHS * len(modalities))
        return torch.cat([self.get_submodule(gate(modality, task))(summary) for modality in modalities], -1)


class PlainModel(ExpertsModel):
    """One input stack per modality; per task one output stack that reads the tokens of all modalities.

    Features of a modality are the mean of its tokens after the input stack.
    """

    def _outputs(self, tokens: Mapping[str, Tokens], here: Presence, tasks: Sequence[str]) -> Outputs:
        present = presence(here, tokens)
        deep = {m: self._deepened(found, self._families[m]) for m, found in tokens.items()}
        features = {m: kept(mean_of_tokens(found), here[m]) for m, found in deep.items()}
        memory = joined([Tokens(found.values, visible(found, here[m])) for m, found in deep.items()])
        anything = None if present is None else present.any(-1)
        mixtures = {}
        for task in tasks:
            stack = part(self, OutputStack, f"output_stack.{task}")
            queries = kept(output_stage(stack.attention, {task: stack.expert}, {task: memory})[task], anything)
            mixtures[task] = Mixture(queries.mean(1), queries)
        return Outputs(features, fused_of(mixtures, features, present), self._predicted(mixtures))

    def _deepened(self, tokens: Tokens, family: str) -> Tokens:
        stack = part(self, InputStack, f"input_stack.{family}")
        return input_stage(stack.attention, {family: stack.expert}, tokens)[family]


def part(model: nn.Module, kind: type[Part], name: str) -> Part:
    """Return a part of a model, of this kind."""
    found = model.get_submodule(name)
    assert isinstance(found, kind)
    return found


def presence(here: Presence, tokens: Mapping[str, Tokens]) -> Tensor | None:
    """Return the masks of the modalities side by side, (batch, modalities); None: every sample has them all."""
    if all(mask is None for mask in here.values()):
        return None
    masks = [everybody(found.values) if (mask := here[m]) is None else mask for m, found in tokens.items()]
    return torch.stack(masks, 1)


def visible(tokens: Tokens, here: Tensor | None) -> Tensor | None:
    """Return the mask (batch, tokens) of tokens that are neither padding nor of an absent modality."""
    if here is None:
        return tokens.mask
    rows = here.unsqueeze(-1).expand(tokens.values.shape[:2])
    return rows if tokens.mask is None else rows & tokens.mask


def mean_of_tokens(tokens: Tokens) -> Tensor:
    """Mean over the tokens that are no padding: (batch, width)."""
    return mean_of_present(tokens.values, tokens.mask)


def mixture(
    chosen: Sequence[tuple[str, Type]],
    gated: Tensor,
    paths: Mapping[str, Mapping[Type, Tensor]],
    latents: Mapping[str, Mapping[Type, Tensor]],
    present: Tensor | None,
) -> Mixture:
    """Mix the chosen paths by their weights (batch or 1, paths)."""
    return mixed(
        torch.stack([latents[m][kind] for m, kind in chosen], 1),
        torch.stack([paths[m][kind] for m, kind in chosen], 1),
        gated,
        present,
    )


def fused_of(mixtures: Mapping[str, Mixture], features: Mapping[str, Tensor], present: Tensor | None) -> Tensor:
    """Mean of the tasks' mixed latents; without any task, of the features of the modalities present."""
    if mixtures:
        return torch.stack([mixture.latent for mixture in mixtures.values()]).mean(0)
    return mean_of_present(torch.stack(list(features.values()), 1), present)
