"""The memory read in plain PyTorch: it defines the op, and every faster version is held to it.

Differentiable, exportable (no branch on data), and of any floating dtype, float64 included.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def memory_read_reference(query: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> Tensor:
    """Read, for each object, the values of its memory slots at the positions that match a query.

    For object ``k``, with m running over the R·N positions of the slots in ``slots[k]``:

        S[q, m]    = (2·m·q − |m|²) / √Ck          negative squared L2 distance; |q|² cancels
        readout[q] = Σ_m softmax_m(S[q, m]) · value[m]

    Source: Cheng, Tai, Tang, "Rethinking Space-Time Networks with Improved Memory Coverage for
    Efficient Video Object Segmentation" (STCN), NeurIPS 2021, section 3.2.

    Parameters
    ----------
    query:  [N, Ck] floating; keys of the frame to segment, one per position of the 1/16 grid.
    keys:   [S, N, Ck], same dtype; the memory's slots, shared by all objects.
    values: [S, K, N, Cv], same dtype; each object's value in each slot.
    slots:  [K, R] integer in −1…S−1; the slots that each object reads, −1 for none.

    Returns
    -------
    [K, N, Cv], the readout; zeros for an object all of whose slots are −1.
    """
    objects, reads = slots.shape
    positions, key_dim = keys.shape[1], keys.shape[2]
    used = (slots >= 0)[:, :, None].expand(objects, reads, positions).flatten(1)  # [K, R·N]
    safe = slots.clamp(min=0).long()
    memory = keys[safe].flatten(1, 2)  # [K, R·N, Ck]
    owner = torch.arange(objects, device=slots.device)[:, None]
    value = values[safe, owner].flatten(1, 2)  # [K, R·N, Cv]

    # The scale is folded into the small operands: the [N, R·N] affinity is written once.
    scale = 1.0 / math.sqrt(key_dim)
    bias = -scale * memory.square().sum(-1)  # [K, R·N]
    bias = bias.masked_fill(~used, torch.finfo(bias.dtype).min)
    scores = torch.baddbmm(
        bias[:, None, :], (query * (2.0 * scale)).expand(objects, -1, -1), memory.transpose(1, 2)
    )
    readout = torch.bmm(scores.softmax(-1), value)
    return readout * used.any(-1)[:, None, None]
