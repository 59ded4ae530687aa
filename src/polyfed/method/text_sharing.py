"""What methods for language models that share text adapters have in common: which parts are trained and sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field

from polyfed.errors import UserError
from polyfed.method.averaging import Context
from polyfed.model.adapter_names import CONNECTOR, LORA

ConnectorScope = Annotated[
    Literal["local", "frozen", "aggregate"],
    Field(description="the connector is trained and stays with the client, is not trained, or is averaged, too"),
]


def shared(scope: ConnectorScope) -> Callable[[str], bool]:
    """Return what tells which parameters travel: the shared text adapter, and the connector if it is averaged."""
    travelling = {LORA, CONNECTOR} if scope == "aggregate" else {LORA}
    return lambda parameter: parameter.split(".", 1)[0] in travelling


def trained(scope: ConnectorScope, *adapters: str) -> frozenset[str]:
    """Name the components that are trained: these adapters, and the connector unless it is frozen."""
    return frozenset(adapters if scope == "frozen" else (*adapters, CONNECTOR))


def check_adapters(context: Context, method: str, adapters: str, *needed: str) -> None:
    """Refuse a model that lacks one of the adapters. Raises UserError naming the option that has it."""
    if not {CONNECTOR, LORA, *needed} <= set(context.components((), tuple(context.tasks)[:1])):
        raise UserError(f"method {method}: needs the model 'llava' with adapters: {adapters}, or left open")
