"""The ``modular`` model: an encoder per modality, a fusion, a head per task; each is a component of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from polyfed.data.samples import Batch
from polyfed.data.schema import Modality, Task
from polyfed.errors import PolyfedError, UserError, unknown
from polyfed.model import parts
from polyfed.model.architecture import Outputs
from polyfed.model.encoders import default_encoder
from polyfed.model.fusion import Fusion, kept
from polyfed.model.heads import default_head, prediction_shape
from polyfed.model.parts import Choice
from polyfed.rng import seeded

DEFAULTS: Mapping[str, Choice] = {}
CONCAT: Choice = {"name": "concat"}


class ModularModel(nn.Module):
    """A client's model.

    Parameter names are ``encoder.<modality>...``, ``fusion.<part>...``, ``head.<task>...`` and, with uni-modal heads,
    ``unimodal.<modality>.<task>...``.
    """

    def __init__(self, components: Mapping[str, nn.Module], fusion: Fusion) -> None:
        super().__init__()
        self.encoder, self.fusion, self.head = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        self.unimodal = nn.ModuleDict({modality: nn.ModuleDict() for modality in unimodal_of(components)})
        for component in sorted(components):
            place, _, name = component.rpartition(".")
            self.get_submodule(place).add_module(name, components[component])
        self._fusion = fusion

    def forward(self, batch: Batch) -> Outputs:
        """Use the modalities that the batch holds and the model has encoders for; predict each task it has a head for.

        A sample without any of these modalities is fused to zeros.
        """
        used = sorted(batch.inputs.keys() & self.encoder.keys())
        # Absent rows are zero already; should one hold NaN all the same, it must not reach an encoder's gradient.
        here = {m: None if m in batch.everywhere else batch.present[m] for m in used}
        features = {m: self.encoder[m](kept(batch.inputs[m], here[m])) for m in used}
        fused = self._fusion.fuse(self.fusion, features, here) if used else self._nothing(batch)
        predictions = {task: head(fused) for task, head in self.head.items()}
        unimodal = {
            m: {task: head(features[m]) for task, head in heads.items()}
            for m, heads in self._unimodal_heads()
            if m in features
        }
        return Outputs(features, fused, predictions, unimodal)

    def _unimodal_heads(self) -> list[tuple[str, nn.ModuleDict]]:
        return [(name, heads) for name, heads in self.unimodal.items() if isinstance(heads, nn.ModuleDict)]

    def _nothing(self, batch: Batch) -> Tensor:
        """Fuse no modality at all: zeros (batch, fused width)."""
        mask = next(iter([*batch.present.values(), *batch.labelled.values()]))
        return torch.zeros(len(mask), self._fusion.width, device=mask.device)


@dataclass(frozen=True)
class Modular:
    """Components ``encoder.<modality>``, ``fusion.<modality>`` (and shared ``fusion.*``), ``head.<task>``.

    With ``unimodal_heads`` also ``unimodal.<modality>.<task>``: a head on the features of one modality.
    """

    modalities: Mapping[str, Modality]
    tasks: Mapping[str, Task]
    fusion: Fusion
    builders: Mapping[str, Callable[[], nn.Module]]
    unimodal_heads: bool = False

    def components(self, modalities: Collection[str], tasks: Collection[str]) -> tuple[str, ...]:
        """Name the components that a client with these modalities and tasks uses, sorted."""
        known(modalities, self.modalities, "modality", "model")
        known(tasks, self.tasks, "task", "model")
        shared = self.fusion.shared if modalities else ()
        encoders = {f"encoder.{name}" for name in modalities}
        fusion = {f"fusion.{name}" for name in [*modalities, *shared]}
        heads = {f"head.{name}" for name in tasks}
        if self.unimodal_heads:
            heads |= {unimodal_head(modality, task) for modality in modalities for task in tasks}
        return tuple(sorted(encoders | fusion | heads))

    def assemble(self, components: Collection[str]) -> nn.Module:
        """Build the model of these components, which must be what some modalities and tasks call for."""
        known(components, self.builders, "component", "model")
        needed = self.components(held("encoder", components), held("head", components))
        if set(needed) != set(components):
            raise UserError(f"components {sorted(components)} make no model; with these encoders and heads: {needed}")
        with seeded(0, "assemble"):
            return ModularModel({name: self.builders[name]() for name in components}, self.fusion)

    def initial(self, seed: int) -> dict[str, Tensor]:
        """Return first values of every parameter; those of a component depend on the seed and its name alone."""
        values: dict[str, Tensor] = {}
        for component in sorted(self.builders):
            with seeded(seed, "initial", component):
                module = self.builders[component]()
            values |= {f"{component}.{name}": value.detach() for name, value in module.named_parameters()}
        return values


def unimodal_head(modality: str, task: str) -> str:
    """Name the component that predicts a task from one modality alone."""
    return f"unimodal.{modality}.{task}"


def unimodal_of(components: Collection[str]) -> list[str]:
    """Modalities that have uni-modal heads among these components, sorted."""
    return sorted({name.split(".")[0] for name in held("unimodal", components)})


def held(kind: str, components: Collection[str]) -> list[str]:
    """Names that follow ``<kind>.`` in these components."""
    return [name.split(".", 1)[1] for name in components if name.startswith(f"{kind}.")]


def known(names: Iterable[str], choices: Collection[str], kind: str, place: str) -> None:
    """Refuse a name that is none of the choices."""
    for name in names:
        if name not in choices:
            raise unknown(kind, name, choices, place=place)


def check_name(kind: str, name: str) -> None:
    """Refuse a name that cannot be part of a parameter's name."""
    if not name or "." in name:
        raise UserError(f"{kind} name {name!r}: it becomes part of parameter names and may not be empty or hold a dot")
    if hasattr(nn.ModuleDict(), name):
        raise UserError(
            f"{kind} name {name!r} is a word PyTorch uses itself; rename the {kind}, for instance to '{name}_'"
        )


