"""The ``experts`` model: a mixture of experts on a grid of modalities and tasks, as DisentAFL shares them.

Reconstructed from the abstract and the slides of Chen and Zhang, "On Disentanglement of Asymmetrical Knowledge Transfer
for Modality-Task Agnostic Federated Learning", AAAI 2024, and from a third party's re-implementation (the baseline in
Lee et al., "TAP", arXiv 2509.26524): the slides give four attention layers with three heads and about 22 million
parameters; the grid with its four paths is the re-implementation's; the other sizes are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from polyfed.data.schema import Modality, Task
from polyfed.errors import UserError
from polyfed.model.attention import linear
from polyfed.model.expert_gates import Gate, gate_of
from polyfed.model.expert_heads import MixtureHead, TokenDecoder
from polyfed.model.expert_layers import (
    CrossAttention,
    Expert,
    FeedForwards,
    InputStack,
    OutputStack,
    SelfAttention,
    Sizes,
)
from polyfed.model.expert_models import GridModel, PlainModel
from polyfed.model.expert_names import GENERAL, Grid, called_for
from polyfed.model.expert_stems import (
    DecoderOptions,
    PatchStem,
    StemOptions,
    TextStem,
    drawn_patches,
    family_of,
    patches_of,
    text_vocabulary,
)
from polyfed.model.modular import check_name, held, known
from polyfed.rng import seeded

Builder = Callable[[], nn.Module]
BY_SHAPE: Mapping[str, StemOptions] = {}
DRAWN_BY_SHAPE: Mapping[str, DecoderOptions] = {}


@dataclass(frozen=True)
class Experts:
    """Components by modality, by family of modalities, by task, and for everybody (scope ``general``).

    ``stem.<modality>``, ``projection``, ``self_attention.<input scope>``, ``cross_attention.<output scope>``,
    ``expert.<input scope>.<output scope>`` (by axis: ``expert.input.<scope>``, ``expert.output.<scope>``),
    ``head.<task>`` and the client's own ``gate.<modality>.<task>``. The plain network has ``stem.<modality>``,
    ``input_stack.<family>``, ``output_stack.<task>`` and ``head.<task>``.
    """

    modalities: Mapping[str, Modality]
    tasks: Mapping[str, Task]
    grid: Grid
    gated: bool
    sizes: Sizes
    builders: Mapping[str, Builder]

    @property
    def families(self) -> dict[str, str]:
        """Return the family of each modality."""
        return {name: family_of(modality) for name, modality in self.modalities.items()}

    def components(self, modalities: Collection[str], tasks: Collection[str]) -> tuple[str, ...]:
        """Name the components that a client with these modalities and tasks uses, sorted."""
        known(modalities, self.modalities, "modality", "model")
        known(tasks, self.tasks, "task", "model")
        return tuple(sorted(called_for(self.grid, self.gated, self.families, set(modalities), set(tasks))))

    def assemble(self, components: Collection[str]) -> nn.Module:
        """Build the model of these components, which must be what some modalities and tasks call for."""
        known(components, self.builders, "component", "model")
        needed = self.components(held("stem", components), held("head", components))
        if set(needed) != set(components):
            raise UserError(f"components {sorted(components)} make no model; with these stems and heads: {needed}")
        with seeded(0, "assemble"):
            parts = {name: self.builders[name]() for name in components}
        if self.grid == "module":
            return PlainModel(parts, self.families, self.sizes)
        return GridModel(parts, self.families, self.sizes, self.grid)

    def initial(self, seed: int) -> dict[str, Tensor]:
        """Return first values of every parameter; those of a component depend on the seed and its name alone."""
        values: dict[str, Tensor] = {}
        for component in sorted(self.builders):
            with seeded(seed, "initial", component):
                module = self.builders[component]()
            values |= {f"{component}.{name}": value.detach() for name, value in module.named_parameters()}
        return values


def experts(  # noqa: PLR0913 - each is an option of the model
    modalities: Mapping[str, Modality],
    tasks: Mapping[str, Task],
    *,
    expert_grid: Annotated[
        Grid,
        Field(description="experts per pair of scopes, per scope and stage (axes), or none: a plain network (module)"),
    ] = "pairs",
    gate: Annotated[Gate, Field(description="how paths are weighted: equally, as learned, or by the sample")] = (
        "learned"
    ),
    width: Annotated[int, Field(ge=1, le=65536, description="width of tokens and features")] = 192,
    heads: Annotated[int, Field(ge=1, description="attention heads; they must divide the width")] = 3,
    layers: Annotated[int, Field(ge=1, description="layers of each of the two stages")] = 2,
    ratio: Annotated[
        float, Field(gt=0, le=1024, description="units of a feed-forward network as a multiple of the width")
    ] = 4.0,
    queries: Annotated[int, Field(ge=1, description="learned query tokens of each output scope")] = 4,
    stems: Annotated[Mapping[str, StemOptions], Field(description="by modality: patch, canvas")] = BY_SHAPE,
    decoders: Annotated[Mapping[str, DecoderOptions], Field(description="by generation task: patch")] = DRAWN_BY_SHAPE,
) -> Experts:
    """Experts on a grid of modalities and tasks, four paths each, mixed by gates; or the plain network beside it.

    Reconstructed from the slides of DisentAFL and a third party's code. ``stems`` take a ``patch`` (values per token
    along each axis) and a ``canvas`` (what images are padded to), ``decoders`` a ``patch``; what is not mentioned is
    chosen by the shape.
    """
    if width % heads:
        raise UserError(f"model: heads {heads} do not divide the width {width}")
    sizes = Sizes(width, heads, layers, max(1, round(ratio * width)), queries)
    for name, modality in modalities.items():
        check_scope("modality", name)
        check_scope("modality", family_of(modality))
    for name in tasks:
        check_scope("task", name)
    builders = stem_builders(modalities, stems, width) | head_builders(tasks, decoders, sizes)
    families = {name: family_of(modality) for name, modality in modalities.items()}
    common = common_builders(expert_grid, gate, sizes)
    for component in called_for(expert_grid, gate != "uniform", families, set(modalities), set(tasks)):
        if component not in builders:
            builders[component] = common[component.split(".")[0]]
    return Experts(dict(modalities), dict(tasks), expert_grid, gate != "uniform", sizes, builders)


def check_scope(kind: str, name: str) -> None:
    """Refuse a name that cannot be that of a scope."""
    check_name(kind, name)
    if name == GENERAL or "|" in name:
        raise UserError(
            f"{kind} name {name!r}: in the model 'experts' it may not hold '|', nor be {GENERAL!r}, which stands for "
            f"what all clients share; rename the {kind}"
        )


def stem_builders(
    modalities: Mapping[str, Modality], stems: Mapping[str, StemOptions], width: int
) -> dict[str, Builder]:
    """Return what builds the stems, by component."""
    known(stems, modalities, "modality", "model.stems")
    found: dict[str, Builder] = {}
    for name, modality in modalities.items():
        options = stems.get(name, StemOptions())
        if modality.kind == "tokens":
            found[f"stem.{name}"] = partial(TextStem, text_vocabulary(modality, options), modality.shape[0], width)
        else:
            found[f"stem.{name}"] = partial(PatchStem, patches_of(modality, modalities, options), width)
    return found


def head_builders(
    tasks: Mapping[str, Task], decoders: Mapping[str, DecoderOptions], sizes: Sizes
) -> dict[str, Builder]:
    """Return what builds the heads, by component."""
    known(decoders, tasks, "task", "model.decoders")
    found: dict[str, Builder] = {}
    for name, task in tasks.items():
        if task.kind == "generation":
            patches = drawn_patches(task, decoders.get(name, DecoderOptions()))
            found[f"head.{name}"] = partial(TokenDecoder, patches, sizes)
        elif name in decoders:
            raise UserError(f"model.decoders: task {name!r} is a {task.kind} and has no decoder")
        else:
            found[f"head.{name}"] = partial(MixtureHead, task, sizes.width)
    return found


def common_builders(grid: Grid, gate: Gate, sizes: Sizes) -> dict[str, Builder]:
    """Return what builds all other components, by the first part of their names."""
    return {
        "projection": partial(linear, sizes.width, sizes.width),
        "self_attention": partial(SelfAttention, sizes),
        "cross_attention": partial(CrossAttention, sizes),
        "expert": partial(Expert if grid == "pairs" else FeedForwards, sizes),
        "input_stack": partial(InputStack, sizes),
        "output_stack": partial(OutputStack, sizes),
        "gate": partial(gate_of, gate, sizes.width),
    }
