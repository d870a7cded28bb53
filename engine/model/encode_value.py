"""Stage 4, ``encode_value``: a frame and its masks to the values that the memory keeps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.model.config import Config
from engine.model.layers import CBAM, ResBlock
from engine.model.read_memory import tokens


class ValueEncoder(nn.Module):
    """Backbone on RGB, the object's mask and the other objects'; fused with the query's feature."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.backbone = config.backbone(5)
        self.block1 = ResBlock(2 * config.backbone.channels[0], config.value_dim, shortcut=1)
        self.attention = CBAM(config.value_dim)
        self.block2 = ResBlock(config.value_dim, config.value_dim, shortcut=1)

    def forward(self, image: Tensor, masks: Tensor, f16: Tensor) -> Tensor:
        """Map image [1, 3, H, W], masks [K, H, W] in 0…1 and f16 to values [K, N, Cv]."""
        objects = masks.shape[0]
        others = masks.sum(0, keepdim=True) - masks
        planes = torch.stack([masks, others], 1).to(image.dtype)
        seen = torch.cat([image.expand(objects, -1, -1, -1), planes], 1)
        return self.encode(seen, f16.expand(objects, -1, -1, -1))

    def encode(self, seen: Tensor, f16: Tensor) -> Tensor:
        """The same behind its batching: seen [B, 5, H, W], f16 [B, C16, h, w] → [B, N, Cv]."""
        g16, _, _ = self.backbone(seen)
        x = self.block1(torch.cat([g16, f16], 1))
        return tokens(self.block2(x + self.attention(x)))
