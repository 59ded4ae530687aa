"""FedHGB: hierarchical gradient blending (Chen and Li, INFOCOM 2022), after the authors' slides.

Modality blending: every client weights the losses of its heads by G / O² (see ``blending``). Client blending: the
server weights the clients by the same rule. The measuring windows and safeguards are documented choices of ours.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from polyfed.errors import UserError
from polyfed.method.averaging import Averaging, Context
from polyfed.method.blending import Negative, Safeguards
from polyfed.method.classic import Fraction, MissingRule, NonNegative
from polyfed.method.client_blending import ByBlending
from polyfed.method.combine import Combine, mean_over_holders
from polyfed.method.head_blending import Blending, Window

Level = Literal["both", "modality", "client", "none"]


def fedhgb(  # noqa: PLR0913 - each is an option of the method
    context: Context,
    *,
    level: Annotated[
        Level, Field(description="what is blended: modality is M-GB, client is C-GB, none weights all heads equally")
    ] = "both",
    z_window: Annotated[Window, Field(description="between which checkpoints heads are judged")] = "last_local",
    z_sum: Annotated[Literal[1, 2], Field(description="what the heads' weights add up to")] = 1,
    z_mix: Annotated[Fraction, Field(description="share of equal weights mixed into the heads'")] = 0.1,
    p_mix: Annotated[Fraction, Field(description="share of FedAvg's weights mixed into the clients'")] = 0.0,
    floor_rel: Annotated[NonNegative, Field(description="least |O|, in medians of all |O|")] = 0.5,
    negative: Annotated[Negative, Field(description="what becomes of a head or client whose held-out loss rose")] = (
        "clip"
    ),
    p_loss: Annotated[Literal["blended", "fused"], Field(description="the loss by which clients are judged")] = (
        "blended"
    ),
    local_loss: Annotated[
        Literal["heads", "fused"], Field(description="what C-GB trains: all heads equally, or the fused head alone")
    ] = "heads",
    training_probe: Annotated[int, Field(ge=1, description="training samples on which heads are judged, at least")] = (
        256
    ),
    probe_epochs: Annotated[int, Field(ge=1, description="of z_window probe")] = 1,
    gradient_batches: Annotated[int, Field(ge=1, description="of z_window gradient")] = 8,
    merge: Annotated[bool, Field(description="start from a mix of the last local and the received model")] = False,
    missing: MissingRule = "renormalise",
) -> Averaging:
    """FedHGB (Chen and Li, INFOCOM 2022): heads and clients weighted by generalisation over overfitting, G / O².

    Held-out samples are the client's validation samples (``scenario.validation``). The printed formula, without
    safeguards, is ``floor_rel: 0, z_mix: 0, negative: allow``.
    """
    if local_loss == "fused" and level != "client":
        raise UserError(f"fedhgb: local_loss 'fused' goes with level 'client', not with {level!r}")
    rules = Safeguards(floor_rel, negative)
    local = Blending(
        modalities=level in ("both", "modality"),
        only_fused=local_loss == "fused",
        reports=level in ("both", "client"),
        report_loss=p_loss,
        window=z_window,
        weight_sum=float(z_sum),
        weight_mix=z_mix,
        safeguards=rules,
        training_probe=training_probe,
        probe_epochs=probe_epochs,
        gradient_batches=gradient_batches,
        merge=merge,
    )
    combine: Combine = ByBlending(rules, p_mix) if local.reports else mean_over_holders
    return Averaging(context, local=local, combine=combine, missing=missing)
