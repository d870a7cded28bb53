"""The ``reference`` backend: the network in eager PyTorch, on a GPU if there is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from engine.geometry import Geometry, frame_to_network
from engine.model import MobileVOS, aggregate, scores, upsample_logits
from engine.runtime.base import StepInput
from kernels.mask_head import mask_head
from kernels.preprocess import preprocess

F32 = NDArray[np.float32]


class ReferenceBackend:
    """See :class:`engine.runtime.base.Backend`. ``threads`` of 0 leaves PyTorch's setting alone."""

    name = "reference"
    on_gpu = False

    def __init__(self, model: MobileVOS, threads: int = 0) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # Channels last is what fast convolutions want, on CPUs and on tensor cores.
        self.model = model.to(self.device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def open(self, geometry: Geometry) -> None:
        self.geometry = geometry
        config, tokens = self.model.config, geometry.tokens
        self.keys = torch.zeros(0, tokens, config.key_dim, device=self.device)
        self.values = torch.zeros(0, 0, tokens, config.value_dim, device=self.device)
        self.soft = torch.zeros(1, *geometry.padded, device=self.device)

    def arrange(self, columns: Sequence[int], slots: int) -> None:
        kept = min(slots, len(self.keys))
        keys = self.keys.new_zeros(slots, *self.keys.shape[1:])
        keys[:kept] = self.keys[:kept]
        values = self.values.new_zeros(slots, len(columns), *self.values.shape[2:])
        for new, old in enumerate(columns):
            if old >= 0:
                values[:kept, new] = self.values[:kept, old]
        self.keys, self.values = keys, values

    def expect(self, frame: Any) -> None:
        """Do nothing: nothing is uploaded early."""

    @torch.inference_mode()
    def step(self, task: StepInput) -> NDArray[np.uint8]:
        model, geometry, device = self.model, self.geometry, self.device
        image = self.preprocess(task.frame)
        key, features = model.encode_query(image)
        slots = torch.from_numpy(task.slots).to(device)
        readout = model.read_memory(key[0], self.keys, self.values, slots)
        masks = torch.sigmoid(upsample_logits(model.decode(readout, features)))
        if task.given is not None:
            use = torch.from_numpy(task.use_given).to(device)[:, None, None]
            masks = torch.where(use, torch.from_numpy(task.given).to(device), masks)
        self.soft = aggregate(masks)
        self.keys[task.write] = key[0]
        self.values[task.write] = model.encode_value(image, self.soft[1:], features.f16)
        labels = torch.from_numpy(task.labels).to(device)
        mask = mask_head(self.soft, labels, geometry.source, crop=geometry.network)
        ids: NDArray[np.uint8] = mask.cpu().numpy()
        return ids

    def preprocess(self, frame: NDArray[np.uint8]) -> torch.Tensor:
        """Frame uint8 [H0, W0, 3] → [1, 3, H, W] in −1…1, padded by repeating its edge.

        A GPU resizes in floating point, by the kernel; a CPU as the backend ``cpu`` does, so that
        the two see the same bytes.
        """
        (h, w), (height, width) = self.geometry.network, self.geometry.padded
        # Copies: NumPy's view of a decoded image may be read-only, which torch warns of.
        if self.device.type == "cuda" and min(h, w) > 1:  # 1: more than the kernel's op takes
            return preprocess(torch.tensor(frame, device=self.device), h, w)
        pixels = torch.tensor(frame_to_network(frame, self.geometry), device=self.device)
        pixels = pixels.permute(2, 0, 1)[None]
        pad = (0, width - w, 0, height - h)
        return F.pad(pixels.float() * (1 / 127.5) - 1, pad, mode="replicate")

    def copy(self, source: int, target: int) -> None:
        self.keys[target] = self.keys[source]
        self.values[target] = self.values[source]

    def probabilities(self) -> F32:
        return self.soft.cpu().numpy()

    def scores(self) -> F32:
        return scores(self.soft).cpu().numpy()

    def export_memory(self) -> tuple[F32, F32]:
        return self.keys.cpu().numpy().copy(), self.values.cpu().numpy().copy()

    def import_memory(self, keys: F32, values: F32) -> None:
        self.keys = torch.tensor(keys, device=self.device)
        self.values = torch.tensor(values, device=self.device)

    def close(self) -> None:
        self.__dict__.pop("model", None)
