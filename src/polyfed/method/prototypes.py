"""Class prototypes: means of features by class, and classification by the nearest of them.

Prototypes are (classes, width). A row of zeros means that the class is unknown: nobody has a sample of it. Unknown
classes are masked out, which is exact; a prototype at the origin would attract samples that are of no such class.
Everything but the sums can be mapped over clients by ``torch.func.vmap``.

Source: Fan et al., "Overcome Modal Bias in Multi-modal Federated Learning via Balanced Modality Selection", ECCV 2024.
"""

from __future__ import annotations

import torch
from torch import Tensor

AT_ZERO = 1e-6
"""Added to squared distances, so that the gradient of their root is finite at zero, and small where a difference is
nothing but rounding: a client's only sample of a class lies on the client's own prototype."""


def class_sums(features: Tensor, labels: Tensor, counted: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Sum up the features of each class; results of several batches add up.

    features (samples, width), labels (samples,) int64, counted (samples,) bool -> sums (classes, width) and counts
    (classes,), both float64. Samples that are not counted may hold anything.
    """
    shares = ((labels.unsqueeze(-1) == torch.arange(classes, device=labels.device)) & counted.unsqueeze(-1)).double()
    kept = torch.where(counted.unsqueeze(-1), features, 0).double()
    # A product of matrices, not index_add_: on a GPU that one adds in any order, and bits would differ between runs.
    return shares.t() @ kept, shares.sum(0)


def class_means(sums: Tensor, counts: Tensor) -> Tensor:
    """Divide sums (classes, width) by counts (classes,) -> prototypes (classes, width) float32.

    A class without a sample gets a row of zeros, which means that the class is unknown; so does one whose features are
    all zero.
    """
    return (sums / counts.clamp(min=1).unsqueeze(-1)).float()


def known(prototypes: Tensor) -> Tensor:
    """Tell which classes are known: prototypes (classes, width) -> (classes,) bool, rows that are not all zero."""
    return (prototypes != 0).any(-1)


def distances(features: Tensor, prototypes: Tensor) -> Tensor:
    """Return Euclidean distances, not squared: sqrt(‖z − c‖² + 1e-6).

    features (samples, width), prototypes (classes, width) -> (samples, classes), finite also for unknown classes. They
    are computed from the differences: the expanded square loses all digits where z is near c.
    """
    differences = features.unsqueeze(-2) - prototypes
    return (differences.square().sum(-1) + AT_ZERO).sqrt()


def log_probabilities(features: Tensor, prototypes: Tensor) -> Tensor:
    """Return log softmax over the known classes of minus the distances, (samples, classes).

    An unknown class gets −∞, with gradients that are finite everywhere. If no class is known, every class is equally
    likely (−log classes) and no gradient flows: without a prototype there is nothing to learn.
    """
    here = known(prototypes)
    otherwise = torch.where(here.any(-1, keepdim=True), -torch.inf, 0.0)
    return torch.log_softmax(torch.where(here, -distances(features, prototypes), otherwise), dim=-1)


def nearest(features: Tensor, prototypes: Tensor) -> Tensor:
    """Return the nearest known class of each sample, (samples,) int64; the lowest of equally near ones.

    −1 if no class is known.
    """
    here = known(prototypes)
    found = torch.where(here, distances(features, prototypes), torch.inf).argmin(-1)
    return torch.where(here.any(-1), found, -1)
