"""The mask head in plain PyTorch: it defines the op, and the kernel is held to it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mask_head_reference(
    probabilities: Tensor, ids: Tensor, size: tuple[int, int], crop: tuple[int, int]
) -> Tensor:
    """Probabilities at the network's resolution → object ids at the source's.

    1. crop the padding at the right and the bottom;
    2. plain bilinear resize, half-pixel centres, never antialiased, in at least float32;
    3. argmax over the channels; of equal ones the first wins (background before objects);
    4. look the channel up in ``ids``.

    Arguments as for ``kernels.mask_head.mask_head``, but ``crop`` must be given.
    """
    work = torch.promote_types(probabilities.dtype, torch.float32)
    image = probabilities[None, :, : crop[0], : crop[1]].to(work)
    image = F.interpolate(image, size, mode="bilinear", align_corners=False)[0]
    # torch.argmax promises nothing about ties; the first channel that reaches the maximum does.
    channels = probabilities.shape[0]
    order = torch.arange(channels, device=image.device)[:, None, None]
    best = torch.where(image == image.amax(0), order, channels).amin(0)
    # A pixel with a NaN equals no maximum: it becomes background.
    return ids[best % channels]
