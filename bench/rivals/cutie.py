"""Cutie-style checkouts: ``InferenceCore(network, cfg=…).step(image, mask, objects=…)``.

Needs what its own requirements bring: hydra-core and omegaconf. It normalises images itself.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.rivals.common import U8, no_downloads, read_weights, to_image


class Rival:
    """See `bench.subjects.Subject`."""

    def __init__(self, checkout: Path, weights: str, device: torch.device) -> None:
        hydra = importlib.import_module("hydra")
        open_dict = importlib.import_module("omegaconf").open_dict
        self.device = device
        self.core = importlib.import_module("cutie.inference.inference_core").InferenceCore
        make = importlib.import_module("cutie.model.cutie").CUTIE
        resolve = importlib.import_module("cutie.inference.utils.args_utils").get_dataset_cfg
        folder = str(checkout / "cutie" / "config")
        with hydra.initialize_config_dir(version_base="1.3.2", config_dir=folder):
            config = hydra.compose(config_name="eval_config")
        with open_dict(config):
            resolve(config)
        with no_downloads():
            self.network: Any = make(config).to(device).eval()
        if weights:
            self.network.load_weights(read_weights(weights, device))

    @torch.inference_mode()
    def start(self, frame: U8, mask: U8) -> U8:
        """Begin a video."""
        self.processor = self.core(self.network, cfg=self.network.cfg)
        ids = torch.from_numpy(mask).to(self.device)
        objects = [int(i) for i in np.unique(mask) if i]
        return self._ids(self.processor.step(to_image(frame, self.device), ids, objects=objects))

    @torch.inference_mode()
    def step(self, frame: U8) -> U8:
        """Segment the next frame."""
        return self._ids(self.processor.step(to_image(frame, self.device)))

    def _ids(self, probabilities: torch.Tensor) -> U8:
        mask = self.processor.output_prob_to_mask(probabilities)
        result: U8 = mask.to(torch.uint8).cpu().numpy()
        return result
