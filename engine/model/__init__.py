"""The network in plain PyTorch: the reference that every backend is held to."""

from __future__ import annotations

from pathlib import Path

from engine.errors import ModelError
from engine.model.backbones import MobileNetV2, ResNet18
from engine.model.mobilevos import Config, Features, MobileVOS, aggregate, fuse, upsample_logits

CONFIGS = {
    "mobilevos-resnet18": Config(ResNet18, width=160),
    "mobilevos-mobilenetv2": Config(MobileNetV2, width=96),
    "mobilevos-mobilenetv2-noaspp": Config(MobileNetV2, width=96, aspp=False),
}

__all__ = [
    "CONFIGS",
    "Config",
    "Features",
    "MobileVOS",
    "aggregate",
    "create",
    "fuse",
    "load",
    "upsample_logits",
]


def create(name: str) -> MobileVOS:
    """Make the network ``name`` with random weights, in evaluation mode.

    Raises
    ------
    ModelError: if ``name`` is not one of :data:`CONFIGS`.
    """
    if name not in CONFIGS:
        raise ModelError(f"unknown model '{name}'; choose one of: {', '.join(CONFIGS)}")
    return MobileVOS(CONFIGS[name]).eval()


def load(name: str, weights: Path) -> MobileVOS:
    """Make the network ``name`` with the weights of a ``.safetensors`` file, in fp32.

    Raises
    ------
    ModelError: if the file is damaged or belongs to another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    model = fuse(create(name))
    try:
        model.load_state_dict({k: v.float() for k, v in load_file(weights).items()})
    except (SafetensorError, RuntimeError) as error:
        raise ModelError(
            f"'{weights}' is not a weights file of '{name}' or is damaged; reinstall the package"
        ) from error
    return model
