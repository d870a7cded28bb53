"""What a student learns from a teacher: its logits, and how its pixels' features relate.

Source of the relations: Miles, Yucel, Manganelli, Saà-Garriga, "MobileVOS", CVPR 2023, equations
1 to 3. N pixels have a correlation matrix C [N, N], the cosines between their features; C_s is the
student's, C_t the teacher's, Y [N, classes] the pixels' one-hot labels.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

TINY = 1e-12  # below any sum of squares that matters; keeps logarithms finite


def class_logits(logits: Tensor) -> Tensor:
    """Logits whose softmax over classes is the soft aggregation of K independent masks.

    logits [B, K, ...] of the objects → [B, K+1, ...], background first. Aggregation normalises odds
    (``engine.model.aggregate``), and the logarithm of an object's odds is its logit; that of the
    background, whose probability is Π(1 − p), is log Π(1 − p) − log(1 − Π(1 − p)). As there, the
    background's probability is clamped to 1e-7…1 − 1e-7; the logits are not.
    """
    nothing = F.logsigmoid(-logits).sum(1, keepdim=True)  # log Π(1 − p)
    nothing = nothing.clamp(float(np.log(1e-7)), float(np.log1p(-1e-7)))
    return torch.cat([nothing - torch.log(-torch.expm1(nothing)), logits], 1)


def logit_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(teacher ‖ student) of the classes at each pixel, mean over pixels, in nats.

    student, teacher [B, K, h, w]: the objects' logits. Both are merged (:func:`class_logits`) and
    softened by a softmax of z / T; T² keeps the gradient's size for large T. Source: Hinton,
    Vinyals, Dean, "Distilling the knowledge in a neural network", 2015. Not negative; 0 if equal.
    """
    s = (class_logits(student) / temperature).log_softmax(1)
    t = (class_logits(teacher) / temperature).log_softmax(1)
    return (t.exp() * (t - s)).sum(1).mean() * temperature**2


def correlation(features: Tensor) -> Tensor:
    """Cosines between the rows of features [N, C] → [N, N]; a zero row correlates with none."""
    unit = F.normalize(features, dim=1)
    return unit @ unit.T


def blend(teacher: Tensor | None, labels: Tensor, omega: float) -> Tensor:
    """The target C_ty = ω · C_t + (1 − ω) · Y·Yᵀ (eq. 2) [N, N].

    teacher: C_t [N, N], not looked at if ω = 0; labels [N]. Y·Yᵀ is 1 where two pixels have the
    same label and 0 elsewhere. ω = 1 is distillation alone, ω = 0 supervision alone.
    """
    same = labels[:, None] == labels[None, :]
    if teacher is None or omega == 0:
        return same.to(torch.float32 if teacher is None else teacher.dtype)
    return omega * teacher + (1 - omega) * same.to(teacher.dtype)


def representation(student: Tensor, target: Tensor) -> Tensor:
    """L_repr = (1/|C_s|) · (log2‖C_s‖² − log2‖C_s ⊙ C_ty‖²) (eq. 1), in bits; a scalar.

    student: C_s [N, N], target: C_ty [N, N]; ‖·‖ is Frobenius' norm. |C_s| is taken to be N, the
    number of pixels. The diagonal counts in both norms; it is 1 in every correlation matrix and
    depends on no weight, but it bounds ‖C_s ⊙ C_ty‖² from below by N, hence the loss by log2(N)/N.

    Not negative where no |C_ty| exceeds 1, and 0 where C_s vanishes wherever |C_ty| < 1. It is no
    distance: it is not least at C_s = C_t, but where the student correlates no pixels but those
    whose correlation in C_ty is ±1.
    """
    whole, common = student.square().sum(), (student * target).square().sum()
    return (whole.clamp_min(TINY).log2() - common.clamp_min(TINY).log2()) / student.shape[0]


def contrastive(similarity: Tensor, labels: Tensor, diagonal: bool = False) -> Tensor:
    """Supervised contrastive loss (eq. 3), mean over the pixels i, in bits:

        −(1/N) Σ_i log2( Σ_j s_ij [y_i = y_j] / Σ_j s_ij )

    similarity [N, N], not negative, such as C² or exp(C / τ); labels [N]. Unless ``diagonal``, the
    sums leave out j = i, and pixels that are alone with their label do not count.

    :func:`representation` at ω = 0 has one ratio of the sums over all i and j where this has a
    ratio a row. The two agree, (1/N) · contrastive(C², y, diagonal=True) = L_repr, if each pixel's
    ratio is the same; otherwise, where the rows Σ_j s_ij are equal, the logarithm's concavity
    makes the contrastive loss the larger: it asks of every pixel what L_repr asks of the whole.
    """
    same = (labels[:, None] == labels[None, :]).to(similarity.dtype)
    if not diagonal:
        off = 1 - torch.eye(len(labels), dtype=similarity.dtype, device=similarity.device)
        similarity, same = similarity * off, same * off
    counted = same.any(1)
    ratio = (similarity * same).sum(1).clamp_min(TINY) / similarity.sum(1).clamp_min(TINY)
    return -ratio[counted].log2().sum() / counted.sum().clamp_min(1)


def near_boundary(masks: Tensor, band: int) -> Tensor:
    """The pixels of masks [B, h, w] (0 or 1) with a pixel of the other kind no further than
    ``band`` rows and columns away; bool [B, h, w]. A band of 0 takes all pixels.
    """
    if band == 0:
        return torch.ones_like(masks, dtype=torch.bool)
    x, size = masks.float()[:, None], 2 * band + 1
    highest = F.max_pool2d(x, size, stride=1, padding=band)
    lowest = -F.max_pool2d(-x, size, stride=1, padding=band)
    return (highest != lowest)[:, 0]


def pick(inside: Tensor, points: int, rng: np.random.Generator) -> Tensor:
    """Indices of at most ``points`` of the pixels of inside (bool [P]), without repetition."""
    at: NDArray[np.int64] = np.flatnonzero(inside.cpu().numpy())
    if len(at) > points:
        at = np.sort(rng.choice(at, points, replace=False))
    return torch.from_numpy(at).to(inside.device)
