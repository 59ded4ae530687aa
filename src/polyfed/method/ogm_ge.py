"""OGM-GE: the gradient of a modality that is ahead is damped, and noise is added to gradients (Peng et al., CVPR 2022).

Source: "Balanced Multimodal Learning via On-the-fly Gradient Modulation" and the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from polyfed.data.samples import Batch
from polyfed.method.averaging import Averaging, Context
from polyfed.method.classic import MissingRule, NonNegative
from polyfed.method.modulation import Modulated, check_classification, of_the_others, scores_of
from polyfed.method.protocol import Adaptive, Groups, Model
from polyfed.model.architecture import Tensors
from polyfed.model.losses import Logged, total_loss

SMALLEST = 1e-12
"""The least that a score counts as: others are divided by it."""

LEAST_NOISE = 1e-8

Weights = Literal["auto", "convolutions", "all"]


@dataclass(frozen=True)
class GradientModulation(Adaptive):
    """The supervised loss; gradients of the encoders are multiplied by k_m, and noise is added to them.

    s_m is the mean probability that modality m alone gives the samples' own classes: what the model predicts of a batch
    without the other modalities. ratio_m = s_m / mean of the others' s; k_m = 1 − tanh(alpha · ratio_m) where
    ratio_m > 1, else 1. A batch in which a modality has no labelled sample is not modulated.
    The gradient g of a weight becomes k_m g + Normal(0, std(g) + 1e-8), with ``noise``, for every modality in use.

    With concatenation a modality alone is W_m z_m + b_m before the activation and the head. The authors, whose network
    has one bias for both modalities, give each of them half: a matter of how the bias is written.
    """

    alpha: float = 1.0
    noise: bool = True
    weights: Weights = "auto"

    def loss(self, model: Model, batch: Batch, extra: Groups, memory: Tensors) -> tuple[Tensor, Logged, Tensors]:
        """Return the loss (), its parts and each k_m, and k_m () by modality."""
        outputs = model(batch)
        loss, logged = total_loss(model.tasks, outputs, batch)
        names = sorted(outputs.features)
        if len(names) < 2:
            return loss, logged, {}
        with torch.no_grad():
            alone = {name: model(only(batch, name)).predictions for name in names}
            factors = self.factors(*scores_of(model.tasks, batch, alone, lambda right: right))
        by_modality = dict(zip(names, factors.unbind(), strict=True))
        return loss, {**logged, **{f"modulation.{name}": value for name, value in by_modality.items()}}, by_modality

    def factors(self, scores: Tensor, compared: Tensor) -> Tensor:
        """Return k (modalities,) from the scores (modalities,); ones where they cannot be compared."""
        ratios = scores / of_the_others(scores).clamp(min=SMALLEST)
        return torch.where(compared & (ratios > 1), 1 - torch.tanh(self.alpha * ratios), 1.0)

    def gradients(self, gradients: Tensors, memory: Tensors, generator: torch.Generator) -> Tensors:
        """Return the gradients to use; the memory holds k_m by modality."""
        changed = dict(gradients)
        for modality, factor in memory.items():
            for name in self.modulated(modality, gradients):
                changed[name] = gradients[name] * factor
                if self.noise:
                    changed[name] = changed[name] + noise_like(gradients[name], generator)
        return changed

    def modulated(self, modality: str, gradients: Tensors) -> list[str]:
        """Name the weights of a modality's encoder that are modulated."""
        own = [name for name in gradients if name.startswith(f"encoder.{modality}.")]
        convolutions = [name for name in own if gradients[name].dim() > 2]
        if self.weights == "convolutions" or (self.weights == "auto" and convolutions):
            return convolutions
        return [name for name in own if gradients[name].dim() > 1]


def only(batch: Batch, modality: str) -> Batch:
    """Return a batch without the other modalities."""
    inputs, present = {modality: batch.inputs[modality]}, {modality: batch.present[modality]}
    return batch._replace(inputs=inputs, present=present)


def noise_like(gradient: Tensor, generator: torch.Generator) -> Tensor:
    """Draw normal noise of the shape of a gradient, with its standard deviation and a little more."""
    deviation = gradient.std() if gradient.numel() > 1 else gradient.new_zeros(())
    drawn = torch.randn(gradient.shape, generator=generator, device=generator.device)
    return drawn.to(gradient) * (deviation + LEAST_NOISE)


def ogm_ge(
    context: Context,
    *,
    alpha: NonNegative = 1.0,
    noise: Annotated[bool, Field(description="add noise to the gradients (GE); false: OGM")] = True,
    weights: Annotated[
        Weights,
        Field(
            description="weights of the encoders that are modulated: convolutions, all of two or more dimensions, or "
            "auto: convolutions, but all in an encoder that has none"
        ),
    ] = "auto",
    rounds: Annotated[int, Field(ge=0, description="rounds in which it is used, from the first")] = 71,
    missing: MissingRule = "renormalise",
) -> Averaging:
    """OGM-GE (Peng et al., CVPR 2022): clients damp the gradients of the modality that is ahead, and add noise.

    Clients that train with one modality do so as in FedAvg. The authors modulate convolutions only; a model without any
    would then train as in FedAvg, hence ``weights: auto``. It needs encoders named ``encoder.<modality>``.
    """
    check_classification(context.tasks, "ogm-ge")
    return Averaging(context, local=Modulated(GradientModulation(alpha, noise, weights), rounds), missing=missing)
