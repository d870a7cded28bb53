"""Preprocessing in plain PyTorch: it defines the op, and the kernel is held to it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def preprocess_reference(
    frame: Tensor, height: int, width: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Resize a frame to the network's resolution, normalise and pad it.

    1. bilinear, half-pixel centres, antialiased (a triangle filter, widened by the scale when
       downscaling), in floating point, to [height, width];
    2. x / 127.5 − 1;
    3. edges replicated at the right and the bottom up to the next multiple of 16.

    Arguments as for ``kernels.preprocess.preprocess``; float64 computes in float64, all others in
    float32.
    """
    work = torch.float64 if dtype == torch.float64 else torch.float32
    image = frame.permute(2, 0, 1)[None].to(work)
    image = F.interpolate(
        image, (height, width), mode="bilinear", align_corners=False, antialias=True
    )
    image = image / 127.5 - 1.0
    image = F.pad(image, (0, -width % 16, 0, -height % 16), mode="replicate")
    return image.to(dtype)
