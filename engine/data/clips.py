"""The demo's clip at the network's resolution, for comparisons of graphs and backends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.data.demo import CLIP, MASK
from engine.media.masks import load_ids
from engine.media.open import open_source


@dataclass(frozen=True)
class Clip:
    """Images fp32 [1, 3, H, W] in −1…1, and the first one's object, fp32 [H, W] of 0 and 1."""

    name: str
    images: tuple[NDArray[np.float32], ...]
    first: NDArray[np.float32]

    def masks(self, objects: int, used: int, given: bool) -> dict[str, NDArray[Any]]:
        """``given`` [K, H, W], ``use_given`` and ``active`` [K] for K columns, ``used`` of them.

        The first object is the clip's, the others are strips of the image beside it.
        """
        planes = np.zeros((objects, *self.first.shape), np.float32)
        active = np.arange(objects) < used
        if given:
            planes[0] = self.first
            free = self.first == 0
            edges = np.linspace(0, self.first.shape[1], used + 1).astype(int)
            for k in range(1, used):
                planes[k, :, edges[k] : (edges[k] + edges[k + 1]) // 2] = 1
                planes[k] *= free
        return {"given": planes, "use_given": active & given, "active": active}


def demo_clip(size: tuple[int, int], frames: int, every: int = 2) -> Clip:
    """Read ``frames`` frames of the demo's clip, every second one, resized to (H, W)."""
    source = open_source(CLIP)
    wanted = source.frames(end=frames * every, every=every)
    pictures = [Image.fromarray(f.image) for f in wanted]
    source.close()
    mask = Image.fromarray((load_ids(MASK) > 0).astype(np.uint8))
    first = np.asarray(mask.resize(size[::-1], Image.Resampling.NEAREST)).astype(np.float32)
    images = (np.asarray(p.resize(size[::-1], Image.Resampling.BILINEAR)) for p in pictures)
    return Clip("Big Buck Bunny", tuple(_normalised(i) for i in images), first)


def _normalised(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    image = frame.transpose(2, 0, 1)[None].astype(np.float32) * np.float32(1 / 127.5) - 1
    return np.ascontiguousarray(image, np.float32)
