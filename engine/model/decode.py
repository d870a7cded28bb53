"""Stage 3, ``decode``: readout and features to mask logits, and the merging of objects."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.model.config import Config
from engine.model.encode_query import Features
from engine.model.layers import ASPP, ResBlock, UpBlock
from engine.model.read_memory import image_grid


class Decoder(nn.Module):
    """Context at several scales, then up to stride 4 with the query's features."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        _, c8, c4 = config.backbone.channels
        both, width = 2 * config.value_dim, config.width
        self.context = ASPP(both) if config.aspp else nn.Identity()
        self.compress = ResBlock(both, width, shortcut=3)
        self.up8 = UpBlock(c8, width, width // 2)
        self.up4 = UpBlock(c4, width // 2, width // 2)
        self.predict = nn.Conv2d(width // 2, 1, 3, padding=1)

    def forward(self, readout: Tensor, features: Features) -> Tensor:
        """Map readout [K, N, Cv] to logits [K, H/4, W/4], one object a row."""
        logits: Tensor = self.predict(self.embed(readout, features))
        return logits[:, 0]

    def embed(self, readout: Tensor, features: Features) -> Tensor:
        """The same up to the last convolution: its input [K, D/2, H/4, W/4], not negative."""
        h, w = features.f16.shape[-2:]
        query = features.compressed.expand(readout.shape[0], -1, -1, -1)
        x = torch.cat([image_grid(readout, h, w), query], 1)
        x = self.compress(self.context(x))
        return F.relu(self.up4(self.up8(x, features.f8), features.f4))


def upsample_logits(logits: Tensor) -> Tensor:
    """[K, H/4, W/4] → [K, H, W], bilinear, fp32."""
    x = logits.float()[None]
    return F.interpolate(x, scale_factor=4.0, mode="bilinear", align_corners=False)[0]


def aggregate(masks: Tensor, dim: int = 0) -> Tensor:
    """Merge K independent object probabilities into K+1 that sum to one, background first.

    Soft aggregation (Oh et al., "STM", ICCV 2019): with odds o = p / (1 − p) and background
    probability Π(1 − p), each output is o_i / Σ_j o_j. ``masks`` [..., K, ...] in 0…1 is clamped
    to 1e-7…1 − 1e-7 and computed in fp32.
    """
    p = masks.float()
    p = torch.cat([(1 - p).prod(dim, keepdim=True), p], dim).clamp(1e-7, 1 - 1e-7)
    odds = p / (1 - p)
    return odds / odds.sum(dim, keepdim=True)


def scores(probabilities: Tensor) -> Tensor:
    """Mean of p and mean of p² for each object over all pixels, fp32: [K+1, H, W] → [K, 2].

    The first is the object's share of the image, padding included. The second divided by the first
    is its confidence Σp²/Σp: the mean of p weighted by p, 1 for a mask of zeros and ones.
    """
    p = probabilities[1:].float()
    return torch.stack([p.mean((1, 2)), p.square().mean((1, 2))], 1)