def check_component(component: str, module: nn.Module, example: Tensor | None, shape: tuple[int, ...]) -> None:
    """Refuse a component with running statistics, or one whose output for the example is not of the shape."""
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    statistics = [k for k, v in module.state_dict().items() if k not in parameters and v.is_floating_point()]
    if statistics:
        raise UserError(
            f"component {component!r} keeps statistics that are no parameters ({statistics[0]}), as BatchNorm does; "
            "they would not be averaged. Use GroupNorm or LayerNorm, or register constants with persistent=False"
        )
    if example is None:
        return
    with torch.no_grad():
        output = module(example)
    found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if found != shape:
        raise UserError(f"component {component!r} returns shape {found} for {len(example)} samples, not {shape}")


def check(model: Modular, width: int) -> None:
    """Build every component once, so that a mistake shows when the experiment is loaded."""
    examples: dict[str, tuple[Tensor, tuple[int, ...]]] = {}
    for name, modality in model.modalities.items():
        dtype = torch.int64 if modality.kind == "tokens" else torch.float32
        examples[f"encoder.{name}"] = torch.zeros(2, *modality.shape, dtype=dtype), (2, width)
    for name, task in model.tasks.items():
        shape = (2, *prediction_shape(task))
        examples[f"head.{name}"] = torch.zeros(2, model.fusion.width), shape
        examples |= {unimodal_head(modality, name): (torch.zeros(2, width), shape) for modality in model.modalities}
    for component, build in model.builders.items():
        example, shape = examples.get(component, (None, ()))
        try:
            with seeded(0, "check", component):
                check_component(component, build(), example, shape)
        except PolyfedError:
            raise
        except Exception as error:  # a part may be the user's own, and sizes may be beyond the memory
            given = "" if example is None else f" for an input of shape {tuple(example.shape)}"
            message = str(error).split("\n", 1)[0]
            raise UserError(f"component {component!r} fails{given}: {type(error).__name__}: {message}") from error


def modular(
    modalities: Mapping[str, Modality],
    tasks: Mapping[str, Task],
    *,
    width: Annotated[int, Field(ge=1, le=65536, description="width of the features")] = 64,
    encoders: Mapping[str, Choice] = DEFAULTS,
    fusion: Choice = CONCAT,
    heads: Mapping[str, Choice] = DEFAULTS,
    unimodal_heads: Annotated[
        bool | None, Field(description="also a head per modality and task; null: where the method needs them")
    ] = None,
) -> Modular:
    """An encoder per modality, a fusion of those present, a head per task; on request also uni-modal heads.

    ``width`` is that of the features. ``encoders`` (by modality), ``fusion`` and ``heads`` (by task) each take a
    ``name`` and that part's options; what is not mentioned is chosen by the kind of modality or task. A uni-modal head
    is built like the head of its task.
    """
    known(encoders, modalities, "modality", "model.encoders")
    known(heads, tasks, "task", "model.heads")
    fused = parts.build(parts.FUSIONS, fusion, "concat", "model.fusion", width)
    builders: dict[str, Callable[[], nn.Module]] = {}
    for name, modality in modalities.items():
        check_name("modality", name)
        if name in fused.shared:
            raise UserError(
                f"modality name {name!r} is reserved for the component 'fusion.{name}'; rename the modality"
            )
        place, choice, default = f"model.encoders.{name}", encoders.get(name, {}), default_encoder(modality)
        builders[f"encoder.{name}"] = partial(parts.build, parts.ENCODERS, choice, default, place, modality, width)
    for name in [*modalities, *fused.shared]:
        builders[f"fusion.{name}"] = partial(fused.part, name)
    for name, task in tasks.items():
        check_name("task", name)
        place, choice, default = f"model.heads.{name}", heads.get(name, {}), default_head(task)
        build = partial(parts.build, parts.HEADS, choice, default, place, task)
        builders[f"head.{name}"] = partial(build, fused.width)
        if unimodal_heads:
            builders |= {unimodal_head(modality, name): partial(build, width) for modality in modalities}
    model = Modular(dict(modalities), dict(tasks), fused, builders, bool(unimodal_heads))
    check(model, width)
    return model
