"""Losses that keep the latents of different knowledge types apart, for mixtures of experts.

A reconstruction: the slides of DisentAFL (Chen and Zhang, AAAI 2024) say that explicit disentanglement losses exist and
give no formula. Orthogonality of all pairs of samples is that of a third party's re-implementation (Lee et al., "TAP",
arXiv 2509.26524); that it runs over all path latents of a client is our choice, as are the two other losses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from polyfed.data.samples import Batch
from polyfed.method.protocol import MOST_NAMED, Groups, Model
from polyfed.model.architecture import latent_modality, latent_type
from polyfed.model.losses import Logged, Share, total_loss
from polyfed.model.masks import keep, masked_mean

Variant = Literal["orth_all_pairs", "orth_paired", "hsic"]

EXTRA = "disentanglement"
"""The group of extra tensors that holds the weight of the loss."""

BETA = "beta"

SMALLEST = 1e-20
"""Squared norm below which a latent counts as zero."""

Places = tuple[list[int], list[int]]
Loss = Callable[[Tensor, Tensor, Places], tuple[Tensor, Tensor]]
"""Of latents (n, batch, width), the rows of them that count (n, batch) and pairs: their losses, and which count."""


@dataclass(frozen=True)
class Disentangled:
    """The supervised loss plus beta times the mean disentanglement loss of all pairs of latents of different types.

    ``extra["disentanglement"]["beta"]`` () is the weight. Latents of one type, those of two modalities, are not pushed
    apart. A row counts if its modality is present and one of its tasks is labelled. Logged besides: the loss and, by
    path, the mean Euclidean norm of the latents.
    """

    variant: Variant = "orth_all_pairs"

    def __call__(self, model: Model, batch: Batch, extra: Groups) -> tuple[Tensor, Logged]:
        """Return the loss () and its parts."""
        outputs = model(batch)
        loss, logged = total_loss(model.tasks, outputs, batch)
        rows = counted_rows(batch, outputs.latents)
        if len(rows) < 2:
            return loss, logged
        entangled = disentanglement(outputs.latents, rows, self.variant)
        numbers = {"disentanglement": entangled.detach(), **norms(outputs.latents, rows)}
        return loss + extra[EXTRA][BETA] * entangled, {**logged, **numbers}


def counted_rows(batch: Batch, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return which rows (batch,) of each latent count; none are where the batch holds no task."""
    if not batch.labelled:
        return {}
    labelled = reduce(torch.logical_or, batch.labelled.values())
    return {key: batch.present[latent_modality(key)] & labelled for key in latents}


def disentanglement(latents: Mapping[str, Tensor], rows: Mapping[str, Tensor], variant: Variant) -> Tensor:
    """Mean loss () over the pairs of latents (batch, width) whose types differ and that both have rows which count."""
    pairs = pairs_of(list(latents))
    if not pairs[0]:
        return next(iter(latents.values())).flatten()[:0].sum()
    values, counted = LOSSES[variant](torch.stack(list(latents.values())), torch.stack(list(rows.values())), pairs)
    return masked_mean(values, counted)


def pairs_of(keys: Sequence[str]) -> Places:
    """Return the places of all unordered pairs of latents whose types differ."""
    found = [
        (one, other)
        for one, other in combinations(range(len(keys)), 2)
        if latent_type(keys[one]) != latent_type(keys[other])
    ]
    return [one for one, _ in found], [other for _, other in found]


