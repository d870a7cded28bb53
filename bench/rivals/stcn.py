"""STCN-style checkouts: the network's four calls and its memory bank, a frame at a time.

Its own InferenceCore takes a whole video at once and only runs on CUDA, so the loop is made here:
read, decode, merge, and every fifth frame into the bank, which grows.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from bench.rivals.common import (
    U8,
    no_downloads,
    normalise,
    one_hot,
    read_weights,
    to_image,
    to_mask,
)

EVERY, TOP_K = 5, 20  # the defaults of its eval_generic.py


class Rival:
    """See `bench.subjects.Subject`."""

    def __init__(self, checkout: Path, weights: str, device: torch.device) -> None:
        self.device = device
        self.bank_type = importlib.import_module("inference_memory_bank").MemoryBank
        self.merge = importlib.import_module("model.aggregate").aggregate
        tensors = importlib.import_module("util.tensor_util")
        self.pad, self.unpad = tensors.pad_divide_by, tensors.unpad
        with no_downloads():
            self.network: Any = importlib.import_module("model.eval_network").STCN()
        self.network = self.network.to(device).eval()
        if weights:
            self.network.load_state_dict(read_weights(weights, device))

    def _image(self, frame: U8) -> tuple[torch.Tensor, Any]:
        image, padding = self.pad(normalise(to_image(frame, self.device))[None], 16)
        return image, padding

    def _remember(self, image: Any, key: Any, f16: Any, masks: Any) -> None:
        self.bank.add_memory(key.unsqueeze(2), self.network.encode_value(image, f16, masks))

    @torch.inference_mode()
    def start(self, frame: U8, mask: U8) -> U8:
        """Begin a video."""
        objects = one_hot(mask, self.device)[:, None]  # [K, 1, H, W]
        self.bank, self.index = self.bank_type(k=len(objects), top_k=TOP_K), 0
        image, padding = self._image(frame)
        # Merged as a prediction would be: STCN clamps the given mask in the same way.
        probabilities = self.merge(self.pad(objects, 16)[0], keep_bg=True)
        key, _, f16, _, _ = self.network.encode_key(image)
        self._remember(image, key, f16, probabilities[1:])
        return to_mask(self.unpad(probabilities, padding)[:, 0])

    @torch.inference_mode()
    def step(self, frame: U8) -> U8:
        """Segment the next frame."""
        self.index += 1
        image, padding = self._image(frame)
        key, compressed, f16, f8, f4 = self.network.encode_key(image)
        masks = self.network.segment_with_query(self.bank, f8, f4, key, compressed)
        probabilities = self.merge(masks, keep_bg=True)
        if self.index % EVERY == 0:
            self._remember(image, key, f16, probabilities[1:])
        return to_mask(self.unpad(probabilities, padding)[:, 0])
