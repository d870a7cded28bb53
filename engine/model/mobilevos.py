"""MobileVOS, the reference network: four stages that the frame loop strings together.

Miles, Yucel, Bruno, Saà-Garriga, "MobileVOS: Real-Time Video Object Segmentation", CVPR 2023.
Notation: K objects, image H×W (multiples of 16), grid h×w = H/16 × W/16, N = h·w tokens.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from engine.model.backbones import MobileNetV2, ResNet18
from engine.model.layers import ASPP, CBAM, ResBlock, UpBlock
from kernels.memory_read import memory_read


@dataclass(frozen=True)
class Config:
    """What tells the variants apart. ``value_dim`` is V in the paper's table, ``width`` D."""

    backbone: type[MobileNetV2] | type[ResNet18]
    width: int
    aspp: bool = True
    key_dim: int = 64
    value_dim: int = 64


class Features(NamedTuple):
    """What one frame offers to the later stages."""

    f16: Tensor  # [B, C16, H/16, W/16]
    f8: Tensor  # [B, C8, H/8, W/8]
    f4: Tensor  # [B, C4, H/4, W/4]
    compressed: Tensor  # [B, V, H/16, W/16], f16 at the value's width


class ValueFuser(nn.Module):
    """Mask-aware and query feature to a value, [B, 2·C16, h, w] → [B, V, h, w]."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.block1 = ResBlock(cin, cout, shortcut=1)
        self.attention = CBAM(cout)
        self.block2 = ResBlock(cout, cout, shortcut=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block1(x)
        return self.block2(x + self.attention(x))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Readout and query feature to one logit per pixel at stride 4."""

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
        """Map readout [K, V, h, w] to logits [K, 1, H/4, W/4]."""
        query = features.compressed.expand(readout.shape[0], -1, -1, -1)
        x = self.compress(self.context(torch.cat([readout, query], 1)))
        x = self.up4(self.up8(x, features.f8), features.f4)
        return self.predict(F.relu(x))  # type: ignore[no-any-return]


class MobileVOS(nn.Module):
    """The network as its four stages; it holds no state of a video."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        c16 = config.backbone.channels[0]
        self.query_encoder = config.backbone(3)
        self.value_encoder = config.backbone(5)  # RGB, the object's mask, the other objects'
        self.key_projection = nn.Conv2d(c16, config.key_dim, 3, padding=1)
        self.compression = nn.Conv2d(c16, config.value_dim, 3, padding=1)
        self.value_fuser = ValueFuser(2 * c16, config.value_dim)
        self.decoder = Decoder(config)

    def encode_query(self, image: Tensor) -> tuple[Tensor, Features]:
        """Encode a frame: image [B, 3, H, W] in −1…1 → key [B, N, Ck] and features."""
        f16, f8, f4 = self.query_encoder(image)
        return tokens(self.key_projection(f16)), Features(f16, f8, f4, self.compression(f16))

    def read_memory(self, key: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> Tensor:
        """Match key [N, Ck] against keys [S, N, Ck]; read values [S, K, N, Cv] → [K, N, Cv].

        ``slots`` [K, R] names the slots that each object reads, −1 for none.
        """
        return memory_read(key, keys, values, slots)

    def decode(self, readout: Tensor, features: Features) -> Tensor:
        """Turn readout [K, N, Cv] into mask logits [K, H/4, W/4]; see :func:`aggregate`."""
        h, w = features.f16.shape[-2:]
        return self.decoder(image_grid(readout, h, w), features)[:, 0]  # type: ignore[no-any-return]

    def encode_value(self, image: Tensor, masks: Tensor, f16: Tensor) -> Tensor:
        """Encode a frame with its masks: image [1, 3, H, W], masks [K, H, W] → value [K, N, Cv]."""
        objects = masks.shape[0]
        others = masks.sum(0, keepdim=True) - masks
        seen = torch.cat(
            [image.expand(objects, -1, -1, -1), masks[:, None], others[:, None]], dim=1
        )
        return self.fuse_value(seen, f16.expand(objects, -1, -1, -1))

    def fuse_value(self, seen: Tensor, f16: Tensor) -> Tensor:
        """``encode_value`` behind its batching: seen [B, 5, H, W], f16 [B, C16, h, w]."""
        g16, _, _ = self.value_encoder(seen)
        return tokens(self.value_fuser(torch.cat([g16, f16], 1)))


def tokens(x: Tensor) -> Tensor:
    """[B, C, h, w] → [B, h·w, C], the channels-last layout at both ends of the memory read."""
    return x.flatten(2).transpose(1, 2)


def image_grid(x: Tensor, h: int, w: int) -> Tensor:
    """[B, h·w, C] → [B, C, h, w], the inverse of :func:`tokens`."""
    return x.transpose(1, 2).reshape(*x.shape[::2], h, w)


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


def fuse(model: MobileVOS) -> MobileVOS:
    """Fold every batch norm into the convolution before it, in place; the outputs stay the same.

    All weights that are shipped or exported have this form.
    """
    for parent in model.modules():
        children = list(parent.named_children())
        for (_, conv), (name, norm) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                fused = fuse_conv_bn_eval(conv, norm)
                conv.weight, conv.bias = fused.weight, fused.bias
                setattr(parent, name, nn.Identity())
    return model
