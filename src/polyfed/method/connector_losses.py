"""Losses on what connectors make of images: that the two parts differ, that the router is even and its logits small.

Source: Xiong et al., "Pilot", AAAI 2025, equations 3 and 7 to 9; the difference loss is that of Bousmalis et al.,
"Domain Separation Networks", NeurIPS 2016, the router's losses are those of ST-MoE (Zoph et al., 2022). Neither
batching nor normalisation of the difference loss is stated: ``fro`` and ``raw`` are our readings, ``dsn`` is the recipe
of the code of Domain Separation Networks.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

DifferenceNorm = Literal["fro", "raw", "dsn"]
LEAST = 1e-12


def difference(task: Tensor, client: Tensor, norm: DifferenceNorm) -> Tensor:
    """Return the mean over images () of ‖Xᵗᵀ Xˢ‖²_F; both (images, tokens, width).

    ``fro`` divides it by ‖Xᵗ‖²_F ‖Xˢ‖²_F, so that it lies in [0, 1]; ``raw`` leaves it; ``dsn`` centres every channel
    over the tokens, scales every token to length 1 and takes the mean of the squared entries. Zero if and only if (not
    ``dsn``) every channel of the one is orthogonal to every channel of the other, across tokens. Zero without images.
    """
    if not len(task):
        return (task.sum() + client.sum()) * 0
    with torch.autocast(task.device.type, enabled=False):
        one, other = task.float(), client.float()
        if norm == "dsn":
            one, other = (unit_tokens(part) for part in (one, other))
            return (squared_product(one, other) / (one.shape[-1] * other.shape[-1])).mean()
        values = squared_product(one, other)
        if norm == "fro":
            values = values / (one.square().sum((1, 2)) * other.square().sum((1, 2)) + LEAST)
        mean: Tensor = values.mean()
        return mean


def unit_tokens(part: Tensor) -> Tensor:
    """Centre channels over the tokens, and scale tokens to length 1."""
    centred = part - part.mean(1, keepdim=True)
    lengths: Tensor = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    return centred / lengths.clamp(min=LEAST)


def squared_product(one: Tensor, other: Tensor) -> Tensor:
    """Return ‖XᵀY‖²_F of each image (images,): by the tokens' products, where there are fewer tokens than channels."""
    if one.shape[1] < one.shape[2]:
        products = (one @ one.transpose(1, 2)) * (other @ other.transpose(1, 2))
        summed: Tensor = products.sum((1, 2))
        return summed.clamp(min=0)  # rounding can bring it just below
    return (one.transpose(1, 2) @ other).square().sum((1, 2))


def load_balance(logits: Tensor) -> Tensor:
    """Return T Σ_i D_i R_i (): D the share of tokens whose largest logit is i, R the mean probability of i.

    ``logits`` (images, tokens, tasks), all tokens together. 1 if R is even. No gradient goes through D. Zero without
    tokens.
    """
    flat = logits.float().flatten(0, 1)
    if not len(flat):
        return flat.sum()
    tasks = flat.shape[-1]
    counted = torch.zeros_like(flat).scatter_(1, flat.argmax(-1, keepdim=True), 1.0).mean(0)
    return tasks * (counted * torch.softmax(flat, -1).mean(0)).sum()


def small_logits(logits: Tensor) -> Tensor:
    """Return the mean over tokens () of (log Σ_i exp g_i)²; ``logits`` as in ``load_balance``."""
    flat = logits.float().flatten(0, 1)
    if not len(flat):
        return flat.sum()
    return torch.logsumexp(flat, -1).square().mean()
