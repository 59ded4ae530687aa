"""Named builders whose options are their keyword-only parameters.

A dataset, partition, encoder or method is a plain function (or class)::

    def fedprox(context: Context, *, mu: Annotated[float, Field(ge=0)] = 0.01) -> Averaging: ...

    METHODS.add("fedprox", fedprox)

What comes before the ``*`` is supplied by polyfed; what comes after it are the options a user may set. Their
annotations and defaults make a pydantic model, so a wrong key or type fails when the experiment is loaded.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, ParamSpec, TypeVar, get_args, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, create_model, model_validator
from pydantic.errors import PydanticUserError

from polyfed.errors import UserError, unknown
from polyfed.explain import explain

P = ParamSpec("P")
T = TypeVar("T")


def _absolute(path: str) -> str:
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError as error:
        raise ValueError(f"{path!r}: {error}") from error


# An option that names a file or folder: made absolute, so that a resolved experiment runs from anywhere.
Located = Annotated[str, AfterValidator(_absolute)]


class Options(BaseModel):
    """Base of every options model: unknown keys, infinities and NaN are errors, and true is not the number 1."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _no_numbers(cls, values: Any) -> Any:
        """Turn true and false into texts where a number belongs, so that they are refused there."""
        if not isinstance(values, Mapping):
            return values
        return {key: str(value).lower() if cls._is_no_number(key, value) else value for key, value in values.items()}

    @classmethod
    def _is_no_number(cls, key: object, value: object) -> bool:
        if not isinstance(value, bool) or key not in cls.model_fields:
            return False
        wanted = _types_in(cls.model_fields[str(key)].annotation)
        return bool not in wanted and (int in wanted or float in wanted)


class Registry(Generic[T]):
    """Name -> builder, for one kind of thing (``kind`` is what error messages call it)."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._builders: dict[str, Callable[..., T]] = {}
        self._options: dict[str, type[Options]] = {}

    def add(self, name: str, builder: Callable[..., T]) -> None:
        """Register a builder; a name already taken or not lower-case-with-hyphens is refused."""
        if not re.fullmatch(r"[a-z0-9]+(?:[-_][a-z0-9]+)*", name):
            raise UserError(f"{self.kind} name {name!r}: use lower-case letters, digits, '-' and '_'")
        if name in self._builders:
            raise UserError(f"{self.kind} {name!r} is registered already; choose another name")
        self._builders[name] = builder

    def names(self) -> tuple[str, ...]:
        """Return the registered names in order of registration."""
        return tuple(self._builders)

    def __contains__(self, name: object) -> bool:
        return name in self._builders

    def builder(self, name: str) -> Callable[..., T]:
        """Return the builder of that name, or raise an error that lists the choices."""
        if name not in self._builders:
            raise unknown(self.kind, name, self._builders)
        return self._builders[name]

    def summary(self, name: str) -> str:
        """Return the first line of the builder's docstring."""
        return (inspect.getdoc(self.builder(name)) or "").split("\n", 1)[0]

    def options(self, name: str) -> type[Options]:
        """Return the options model of a builder; its field ``name`` holds the registered name."""
        builder = self.builder(name)
        if name not in self._options:
            self._options[name] = options_model(self.kind, name, builder)
        return self._options[name]

    def build(self, name: str, options: Mapping[str, object], *context: object, place: str = "") -> T:
        """Call the builder with the house's context and the (checked) options.

        Raises UserError naming ``place`` (where in the experiment), the option, its value and the choices.
        """
        if name not in self:
            raise unknown(self.kind, name, self._builders, place=place)
        model = self.options(name)
        try:
            checked = model.model_validate({"name": name, **options})
        except ValidationError as error:
            raise UserError(explain(error, model, f"{place}: {self.kind} {name!r}".removeprefix(": "))) from None
        chosen = {key: getattr(checked, key) for key in type(checked).model_fields if key != "name"}
        return self.builder(name)(*context, **chosen)


def options_model(kind: str, name: str, builder: Callable[..., Any]) -> type[Options]:
    """Make the options model of a builder from its keyword-only parameters."""
    title = re.sub(r"\W", "_", f"{kind} {name}")
    fields: dict[str, Any] = {"name": (Literal[name], name)}
    try:
        fields |= option_fields(builder)
        return create_model(title, __base__=Options, __doc__=inspect.getdoc(builder), **fields)
    except (LookupError, NameError, TypeError, PydanticUserError) as error:
        message = str(error).split("\n", 1)[0]
        raise UserError(f"{kind} {name!r}: its options cannot be read: {message}") from error


def option_fields(builder: Callable[..., Any]) -> dict[str, Any]:
    """Return type and default of every keyword-only parameter; LookupError for one that cannot be an option."""
    hints = get_type_hints(builder.__init__ if inspect.isclass(builder) else builder, include_extras=True)
    fields = {}
    for parameter in inspect.signature(builder).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            if parameter.name not in hints:
                raise LookupError(f"option {parameter.name!r} has no type annotation")
            if parameter.name == "name":
                raise LookupError("an option cannot be called 'name', the key that names the builder")
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            fields[parameter.name] = (hints[parameter.name], default)
    return fields


def _types_in(hint: Any) -> list[Any]:
    """Return a type and all that it is made of."""
    return [hint, *(inner for part in get_args(hint) for inner in _types_in(part))]


@dataclass(frozen=True)
class Chosen:
    """A registered name and the options the user gave for it."""

    name: str
    options: Mapping[str, object] = field(default_factory=dict)
