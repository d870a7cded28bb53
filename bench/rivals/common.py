"""What the adapters share: images and masks as tensors, and networks without downloads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

U8 = NDArray[np.uint8]
#: Of ImageNet, which these networks' backbones were trained with.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def to_image(frame: U8, device: torch.device) -> Tensor:
    """uint8 [H, W, 3] → fp32 [3, H, W] in 0…1."""
    return torch.from_numpy(frame).to(device).permute(2, 0, 1).float().div_(255)


def normalise(image: Tensor) -> Tensor:
    """Subtract ImageNet's mean and divide by its standard deviation."""
    mean, deviation = (image.new_tensor(v)[:, None, None] for v in (MEAN, DEVIATION))
    return (image - mean) / deviation


def one_hot(mask: U8, device: torch.device) -> Tensor:
    """Ids uint8 [H, W] → fp32 [K, H, W], K = the largest id."""
    ids = torch.from_numpy(mask).to(device)
    labels = torch.arange(1, int(mask.max()) + 1, device=device)
    return (ids[None] == labels[:, None, None]).float()


def to_mask(probabilities: Tensor) -> U8:
    """[K+1, H, W], background first → ids uint8 [H, W] on the host."""
    result: U8 = probabilities.argmax(0).to(torch.uint8).cpu().numpy()
    return result


@contextlib.contextmanager
def no_downloads() -> Iterator[None]:
    """Let constructors that fetch ImageNet's weights keep their random ones.

    All weights that are timed come with the user's file, or are meant to be random.
    """
    load = torch.nn.Module.load_state_dict

    def lenient(self: Any, state: Any, strict: bool = True, **more: Any) -> Any:
        return load(self, state, strict=strict and bool(state), **more)

    with (
        mock.patch("torch.utils.model_zoo.load_url", lambda *args, **more: {}),
        mock.patch("torch.hub.load_state_dict_from_url", lambda *args, **more: {}),
        mock.patch.object(torch.nn.Module, "load_state_dict", lenient),
    ):
        yield


def read_weights(path: str, device: torch.device) -> dict[str, Tensor]:
    """A checkpoint's tensors; nothing else in it is unpickled."""
    state: dict[str, Tensor] = torch.load(path, map_location=device, weights_only=True)
    return state
