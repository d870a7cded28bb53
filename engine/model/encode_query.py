"""Stage 1, ``encode_query``: a frame to the key it is matched by and the features it offers."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from engine.model.config import Config
from engine.model.read_memory import tokens


class Features(NamedTuple):
    """What one frame offers to the later stages."""

    f16: Tensor  # [B, C16, H/16, W/16]
    f8: Tensor  # [B, C8, H/8, W/8]
    f4: Tensor  # [B, C4, H/4, W/4]
    compressed: Tensor  # [B, V, H/16, W/16], f16 at the value's width


class QueryEncoder(nn.Module):
    """Backbone, key projection and feature compression, both 3×3."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        c16 = config.backbone.channels[0]
        self.backbone = config.backbone(3)
        self.key = nn.Conv2d(c16, config.key_dim, 3, padding=1)
        self.compression = nn.Conv2d(c16, config.value_dim, 3, padding=1)

    def forward(self, image: Tensor) -> tuple[Tensor, Features]:
        """Map image [B, 3, H, W] in −1…1 to key [B, N, Ck] and features."""
        f16, f8, f4 = self.backbone(image)
        return tokens(self.key(f16)), Features(f16, f8, f4, self.compression(f16))
