"""Losses on masks. Probabilities come from soft aggregation: [B, K+1, H, W], background first."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def bootstrapped_cross_entropy(
    probabilities: Tensor, labels: Tensor, hard: float, weights: Tensor | None = None
) -> Tensor:
    """Mean weighted cross-entropy of the hardest share ``hard`` (0…1) of the pixels of each clip.

    Parameters: probabilities [B, K+1, H, W] in 0…1, labels [B, H, W] int64 in 0…K, weights
    [B, H, W], all 1 if left out. Returns a scalar, in nats. Source: Wu, Shen, van den Hengel,
    "Bridging category-level and instance-level semantic image segmentation", 2016; also STCN's
    training loss.
    """
    pixel = F.nll_loss(probabilities.clamp_min(1e-6).log(), labels, reduction="none")
    pixel = (pixel if weights is None else pixel * weights).flatten(1)
    return pixel.topk(max(1, int(hard * pixel.shape[1])), dim=1).values.mean()


def dice(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Soft dice loss, 1 − (2·Σpy + 1) / (Σp + Σy + 1), mean over clips and objects.

    Same arguments as :func:`bootstrapped_cross_entropy`; the background does not count. The added
    one makes an absent object that is predicted absent cost nothing.
    """
    objects = probabilities.shape[1] - 1
    y = F.one_hot(labels, objects + 1).permute(0, 3, 1, 2)[:, 1:].float().flatten(2)
    p = probabilities[:, 1:].flatten(2)
    overlap = (p * y).sum(-1)
    return (1 - (2 * overlap + 1) / (p.sum(-1) + y.sum(-1) + 1)).mean()


@torch.no_grad()
def mean_iou(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Mean intersection over union (J) of the objects; an absent one found absent counts 1."""
    best = probabilities.amax(1)  # much faster on a CPU than argmax
    scores = []
    for k in range(1, probabilities.shape[1]):
        p, y = probabilities[:, k] == best, labels == k
        both, either = (p & y).flatten(1).sum(1), (p | y).flatten(1).sum(1)
        scores.append((both + (either == 0)) / either.clamp_min(1))
    return torch.stack(scores).mean()
