"""The memory read in plain PyTorch: it defines the op, and every faster version is held to it.

Differentiable, exportable (no branch on data), and of any floating dtype, float64 included.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def memory_read_reference(query: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> Tensor:
    """Read, for each object, the values of its memory slots at the positions that match a query.

    The formula, its source and the arguments are those of ``kernels.memory_read.memory_read``.

    query [N, Ck], keys [S, N, Ck], values [S, K, N, Cv], slots [K, R] → [K, N, Cv].
    """
    objects, reads = slots.shape
    positions, key_dim = keys.shape[1], keys.shape[2]
    used = (slots >= 0)[:, :, None].expand(objects, reads, positions).flatten(1)  # [K, R·N]
    # −1 stands for another slot of the row, whose scores are masked: what lies in a slot that the
    # object does not read, NaN too, has no part in the result.
    safe = torch.where(slots < 0, slots.amax(1, keepdim=True), slots).clamp(min=0).long()
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
    return readout.masked_fill(~used.any(-1)[:, None, None], 0)
