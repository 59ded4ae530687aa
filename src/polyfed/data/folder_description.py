"""``dataset.yaml``: what a user's own folder of samples holds, as checked models."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from polyfed import strict_yaml
from polyfed.data.schema import Form, Modality, ModalityKind, Task, TaskKind
from polyfed.errors import UserError
from polyfed.explain import explain

AXES: dict[ModalityKind, int] = {"image": 3, "audio": 3, "sensor": 2, "vector": 1, "tokens": 1}
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
SPLIT = "split"

Shape = tuple[PositiveInt, ...]


class Part(BaseModel):
    """Base of the models: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Entry(Part):
    """What modalities and tasks have in common: where the values come from."""

    array: Annotated[str | None, Field(description="one .npy array for all rows, instead of a column")] = None
    seconds: Annotated[PositiveFloat, Field(description="length a .wav file is cut or padded to")] = 1.0


class ModalityPart(Entry):
    """One entry of ``modalities``."""

    kind: ModalityKind
    shape: Shape
    vocabulary: Annotated[int, Field(ge=0, description="number of token ids (kind tokens)")] = 0

    @model_validator(mode="after")
    def _agree(self) -> ModalityPart:
        if len(self.shape) != AXES[self.kind]:
            raise ValueError(f"kind {self.kind} needs a shape of {AXES[self.kind]} numbers, not {list(self.shape)}")
        if self.kind == "audio" and self.shape[0] != 1:
            raise ValueError(f"kind audio needs a shape [1, bins, frames], not {list(self.shape)}")
        if (self.kind == "tokens") != (self.vocabulary > 0):
            raise ValueError("'vocabulary' (above 0) belongs to kind tokens, and only to it")
        return self

    def modality(self, name: str) -> Modality:
        """Return the modality this entry describes."""
        return Modality(name, self.kind, self.shape, self.vocabulary)


class TaskPart(Entry):
    """One entry of ``tasks``."""

    kind: TaskKind
    classes: Annotated[int | None, Field(ge=2, description="number of classes; cells hold 0, 1, ...")] = None
    labels: Annotated[tuple[str, ...] | None, Field(description="names of the classes; cells hold a name")] = None
    shape: Shape = ()

    @model_validator(mode="after")
    def _agree(self) -> TaskPart:
        if (self.kind == "classification") != (self.classes is not None or self.labels is not None):
            raise ValueError("a classification task, and only that, needs 'classes' (a number) or 'labels' (names)")
        if self.classes is not None and self.labels is not None:
            raise ValueError("give either 'classes' or 'labels', not both")
        if self.labels is not None and (len(self.labels) < 2 or len(set(self.labels)) < len(self.labels)):
            raise ValueError(f"'labels' must be two or more different names, not {list(self.labels)}")
        axes = {"classification": (0,), "regression": (0, 1), "generation": (3,)}[self.kind]
        if len(self.shape) not in axes:
            raise ValueError(f"a {self.kind} task cannot have the shape {list(self.shape)}")
        return self

    def task(self, name: str) -> Task:
        """Return the task this entry describes."""
        labels = self.labels or ()
        form: Form = "audio" if "seconds" in self.model_fields_set else "image"  # only sound has a length in seconds
        return Task(name, self.kind, self.shape, self.classes or len(labels), labels, form)


class Description(Part):
    """The whole of ``dataset.yaml``."""

    name: str | None = None
    modalities: Annotated[dict[str, ModalityPart], Field(min_length=1)]
    tasks: Annotated[dict[str, TaskPart], Field(min_length=1)]
    fields: Annotated[tuple[str, ...] | None, Field(description="further columns; default: every other column")] = None
    unit: Annotated[str | None, Field(description="field whose groups a split must not tear apart")] = None

    @property
    def entries(self) -> dict[str, Entry]:
        """Modalities and tasks together."""
        return {**self.modalities, **self.tasks}

    @model_validator(mode="after")
    def _names(self) -> Description:
        names = [*self.modalities, *self.tasks, *(self.fields or ())]
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        if twice:
            raise ValueError(f"a name may be used once only; used twice: {', '.join(twice)}")
        for name in names:
            check_name(name)
        return self


def check_name(name: str) -> None:
    """Raise ValueError for a name that a modality, task or field cannot have."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot be a name: use letters, digits, '_' and '-', beginning with a letter")
    if name == SPLIT:
        raise ValueError(f"{SPLIT!r} cannot be a name: it is the column that divides training from test samples")


def read_description(path: Path) -> Description:
    """Read and check ``dataset.yaml``. Raises UserError naming the file and the entry at fault."""
    if not path.exists():
        raise UserError(f"{path}: no such file; a folder of samples needs dataset.yaml and samples.csv")
    try:
        return Description.model_validate(strict_yaml.read(path))
    except ValidationError as error:
        raise UserError(explain(error, Description, str(path))) from None
