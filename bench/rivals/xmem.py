"""XMem-style checkouts: ``InferenceCore(network, config).step(image, mask, labels)``."""

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

#: The defaults of its eval.py; counting of usage on, as for clips that are long.
CONFIG = {
    "enable_long_term": True,
    "enable_long_term_count_usage": True,
    "max_mid_term_frames": 10,
    "min_mid_term_frames": 5,
    "max_long_term_elements": 10000,
    "num_prototypes": 128,
    "top_k": 30,
    "mem_every": 5,
    "deep_update_every": -1,
}


class Rival:
    """See `bench.subjects.Subject`."""

    def __init__(self, checkout: Path, weights: str, device: torch.device) -> None:
        self.device, self.config = device, dict(CONFIG)
        self.core = importlib.import_module("inference.inference_core").InferenceCore
        make = importlib.import_module("model.network").XMem
        with no_downloads():
            self.network: Any = make(self.config).to(device).eval()
        if weights:
            self.network.load_weights(read_weights(weights, device), init_as_zero_if_needed=True)

    @torch.inference_mode()
    def start(self, frame: U8, mask: U8) -> U8:
        """Begin a video."""
        labels = list(range(1, int(mask.max()) + 1))
        self.processor = self.core(self.network, config=self.config)
        self.processor.set_all_labels(labels)
        image = normalise(to_image(frame, self.device))[None]
        return to_mask(self.processor.step(image, one_hot(mask, self.device), labels))

    @torch.inference_mode()
    def step(self, frame: U8) -> U8:
        """Segment the next frame."""
        return to_mask(self.processor.step(normalise(to_image(frame, self.device))[None]))
