"""What tells the variants apart: the three that are made to be used, and their teacher."""

from __future__ import annotations

from dataclasses import dataclass

from engine.model.backbones import MobileNetV2, ResNet18


@dataclass(frozen=True)
class Config:
    """A variant. ``value_dim`` is V in the paper, ``width`` D, the decoder's first width."""

    backbone: type[MobileNetV2] | type[ResNet18]
    width: int
    aspp: bool = True
    key_dim: int = 64
    value_dim: int = 64


CONFIGS = {
    "mobilevos-resnet18": Config(ResNet18, width=160),
    "mobilevos-mobilenetv2": Config(MobileNetV2, width=96),
    "mobilevos-mobilenetv2-noaspp": Config(MobileNetV2, width=96, aspp=False),
}
