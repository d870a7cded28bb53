"""MobileVOS, the reference network: four stages that the frame loop strings together.

Miles, Yucel, Manganelli, Saà-Garriga, "MobileVOS: Real-Time Video Object Segmentation", CVPR 2023.
Notation: K objects, image H×W (multiples of 16), grid h×w = H/16 × W/16, N = h·w tokens.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from engine.errors import ModelError
from engine.model.config import CONFIGS, Config
from engine.model.decode import Decoder
from engine.model.encode_query import QueryEncoder
from engine.model.encode_value import ValueEncoder
from engine.model.read_memory import read_memory


class MobileVOS(nn.Module):
    """The network as its four stages; it holds no state of a video."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.encode_query = QueryEncoder(config)
        self.decode = Decoder(config)
        self.encode_value = ValueEncoder(config)

    read_memory = staticmethod(read_memory)  # the stage without weights


def create(name: str) -> MobileVOS:
    """Make the network ``name`` with random weights, in evaluation mode.

    Raises
    ------
    ModelError: if ``name`` is not one of :data:`CONFIGS`.
    """
    if name not in CONFIGS:
        raise ModelError(f"unknown model '{name}'; choose one of: {', '.join(CONFIGS)}")
    return MobileVOS(CONFIGS[name]).eval()


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
