"""The network in plain PyTorch: the reference that every backend is held to."""

from __future__ import annotations

from engine.errors import ModelError
from engine.model.backbones import MobileNetV2, ResNet18
from engine.model.mobilevos import Config, Features, MobileVOS, aggregate, upsample_logits

CONFIGS = {
    "mobilevos-resnet18": Config(ResNet18, width=160),
    "mobilevos-mobilenetv2": Config(MobileNetV2, width=96),
    "mobilevos-mobilenetv2-noaspp": Config(MobileNetV2, width=96, aspp=False),
}

__all__ = ["CONFIGS", "Config", "Features", "MobileVOS", "aggregate", "create", "upsample_logits"]


def create(name: str) -> MobileVOS:
    """Make the network ``name`` with random weights, in evaluation mode.

    Raises
    ------
    ModelError: if ``name`` is not one of :data:`CONFIGS`.
    """
    if name not in CONFIGS:
        raise ModelError(f"unknown model '{name}'; choose one of: {', '.join(CONFIGS)}")
    return MobileVOS(CONFIGS[name]).eval()
