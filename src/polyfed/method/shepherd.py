"""Shepherd, or FedIT: only the text adapters of language models are averaged."""

from __future__ import annotations

from polyfed.method.averaging import Averaging, Context
from polyfed.method.text_sharing import ConnectorScope, check_adapters, shared, trained
from polyfed.method.training import Descend
from polyfed.model.adapter_names import LORA


def shepherd(context: Context, *, connector_scope: ConnectorScope = "local") -> Averaging:
    """Shepherd (Zhang et al., ICASSP 2024): clients' text adapters averaged by samples, A and B each by itself.

    For the model ``llava``. The original has no pictures; that the connector is trained and stays with the client is
    our choice. With ``aggregate`` it is FedAvg.
    """
    check_adapters(context, "shepherd", "one")
    local = Descend(trains=trained(connector_scope, LORA))
    return Averaging(context, local=local, share=shared(connector_scope))