def norms(latents: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> Logged:
    """Return the mean norm of the latents of each path, of the first paths by name."""
    found: Logged = {}
    for key in sorted(latents)[:MOST_NAMED]:
        lengths = torch.linalg.vector_norm(latents[key].detach(), dim=-1)
        found[f"norm.{key.replace('|', '.')}"] = Share(keep(lengths, rows[key]).sum(), rows[key].sum())
    return found


# ---------------------------------------------------------------------------------------------- losses


def normalised(latents: Tensor, rows: Tensor) -> Tensor:
    """Scale rows (..., width) to length 1; what does not count is zero, and so is its gradient."""
    held = keep(latents, rows)
    return held * held.square().sum(-1, keepdim=True).clamp(min=SMALLEST).rsqrt()


def orthogonality(latents: Tensor, rows: Tensor, pairs: Places) -> tuple[Tensor, Tensor]:
    """Mean squared cosine of all rows s of the one with all rows s' of the other.

    Computed as trace(C C'), C = mean over s of u_s u_sᵀ with u of length 1, which costs less than all pairs of rows.
    """
    unit, counts = normalised(latents, rows), rows.sum(1)
    spread = (unit.transpose(1, 2) @ unit / counts.clamp(min=1).view(-1, 1, 1)).flatten(1)
    products = spread @ spread.t()
    one, other = pairs
    return products[one, other], (counts[one] > 0) & (counts[other] > 0)


def paired_orthogonality(latents: Tensor, rows: Tensor, pairs: Places) -> tuple[Tensor, Tensor]:
    """Mean squared cosine of the two latents of a sample, over the samples that have both."""
    one, other = pairs
    unit, both = normalised(latents, rows), rows[one] & rows[other]
    squares = (unit[one] * unit[other]).sum(-1).square()
    counts = both.sum(1)
    return keep(squares, both).sum(1) / counts.clamp(min=1), counts > 0


def dependence(latents: Tensor, rows: Tensor, pairs: Places) -> tuple[Tensor, Tensor]:
    """Biased HSIC, tr(K H K' H) / (n − 1)², with Gaussian kernels, over the n ≥ 2 samples that have both."""
    one, other = pairs
    kernels, both = gaussian_kernels(keep(latents, rows), rows), rows[one] & rows[other]
    mask, counts = both.unsqueeze(1) & both.unsqueeze(2), both.sum(1)
    first, second = keep(kernels[one], mask), keep(kernels[other], mask)
    size = counts.clamp(min=1).view(-1, 1, 1)
    means = first.sum(2, keepdim=True) / size
    centred = first - means - means.transpose(1, 2) + means.sum(1, keepdim=True) / size
    return (centred * second).sum((1, 2)) / (counts - 1).clamp(min=1).square(), counts > 1


def gaussian_kernels(latents: Tensor, rows: Tensor) -> Tensor:
    """exp(−‖x − y‖² / (2 σ²)): (n, batch, width) -> (n, batch, batch); σ is the median distance, not differentiated."""
    largest = latents.detach().square().sum(-1).amax(1, keepdim=True)
    # Distances are those of the latents from their mean, whose rounding errors are smaller.
    means = keep(latents, rows).sum(1, keepdim=True) / rows.sum(1).clamp(min=1).view(-1, 1, 1)
    around = keep(latents - means, rows)
    squares, products = around.square().sum(-1), around @ around.transpose(1, 2)
    distances = (squares.unsqueeze(2) + squares.unsqueeze(1) - 2 * products).clamp(min=0)
    batch = rows.shape[1]
    apart = torch.ones(batch, batch, dtype=torch.bool, device=rows.device).triu(1)
    pairs = (rows.unsqueeze(1) & rows.unsqueeze(2) & apart).flatten(1)
    highest = distances.new_full((), torch.finfo(distances.dtype).max)
    ordered = torch.where(pairs, distances.detach().flatten(1), highest).sort(1).values
    median = ordered.gather(1, ((pairs.sum(1) - 1).clamp(min=0) // 2).unsqueeze(1))
    least = 1e-6 * largest + SMALLEST  # where all latents are alike, rounding errors would be all there is
    return torch.exp(-distances / (2 * torch.maximum(median, least)).unsqueeze(2))


LOSSES: Mapping[Variant, Loss] = {
    "orth_all_pairs": orthogonality,
    "orth_paired": paired_orthogonality,
    "hsic": dependence,
}
